"""The status page of a gateway: its files, and what a reader sees and does in a real browser. Nothing here depends on how fast something happens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from samples.editor import find_browser, started_browser
from samples.endpoints import EndpointProcess
from samples.gateways import GATEWAY_TOKEN, GatewayProcess
from samples.http_client import GateFile, Http, until
from samples.page_driver import FAR, StatusPage
from yggdrasill.foundation.templates import render_template
from yggdrasill.gateway.status_page import CONTENT_SECURITY_POLICY, FOLDER

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
TERRAIN = {"size": 96, "seed": 7}


@pytest.fixture
def gate_file(tmp_path: Path) -> GateFile:
    return GateFile(tmp_path)


# -- the files, without a browser -------------------------------------------------------------------------------------------


def test_the_page_needs_no_token_and_has_a_strict_policy(gateway: GatewayProcess) -> None:
    answer = requests.get(gateway.url + "/", timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert "'unsafe" not in CONTENT_SECURITY_POLICY
    assert "*" not in CONTENT_SECURITY_POLICY
    for name in ("script-src 'self'", "default-src 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"):
        assert name in CONTENT_SECURITY_POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_has_no_inline_script_or_style_and_loads_existing_files_only(gateway: GatewayProcess) -> None:
    text = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=|javascript:", text)
    loaded = set(re.findall(r'(?:src|href)="(page/[^"]+)"', text))
    imported = {name for path in FOLDER.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8"))}
    for name in loaded | {f"page/{name}" for name in imported}:
        assert requests.get(f"{gateway.url}/{name}", timeout=30).status_code == 200, name
    assert {f"page/{path.name}" for path in FOLDER.iterdir()} <= loaded | {f"page/{name}" for name in imported} | {"page/index.html"}


@pytest.mark.parametrize("name", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"])
def test_no_script_of_the_page_makes_elements_from_text(name: str) -> None:
    assert not [path.name for path in FOLDER.glob("*.js") if name in path.read_text(encoding="utf-8")]


def test_a_file_that_is_known_is_not_sent_again_and_others_are_unknown(gateway: GatewayProcess) -> None:
    first = requests.get(gateway.url + "/page/page.js", timeout=30)
    again = requests.get(gateway.url + "/page/page.js", headers={"If-None-Match": first.headers["ETag"]}, timeout=30)
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    for path in ("/page/", "/page/%2e%2e/app.py", "/page/../app.py", "/page/page.py"):
        assert requests.get(gateway.url + path, timeout=30).status_code == 404


def test_jobs_of_the_same_moment_are_not_skipped_between_two_pages(gateway: GatewayProcess) -> None:
    steps = {f"s{number}": {"graph": "double", "inputs": {"x": number}} for number in range(3)}
    answer = gateway.post("/v1/workflows", {"workflow": {"steps": steps, "outputs": {}}, "paused": True})
    assert answer.status_code == 202, answer.text
    everything = [job["job_id"] for job in gateway.get("/v1/jobs?limit=10000").json()["jobs"]]
    found: list[str] = []
    query = ""
    while True:
        page = gateway.get(f"/v1/jobs?limit=1{query}").json()["jobs"]
        if not page:
            break
        found += [job["job_id"] for job in page]
        query = f"&before={page[-1]['created']}&last={page[-1]['job_id']}"
    assert found == everything
    assert gateway.post(f"/v1/jobs/{answer.json()['job_id']}/cancel").status_code == 200


def test_endpoints_report_their_devices(gateway: GatewayProcess) -> None:
    (found,) = [each for each in gateway.get("/v1/endpoints").json()["endpoints"] if each["name"] == "forge"]
    assert found["devices"][0]["type"] == "cpu"
    assert isinstance(found["memory"], list)


# -- in a browser -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a real browser; without one the test is skipped with a message that says what to install."""
    binary = find_browser()
    if binary is None:
        pytest.skip("NO BROWSER FOUND, SO THE STATUS PAGE IS NOT TESTED: install chromium (or set CHROMIUM), and 'pip install playwright'")
    with started_browser(binary, tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Return a gateway before two endpoints: ``forge`` with the sample graphs and two slots, ``mill`` with terrains."""
    forge = EndpointProcess("forge", tmp_path_factory.mktemp("forge"), plugins=["samples.served_blocks"], slots=2)
    mill = EndpointProcess("mill", tmp_path_factory.mktemp("mill"))
    process: GatewayProcess | None = None
    try:
        for endpoint in (forge, mill):
            endpoint.start()
        deploy(forge, mill)
        process = GatewayProcess(tmp_path_factory.mktemp("studio"), [forge, mill], pools=["images"]).start()
        yield process
    finally:
        for each in (process, forge, mill):
            if each is not None:
                each.stop()


def deploy(forge: EndpointProcess, mill: EndpointProcess) -> None:
    from samples.http_client import one_node

    for name, inputs in {"double": ("x",), "fail": ("x",), "gate": ("path", "x"), "slow": ("x",)}.items():
        Http(forge).deploy(name, one_node(name, inputs))
    terrain = render_template("graph", "creator", {})
    terrain["graph_id"] = "terrain"
    terrain["exposed_outputs"] = [{"node_id": "shade", "port_name": "image", "name": "map"}]
    Http(mill).deploy("terrain", terrain)


@pytest.fixture
def shown(browser: Any, studio: GatewayProcess) -> Iterator[StatusPage]:
    """Return the status page with the owner's token; it must not have reported an error when the test ends."""
    page = StatusPage(browser.new_page(), studio).open()
    yield page
    problems = list(page.problems)
    page.page.close()
    assert not problems


def ended(gateway: GatewayProcess, name: str, **body: Any) -> str:
    """Submit a job with a name, wait for its end, and return its id."""
    found = gateway.result(gateway.post("/v1/workflows", {"name": name, **body}).json()["job_id"])
    return str(found["job_id"])


@pytest.mark.browser
def test_a_job_is_seen_waiting_running_and_finishing_without_a_reload(
    shown: StatusPage, studio: GatewayProcess, gate_file: GateFile
) -> None:
    shown.page.evaluate("() => { window.isTheSamePage = true; }")
    studio.submit("gate", gate_file.inputs(x=1), name="watched")
    row = shown.wait_for_status("watched", "running")
    assert "at forge" in row.inner_text()
    until(lambda: "1 running" in shown.page.get_by_role("listitem", name="forge").first.inner_text(), FAR)
    assert row.get_by_role("progressbar").is_visible()
    gate_file.open()
    shown.wait_for_status("watched", "completed")
    until(lambda: "ran " in row.inner_text(), FAR)
    assert not row.get_by_role("progressbar").is_visible()
    log = shown.page.locator("#events")
    until(lambda: "watched" in log.inner_text() and "completed" in log.inner_text(), FAR)
    assert shown.page.evaluate("() => window.isTheSamePage")


@pytest.mark.browser
def test_the_preview_of_a_running_node_is_shown_until_the_job_ends(shown: StatusPage, studio: GatewayProcess, gate_file: GateFile) -> None:
    """A headless endpoint sends no previews, so this one is added to the stream of events."""
    job = studio.submit("gate", gate_file.inputs(x=1), name="painted")["job_id"]
    shown.wait_for_status("painted", "running")
    image = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
    data = json.dumps({"job_id": job, "time": 0, "what": "preview", "node": "3", "type": "image/png", "image": image})
    text = f"event: comfy\ndata: {data}\n\nevent: comfy\ndata: {data.replace(image, 'PHNjcmlwdD4=')}\n\n"
    shown.page.route("**/v1/events", lambda route: route.fulfill(content_type="text/event-stream", body=text))
    studio.kill()
    studio.start()
    row = shown.row("painted")
    row.get_by_role("img", name="Preview of painted").wait_for()
    assert row.locator("canvas").count() == 1
    shown.page.unroute("**/v1/events")
    gate_file.open()
    shown.wait_for_status("painted", "completed")
    until(lambda: row.locator(".preview").count() == 0, FAR)
    shown.problems.clear()  # the refused connections


@pytest.mark.browser
def test_the_picture_of_a_result_is_shown_small_and_whole(shown: StatusPage, studio: GatewayProcess) -> None:
    ended(studio, "a land", graph="terrain", inputs={"configuration": TERRAIN})
    row = shown.wait_for_status("a land", "completed")
    row.locator(".thumb[data-ready] canvas").wait_for()
    colors = row.locator(".thumb canvas").evaluate(
        "(canvas) => new Set(new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
    )
    assert colors > 50
    row.locator(".thumb").click()
    dialog = shown.page.locator("#picture")
    until(lambda: dialog.locator("img").evaluate("(image) => image.naturalWidth") == 96, FAR)
    assert dialog.get_by_role("link", name="Save").get_attribute("download") == "map"
    shown.page.keyboard.press("Escape")
    until(lambda: not dialog.is_visible(), FAR)


@pytest.mark.browser
def test_the_picture_that_a_worker_returns_is_shown(shown: StatusPage, studio: GatewayProcess) -> None:
    job = studio.post("/v2/images/run", {"input": {}}).json()["id"]
    assert studio.get("/v2/images/job-take/w1?gpu=none").json()["id"] == job
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
    entries = [{"filename": "dot.png", "type": "base64", "data": png}, {"filename": HOSTILE, "type": "base64", "data": "PHNjcmlwdD4="}]
    assert studio.post(f"/v2/images/job-done/w1/{job}?gpu=none", {"output": {"images": entries}}).status_code == 200
    row = shown.page.locator("li.job[data-status=COMPLETED]").filter(has_text="images").first
    row.locator(".thumb[data-ready]").wait_for()
    assert row.locator(".thumb").count() == 1
    assert "pool" in shown.page.get_by_role("listitem", name="images").first.inner_text()


@pytest.mark.browser
def test_a_failed_job_shows_its_error_and_is_retried(shown: StatusPage, studio: GatewayProcess) -> None:
    job = ended(studio, "broken", graph="fail", inputs={"x": 1})
    row = shown.wait_for_status("broken", "failed")
    assert "failed on purpose" in row.locator(".problem").inner_text()
    row.get_by_role("button", name="broken", exact=True).click()
    until(lambda: "block_failed" in row.locator(".details").inner_text(), FAR)
    row.get_by_role("button", name="Retry broken").click()
    until(lambda: studio.get(f"/v1/jobs/{job}").json()["retries"] == 1, FAR)
    studio.result(job)
    until(lambda: "1 repeated" in row.locator(".details").inner_text(), FAR)


@pytest.mark.browser
def test_a_running_job_is_cancelled(shown: StatusPage, studio: GatewayProcess, gate_file: GateFile) -> None:
    job = studio.submit("gate", gate_file.inputs(), name="unwanted")["job_id"]
    row = shown.wait_for_status("unwanted", "running")
    row.get_by_role("button", name="Cancel unwanted").click()
    shown.wait_for_status("unwanted", "cancelled")
    assert studio.status(job) == "CANCELLED"
    assert not row.get_by_role("button", name="Cancel unwanted").is_visible()


@pytest.mark.browser
def test_queued_jobs_are_paused_prioritised_and_reordered_by_keyboard(shown: StatusPage, studio: GatewayProcess) -> None:
    ids = {name: studio.submit("double", {"x": 1}, name=name, paused=True)["job_id"] for name in ("first", "second", "third")}

    def order() -> list[str]:
        return [job["job_id"] for job in studio.get("/v1/queue").json()["jobs"]]

    shown.choose("queued")
    until(lambda: [shown.status(name) for name in ids] == ["paused"] * 3, FAR)
    shown.row("third").get_by_role("button", name="Move third up").focus()
    shown.page.keyboard.press("Enter")
    until(lambda: order() == [ids["first"], ids["third"], ids["second"]], FAR)
    names = shown.page.locator("li.job .name")
    until(lambda: names.all_inner_texts() == ["first", "third", "second"], FAR)
    shown.row("first").get_by_role("button", name="Move first down").click()
    until(lambda: names.all_inner_texts() == ["third", "first", "second"], FAR)
    priority = shown.row("second").get_by_label("Priority of second")
    priority.fill("7")
    priority.press("Enter")
    until(lambda: order()[0] == ids["second"], FAR)
    until(lambda: names.all_inner_texts()[0] == "second", FAR)
    shown.row("first").get_by_role("button", name="Run first first").click()
    until(lambda: order() == [ids["second"], ids["first"], ids["third"]], FAR)
    shown.row("second").get_by_role("button", name="Resume second").click()
    assert studio.result(ids["second"])["status"] == "COMPLETED"
    shown.row("third").get_by_role("button", name="Cancel third").click()
    shown.row("first").get_by_role("button", name="Cancel first").click()
    until(lambda: order() == [], FAR)
    shown.choose("all")
    shown.wait_for_status("second", "completed")


@pytest.mark.browser
def test_a_refused_command_says_why(shown: StatusPage, studio: GatewayProcess) -> None:
    studio.submit("double", {"x": 1}, name="alone", paused=True)
    shown.choose("queued")
    shown.wait_for_status("alone", "paused").get_by_role("button", name="Move alone up").click()
    until(lambda: "already the first" in shown.messages(), FAR)
    priority = shown.row("alone").get_by_label("Priority of alone")
    priority.fill("5000")
    priority.press("Enter")
    until(lambda: "from -1000 to 1000" in shown.messages(), FAR)
    assert priority.input_value() == "0"
    shown.row("alone").get_by_role("button", name="Cancel alone").click()
    until(lambda: "No job is queued." in shown.page.locator("#jobs-empty").inner_text(), FAR)
    shown.problems[:] = [text for text in shown.problems if "400" not in text]


@pytest.mark.browser
def test_hostile_texts_stay_texts(shown: StatusPage, studio: GatewayProcess) -> None:
    job = studio.post("/v2/images/run", {"input": {}}).json()["id"]
    assert studio.get("/v2/images/job-take/w2?gpu=none").json()["id"] == job
    studio.post(f"/v2/images/job-done/w2/{job}?gpu=none", {"error": HOSTILE})
    ended(studio, HOSTILE, graph="double", inputs={"x": 2})
    row = shown.wait_for_status(HOSTILE, "completed")
    row.get_by_role("button", name=HOSTILE, exact=True).click()
    failed = shown.page.locator("li.job[data-status=FAILED]").filter(has_text="onerror").first
    until(lambda: HOSTILE in failed.locator(".problem").inner_text(), FAR)
    failed.locator(".name").click()
    until(lambda: "onerror" in failed.locator(".details").inner_text(), FAR)
    until(lambda: HOSTILE in shown.page.locator("#events").inner_text(), FAR)
    assert shown.page.locator("main img, main script").count() == 0
    assert shown.page.title() == "Gateway"


@pytest.mark.browser
def test_the_token_is_asked_for_and_kept_for_the_tab_alone(browser: Any, studio: GatewayProcess) -> None:
    shown = StatusPage(browser.new_page(), studio).open(token=None)
    page = shown.page
    page.locator("#sign-in").wait_for()
    assert not page.locator("main").is_visible()
    assert page.get_by_label("Token", exact=True).get_attribute("type") == "password"
    shown.enter("token-that-nobody-has-made")
    until(lambda: "does not accept" in page.locator("#token-problem").inner_text(), FAR)
    assert page.evaluate("() => sessionStorage.length") == 0
    page.keyboard.press("Escape")
    assert page.locator("#sign-in").is_visible()
    shown.enter(GATEWAY_TOKEN)
    until(lambda: shown.state == "live", FAR)
    assert not page.locator("#sign-in").is_visible()
    assert page.evaluate("() => Object.values(sessionStorage)") == [GATEWAY_TOKEN]
    stored = page.evaluate("() => JSON.stringify([{...localStorage}, document.cookie, location.href, document.body.outerHTML])")
    assert GATEWAY_TOKEN not in stored
    page.reload()
    until(lambda: shown.state == "live", FAR)
    other = StatusPage(browser.new_page(), studio).open(token=None)
    other.page.locator("#sign-in").wait_for()
    other.page.close()
    page.get_by_role("button", name="Forget token").click()
    page.locator("#sign-in").wait_for()
    assert page.evaluate("() => sessionStorage.length") == 0
    page.close()


@pytest.mark.browser
def test_colors_follow_the_system_until_the_reader_chooses(shown: StatusPage) -> None:
    shown.page.emulate_media(color_scheme="light")
    light = shown.background()
    shown.page.emulate_media(color_scheme="dark")
    dark = shown.background()
    assert light != dark
    shown.page.get_by_role("button", name="Use light colors").click()
    assert shown.background() == light
    shown.page.reload()
    until(lambda: shown.state == "live", FAR)
    assert shown.background() == light
    shown.page.get_by_role("button", name="Use dark colors").click()
    assert shown.background() == dark
    shown.page.evaluate("() => localStorage.clear()")


@pytest.mark.browser
def test_the_page_continues_after_the_gateway_was_restarted(shown: StatusPage, studio: GatewayProcess) -> None:
    ended(studio, "before", graph="double", inputs={"x": 1})
    shown.wait_for_status("before", "completed")
    studio.kill()
    until(lambda: shown.state == "connecting again", FAR)
    studio.start()
    ended(studio, "during", graph="double", inputs={"x": 2})
    until(lambda: shown.state == "live", FAR)
    shown.wait_for_status("during", "completed")
    ended(studio, "after", graph="double", inputs={"x": 3})
    shown.wait_for_status("after", "completed")
    assert shown.status("before") == "completed"
    shown.problems.clear()  # the refused connections


@pytest.mark.browser
def test_a_thousand_jobs_are_shown_page_by_page(browser: Any, studio: GatewayProcess) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: studio.submit("double", {"x": number}, name=f"many {number}", paused=True), range(1000)))
    shown = StatusPage(browser.new_page(), studio).open()
    rows = shown.page.locator("li.job")
    until(lambda: rows.count() == 50, FAR)
    shown.page.get_by_role("button", name="Show older jobs").click()
    until(lambda: rows.count() == 100, FAR)
    # the browser lays out only what is seen, so the other lines have no inner text
    names = shown.page.locator("li.job .name").all_text_contents()
    assert len(set(names)) == 100
    shown.choose("queued")
    until(lambda: rows.count() == 1000, FAR)
    first = shown.page.locator("li.job .name").first.inner_text()
    shown.row(first).get_by_role("button", name=f"Cancel {first}").click()
    until(lambda: rows.count() == 999 and shown.status(first) == "", FAR)
    until(lambda: "999" in shown.page.locator("#filters").get_by_role("button", name="queued").inner_text(), FAR)
    assert not shown.problems
    shown.page.close()
    removed = studio.post("/v2/double/purge-queue").json()
    assert removed["removed"] == 999


