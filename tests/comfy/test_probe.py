"""What a ComfyUI lacks turns features off, and placed prompts are refused then instead of running locally."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from samples.comfy_modules import FakeServer, install_comfy, remove_hold
from yggdrasill.errors import UnsupportedVersion
from yggdrasill.remote import EndpointRegistry, comfy_graph, preflight
from yggdrasill.server_ext.comfy import attach as attach_module
from yggdrasill.server_ext.comfy.attach import attach
from yggdrasill.server_ext.comfy.compat import guard
from yggdrasill.server_ext.comfy.compat.holds import HOLDS
from yggdrasill.server_ext.comfy.compat.probe import FEATURES, Hold, calls, exists, is_called_by, is_coroutine, probe
from yggdrasill.server_ext.comfy.editor.route_guard import UI_HEADER
from yggdrasill.server_ext.comfy.extension_context import extension_context, set_extension_context
from yggdrasill.server_ext.comfy.nested_run import NestedRun
from yggdrasill.server_ext.comfy.placement.placed_call import placed_call
from yggdrasill.server_ext.comfy.placement.refusal import refuse_prompt
from yggdrasill.server_ext.comfy.ui_routes import UI_PATH
from yggdrasill.server_ext.jobs.execution import JOB_LOG

UNREMOVABLE = {"server:PromptServer.instance.app", "folder_paths:get_user_directory"}
"""Without the first no extension can add a route; without the second there is no folder for its files."""
PLACED = {
    "prompt": {"1": {"class_type": "X", "inputs": {}}, "2": {"class_type": "Y", "inputs": {}}},
    "extra_data": {"yggdrasill": {"graphs": {"part": {"nodes": ["2"], "endpoint": "forge"}}}},
}
ORDINARY = {"prompt": PLACED["prompt"]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    guard._log.forget()
    monkeypatch.setattr(attach_module, "exit_with_parent", lambda: None)
    # what `attach` sets for the whole process is restored for the tests after these
    monkeypatch.setattr(comfy_graph, "_runner", None)
    monkeypatch.setattr(preflight, "_local_comfy", None)
    level = JOB_LOG.level
    server = install_comfy(monkeypatch, tmp_path)
    data = tmp_path / "user" / "yggdrasill"
    data.mkdir(parents=True)
    (data / "endpoints.yaml").write_text("endpoints: {forge: {url: 'http://127.0.0.1:9'}}\n", encoding="utf-8")
    yield server
    set_extension_context(None)
    JOB_LOG.setLevel(level)


def comfy_post(server: FakeServer) -> Any:
    """Handle POST /prompt as ComfyUI does, with its queue."""

    async def post(request: web.Request) -> web.Response:
        posted = server.trigger_on_prompt(await request.json())
        prompt = posted["prompt"]
        execution: Any = sys.modules["execution"]
        if not hasattr(execution, "validate_prompt"):
            server.queued.append(prompt)
            return web.json_response({"prompt_id": "p"})
        good, error, _, node_errors = await execution.validate_prompt("p", prompt, None)
        if not good:
            return web.json_response({"error": error, "node_errors": node_errors}, status=400)
        server.queued.append(prompt)
        return web.json_response({"prompt_id": "p"})

    return post


@asynccontextmanager
async def running(server: FakeServer) -> AsyncIterator[TestClient[Any, Any]]:
    import asyncio

    if hasattr(server, "loop"):
        server.loop = asyncio.get_running_loop()
    attach()
    server.app.router.add_post("/prompt", comfy_post(server))
    async with TestClient(TestServer(server.app)) as client:
        yield client


def test_the_modules_for_tests_have_every_hold(server: FakeServer) -> None:
    assert [hold.problem() for hold in HOLDS if hold.problem() is not None] == []
    assert probe(HOLDS) == {}


def test_each_hold_is_listed_once_and_each_feature_has_some() -> None:
    locations = [hold.location for hold in HOLDS]
    assert len(set(locations)) == len(locations)
    assert {feature for hold in HOLDS for feature in hold.features} == set(FEATURES)


@pytest.mark.parametrize("hold", [hold for hold in HOLDS if hold.location not in UNREMOVABLE], ids=lambda hold: hold.location)
async def test_a_missing_hold_turns_its_features_off_and_nothing_else(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hold: Hold
) -> None:
    remove_hold(monkeypatch, hold.location)
    async with running(server) as client:
        off = extension_context().off
        removed = [other for other in HOLDS if other is hold or other.location.startswith(hold.location + ".")]
        assert set(off) == {feature for other in removed for feature in other.features}
        for feature, reason in off.items():
            assert hold.name in reason
            assert reason.count("is missing") == len([other for other in removed if feature in other.features][:3])
            (line,) = [record for record in caplog.messages if FEATURES[feature] in record]
            assert hold.name in line
        answer = await client.post("/prompt", json=ORDINARY)
        assert answer.status == 200
        assert server.queued == [ORDINARY["prompt"]]
        placed = await client.post("/prompt", json=PLACED)
        body = await placed.json()
        assert placed.status == 400
        if "placement" in off:
            assert hold.name in body["error"]["details"]
            assert hold.name in body["node_errors"]["2"]["errors"][0]["details"]
        else:
            assert "is not up" in body["error"]["details"]


@pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")
@pytest.mark.parametrize("location", ["execution:validate_prompt", "server:PromptServer.instance.number"])
async def test_the_routes_report_what_is_off(server: FakeServer, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    remove_hold(monkeypatch, location)
    async with running(server) as client:
        answer = await client.get(UI_PATH + "/status", headers={UI_HEADER: "1"})
        status = await answer.json()
        assert answer.status == 200, status
        assert status["here"]["off"] == dict(extension_context().off)
        assert "endpoint" in status["here"]["off"]
        token = (Path(sys.modules["folder_paths"].get_user_directory()) / "yggdrasill" / "token").read_text(encoding="utf-8").strip()
        refused = await client.get("/yggdrasill/v1/health", headers={"Authorization": f"Bearer {token}"})
        assert refused.status >= 400
        assert location.rpartition(".")[2].rpartition(":")[2] in await refused.text()
        assert (await client.get("/yggdrasill/v1/health")).status in (401, 403)


@pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")
async def test_every_route_has_a_twin_below_api(server: FakeServer) -> None:
    async with running(server) as client:
        for prefix in ("", "/api"):
            answer = await client.get(f"{prefix}{UI_PATH}/status", headers={UI_HEADER: "1"})
            assert answer.status == 200
            assert (await client.get(f"{prefix}{UI_PATH}/status")).status == 403
            assert (await client.get(f"{prefix}/yggdrasill/web/request.js")).status == 200
            assert (await client.get(f"{prefix}/yggdrasill/v1/health")).status == 401
            token = (Path(sys.modules["folder_paths"].get_user_directory()) / "yggdrasill" / "token").read_text(encoding="utf-8").strip()
            assert (await client.get(f"{prefix}/yggdrasill/v1/health", headers={"Authorization": f"Bearer {token}"})).status == 200


async def test_another_host_name_is_refused_with_the_setting_of_this_host(server: FakeServer) -> None:
    async with running(server) as client:
        answer = await client.get(UI_PATH + "/status", headers={UI_HEADER: "1", "Host": "forge.example"})
        text = (await answer.json())["error"]["message"]
        assert answer.status == 403
        assert "'forge.example' is not allowed" in text
        assert "'allow_hosts' in " in text
        assert "settings.yaml" in text
        assert "--allow-host" not in text


async def test_the_refusal_of_a_placed_prompt_names_the_part_on_its_own_nodes(server: FakeServer) -> None:
    async with running(server) as client:
        body = await (await client.post("/prompt", json=PLACED)).json()
        (entry,) = body["node_errors"]["2"]["errors"]
        assert entry["type"] == "yggdrasill_EndpointUnreachable"
        assert entry["extra_info"]["yggdrasill"] == {"kind": "EndpointUnreachable", "parts": ["part"]}
        assert entry["details"] == body["error"]["message"]


async def test_a_forgotten_level_in_a_posted_prompt_is_an_error(server: FakeServer) -> None:
    async with running(server) as client:
        posted = {**PLACED, "extra_data": {"yggdrasill": {"draw": {"nodes": ["2"], "endpoint": "forge"}}}}
        answer = await client.post("/prompt", json=posted)
        assert answer.status == 400
        assert "Unknown key 'draw' in extra_data.yggdrasill. Available: 'graphs'." in (await answer.json())["error"]["message"]
        assert server.queued == []


async def test_the_routes_of_an_editor_that_is_off_have_the_reason(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_hold(monkeypatch, "comfy_api.latest._io:build_nested_inputs")
    async with running(server) as client:
        answer = await client.get(UI_PATH + "/status", headers={UI_HEADER: "1"})
        assert answer.status >= 400
        assert "build_nested_inputs is missing" in await answer.text()


async def test_a_placement_that_cannot_be_installed_refuses_placed_prompts(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> None:
        raise TypeError("cannot set attribute")

    monkeypatch.setattr("yggdrasill.server_ext.comfy.placement.service.patch_comfyui", broken)
    async with running(server) as client:
        assert set(extension_context().off) == {"placement"}
        placed = await client.post("/prompt", json=PLACED)
        assert placed.status == 400
        assert "cannot set attribute" in (await placed.json())["error"]["details"]
        assert (await client.post("/prompt", json=ORDINARY)).status == 200
    assert len([line for line in caplog.messages if "cannot set attribute" in line]) == 1


async def test_an_endpoint_that_cannot_be_built_refuses_placed_prompts(
    server: FakeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "user" / "yggdrasill" / "settings.yaml").write_text("queue: sideways\n", encoding="utf-8")
    async with running(server) as client:
        placed = await client.post("/prompt", json=PLACED)
        assert placed.status == 400
        assert "sideways" in (await placed.json())["error"]["details"]
        assert (await client.post("/prompt", json=ORDINARY)).status == 200
        assert (await client.post("/prompt", data=b"no json")).status == 500


def test_a_body_without_placed_parts_is_not_refused() -> None:
    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {"soft": "local"})
    bodies: list[Any] = [ORDINARY, {}, {"prompt": 5}, [], {"prompt": {}}]
    for body in bodies:
        assert refuse_prompt(json.dumps(body).encode(), "it is missing", lambda: registry) is None
    assert refuse_prompt(b"\xff", "it is missing", lambda: registry) is None
    found = refuse_prompt(json.dumps(PLACED).encode(), "it is missing", lambda: registry)
    assert found is not None
    assert "Part 'part' is placed on an endpoint, but placement is off in this ComfyUI: it is missing." in found["error"]["details"]
    unknown = json.loads(json.dumps(PLACED).replace("forge", "mill"))
    assert "mill" in str(refuse_prompt(json.dumps(unknown).encode(), "it is missing", lambda: registry))


async def test_nodes_of_a_feature_that_is_off_fail_with_the_reason(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_hold(monkeypatch, "comfy_execution.utils:get_executing_context")
    remove_hold(monkeypatch, "comfy.memory_management:RAM_CACHE_HEADROOM")
    async with running(server):
        plan = json.dumps({"part": "part", "prompt": {}, "inputs": [], "outputs": [], "asks_again": False})
        with pytest.raises(UnsupportedVersion, match=r"Placement of workflow parts is off .*get_executing_context is missing"):
            placed_call(plan, {}, "1").start()
        with pytest.raises(UnsupportedVersion, match="RAM_CACHE_HEADROOM is missing"):
            NestedRun(None)  # type: ignore[arg-type]  # refused before it is read


def test_other_arguments_are_found(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    execution: Any = sys.modules["execution"]

    async def other(prompt: Any) -> None: ...

    def plain(prompt_id: Any, prompt: Any, targets: Any) -> None: ...

    plain.__module__ = other.__module__ = "execution"
    monkeypatch.setattr(execution, "validate_prompt", other)
    assert "takes other arguments, (prompt" in str(Hold("execution:validate_prompt", is_coroutine("a", "b", "c"), ()).problem())
    monkeypatch.setattr(execution, "validate_prompt", plain)
    assert "is not asynchronous" in str(Hold("execution:validate_prompt", is_coroutine("a", "b", "c"), ()).problem())
    monkeypatch.setattr(execution, "validate_prompt", 5)
    assert "is a int, not a function" in str(Hold("execution:validate_prompt", calls("a"), ()).problem())
    assert "does not call other" in str(is_called_by("other")(_of_comfyui(plain)))
    assert Hold("no_such_module:x", exists, ()).problem() == "no_such_module.x is missing"


def _of_comfyui(function: Any) -> Any:
    function.__module__ = "execution"
    return function


def test_a_reason_names_at_most_three_holds() -> None:
    reason = probe([Hold(f"no_such_module:name_{number}", exists, ("editor",)) for number in range(9)])["editor"]
    assert reason.count("is missing") == 3
    assert reason.endswith("and 6 more")
