"""The tab of the sidebar: endpoints, parts of the workflow and jobs, by mouse and by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.comfy_graphs import token_of
from samples.editor import Editor
from samples.served_prompts import paint
from yggdrasill.foundation.config import read_document
from yggdrasill.remote.endpoint import pairing_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def section(tab: Any, name: str) -> Any:
    return tab.locator(f"section[aria-label='{name}']")


def line(tab: Any, name: str) -> Any:
    """Return the line of one endpoint."""
    return section(tab, "Endpoints").locator("li:has(> details)", has=tab.page.get_by_text(name, exact=True))


def unfold(row: Any) -> None:
    """Show the details of an endpoint, which may already be open."""
    if not row.locator("details").first.evaluate("(details) => details.open"):
        row.locator("summary").first.click()


def test_endpoints_are_shown_with_state_and_inventory(editor: Editor, tab: Any, pair: Any) -> None:
    studio, closed = line(tab, "studio"), line(tab, "closed")
    editor.wait_until(lambda: "idle" in studio.inner_text() and "free" in studio.inner_text())
    assert pair.there.url.removeprefix("http://") in studio.inner_text()
    editor.wait_until(lambda: "does not answer" in closed.inner_text())
    unfold(studio)
    shown = studio.inner_text()
    for words in ("ComfyUI\n0.", "torch\n", "Devices"):
        assert words in shown
    studio.locator(".ygg-models summary").click()
    editor.wait_until(lambda: "tiny.ckpt" in studio.inner_text())
    studio.get_by_role("button", name="Test").click()
    editor.wait_until(lambda: any("Endpoint “studio” answers" in text for text in editor.messages()))


def test_an_endpoint_is_added_by_pairing_line_and_removed_by_keyboard(editor: Editor, tab: Any, pair: Any, registry: Path) -> None:
    keys = editor.page.keyboard
    tab.get_by_role("button", name="Add an endpoint").focus()
    keys.press("Enter")
    keys.type("what is this")
    keys.press("Enter")
    editor.wait_until(lambda: "not a pairing line" in section(tab, "Endpoints").inner_text())
    keys.press("Control+a")
    keys.type(pairing_line(pair.there.url, token_of(pair.there)))
    keys.press("Tab")
    keys.type("forge")
    keys.press("Enter")
    editor.wait_until(lambda: "forge" in read_document(registry)["endpoints"])
    editor.wait_until(lambda: "idle" in line(tab, "forge").inner_text())
    assert token_of(pair.there) not in editor.page.content()
    assert editor.page.evaluate("() => document.activeElement.ariaLabel") == "Add an endpoint"
    line(tab, "forge").locator("summary").first.focus()
    keys.press("Enter")
    line(tab, "forge").get_by_role("button", name="Remove").focus()
    keys.press("Enter")
    editor.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    editor.wait_until(lambda: "forge" not in read_document(registry)["endpoints"])
    editor.wait_until(lambda: line(tab, "forge").count() == 0)
    secrets = registry.with_name("secrets.yaml").read_text(encoding="utf-8")
    assert "forge" not in secrets


def test_an_endpoint_that_still_runs_parts_is_not_removed(editor: Editor, tab: Any, registry: Path) -> None:
    registry.write_text(registry.read_text(encoding="utf-8").replace("graphs: {}", "graphs: {Refine: studio}"), encoding="utf-8")
    unfold(line(tab, "studio"))
    line(tab, "studio").get_by_role("button", name="Remove").click()
    editor.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    editor.wait_until(lambda: any("still runs" in text for text in editor.messages()))
    assert "studio" in read_document(registry)["endpoints"]


def test_escape_closes_the_pairing_form(editor: Editor, tab: Any) -> None:
    tab.get_by_role("button", name="Add an endpoint").click()
    assert tab.get_by_role("textbox").count() == 2  # the others are folded
    editor.page.keyboard.press("Escape")
    assert tab.get_by_role("textbox").count() == 0


def test_the_servers_pairing_line_is_copied_and_not_shown(browser: Any, editor: Editor, tab: Any, pair: Any) -> None:
    browser.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.get_by_role("button", name="Copy this server's pairing line").click()
    editor.wait_until(lambda: any("pairing line was copied" in text for text in editor.messages()))
    assert editor.page.evaluate("() => navigator.clipboard.readText()") == pairing_line(pair.here.url, token_of(pair.here))
    assert token_of(pair.here) not in editor.page.content()


def test_a_part_is_placed_with_its_list(editor: Editor, tab: Any, placements: Path) -> None:
    editor.wait_until(lambda: "This workflow has no named parts yet" in section(tab, "This workflow").inner_text())
    image, inverted = editor.add("EmptyImage", 400, 100), editor.add("ImageInvert", 700, 100)
    editor.link(image, 0, inverted, "image")
    editor.page.evaluate("(id) => { app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)])).node.title = 'Refine'; }", inverted)
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    chosen = tab.get_by_label("Endpoint for Refine")
    chosen.wait_for()
    assert chosen.locator("option").all_inner_texts() == ["this server", "closed", "studio"]
    before = editor.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    chosen.select_option("studio")
    editor.wait_until(lambda: placements.exists() and '"placement": "studio"' in placements.read_text(encoding="utf-8"))
    text = placements.read_text(encoding="utf-8")
    editor.wait_until(lambda: chosen.evaluate("(list) => list.title").startswith("Placed in this workflow"))
    chosen.select_option("this server")
    editor.wait_until(lambda: '"users": {}' in placements.read_text(encoding="utf-8"))
    assert editor.page.evaluate("() => JSON.stringify(app.graph.serialize())") == before
    replicas = '"placement": {"replicas": ["studio", "closed"]}'
    placements.write_text(text.replace('"placement": "studio"', replicas), encoding="utf-8")
    tab.get_by_role("button", name="Refresh").click()
    editor.wait_until(lambda: chosen.evaluate("(list) => list.selectedOptions[0].text") == "studio | closed")


def test_an_endpoint_with_parts_of_workflows_names_them_and_is_removed_with_their_placements(
    editor: Editor, tab: Any, placements: Path, registry: Path
) -> None:
    group = "(title) => { const g = new LiteGraph.LGraphGroup(title); g.pos = [50, 50]; g.size = [300, 300]; app.graph.add(g); }"
    editor.page.evaluate(group, "Enlarge")
    editor.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    tab.get_by_label("Endpoint for Enlarge").select_option("closed")
    editor.wait_until(placements.exists)
    unfold(line(tab, "closed"))
    line(tab, "closed").get_by_role("button", name="Remove").click()
    dialog = editor.page.get_by_role("dialog")
    editor.wait_until(lambda: "Enlarge" in dialog.inner_text())
    dialog.get_by_role("button", name="Delete").click()
    editor.wait_until(lambda: "closed" not in read_document(registry)["endpoints"])
    editor.wait_until(lambda: '"users": {}' in placements.read_text(encoding="utf-8"))
    editor.wait_until(lambda: tab.get_by_label("Endpoint for Enlarge").evaluate("(list) => list.selectedOptions[0].text") == "this server")


@pytest.mark.filterwarnings("ignore:BuildMismatch:RuntimeWarning")
def test_jobs_show_progress_and_can_be_cancelled(editor: Editor, tab: Any, pair: Any) -> None:
    from samples.comfy_graphs import InBackground

    graph = pair.studio.deploy("paint slowly", paint(400))
    call = InBackground(lambda: graph.run({"prompt": "a lake"}))
    jobs = section(tab, "Jobs")
    row = jobs.locator("li", has_text="paint slowly").first
    row.get_by_role("progressbar").wait_for()
    editor.wait_until(lambda: "of 400" in row.inner_text(), 100)
    row.get_by_role("button", name="Cancel paint slowly").click()
    editor.wait_until(lambda: "ancelled" in row.inner_text())
    with pytest.raises(Exception, match="Cancel"):
        call.wait()


def test_open_details_and_focus_survive_a_refresh(editor: Editor, tab: Any) -> None:
    unfold(line(tab, "studio"))
    line(tab, "studio").locator("summary").first.focus()
    asked = len([url for url in editor.requests if "/ui/status" in url])
    editor.wait_until(lambda: len([url for url in editor.requests if "/ui/status" in url]) > asked + 1)
    assert line(tab, "studio").locator("details").first.evaluate("(details) => details.open")
    assert editor.page.evaluate("() => document.activeElement.dataset.key") == "endpoint studio"


def test_a_closed_tab_sends_no_requests(editor: Editor) -> None:
    asked = len(editor.requests)
    editor.page.wait_for_timeout(3000)
    assert [url for url in editor.requests[asked:] if "/yggdrasill/ui/" in url] == []


def test_the_settings_page_has_editor_and_server_settings(editor: Editor, pair: Any) -> None:
    editor.page.evaluate("() => { void app.extensionManager.command.execute('Comfy.ShowSettingsDialog'); }")
    dialog = editor.page.get_by_role("dialog")
    dialog.get_by_text("Yggdrasill", exact=True).first.click()
    for words in ("Show on each node which endpoint runs it", "Keep the sidebar up to date"):
        assert dialog.get_by_text(words).first.is_visible()
    policy = dialog.locator("select[aria-label='Calls from other machines']")
    editor.wait_until(lambda: policy.input_value() == "fifo")
    policy.select_option("front")
    file = pair.here.base / "user" / "yggdrasill" / "settings.yaml"
    editor.wait_until(lambda: file.exists() and read_document(file) == {"queue": "front"})
    policy.select_option("fifo")
    editor.wait_until(lambda: read_document(file) == {"queue": "fifo"})
    file.unlink()
    editor.page.keyboard.press("Escape")