@pytest.mark.browser
def test_every_control_has_a_name_and_the_page_fits_a_phone(shown: StatusPage, studio: GatewayProcess) -> None:
    studio.submit("double", {"x": 1}, name="a job with quite a long name that does not fit into the width of a phone", paused=True)
    shown.wait_for_status("a job with quite a long name that does not fit into the width of a phone", "paused")
    nameless = shown.page.evaluate(
        """() => [...document.querySelectorAll("button, input, a, summary, meter, progress, dialog")]
          .filter((each) => !(each.ariaLabel || each.getAttribute("aria-labelledby") || each.textContent.trim() || each.labels?.length))
          .map((each) => each.outerHTML)"""
    )
    assert not nameless
    shown.page.set_viewport_size({"width": 375, "height": 740})
    assert shown.page.evaluate("() => document.documentElement.scrollWidth") <= 375
    widths = shown.page.locator("li.job button:visible").evaluate_all("(all) => all.map((each) => each.getBoundingClientRect().right)")
    assert widths
    assert max(widths) <= 375
    shown.row("a job with quite a long name that does not fit into the width of a phone").get_by_role(
        "button", name=re.compile("^Cancel")
    ).click()
    until(lambda: "cancelled" in shown.page.locator("li.job").first.inner_text(), FAR)


@pytest.mark.browser
def test_pictures_of_the_page_in_light_and_dark(browser: Any, studio: GatewayProcess, tmp_path: Path) -> None:
    """Save the pictures of docs/gateway.md, with real jobs in all states."""
    for name, seed, size in (("Northern coast", 7, 256), ("Islands", 3, 256), ("Highlands at dawn", 21, 256)):
        ended(studio, name, graph="terrain", inputs={"configuration": {"size": size, "seed": seed}})
    ended(studio, "Measure", graph="fail", inputs={"x": 1})
    gate = GateFile(tmp_path)
    studio.submit("gate", gate.inputs(x=1), name="Slow render")
    studio.submit("double", {"x": 1}, name="Nightly batch", paused=True, priority=-5)
    shown = StatusPage(browser.new_page(), studio).open()
    shown.wait_for_status("Slow render", "running")
    until(lambda: shown.page.locator(".thumb[data-ready]").count() >= 3, FAR)
    until(lambda: "1 running" in shown.page.get_by_role("listitem", name="forge").first.inner_text(), FAR)
    # the log begins with what happens while the page is open
    ended(studio, "Quick check", graph="double", inputs={"x": 1})
    shown.wait_for_status("Quick check", "completed")
    for look in ("light", "dark"):
        shown.page.emulate_media(color_scheme=look)
        shown.picture(look)
    shown.page.set_viewport_size({"width": 390, "height": 844})
    shown.picture("phone")
    gate.open()
    shown.wait_for_status("Slow render", "completed")
    shown.page.close()
