"""Placements that belong to a workflow: how they are stored, and which prompts they apply to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from yggdrasill.errors import InvalidArgument, InvalidConfig, PayloadTooLarge
from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.partition.named_parts import GROUP, PartItem
from yggdrasill.remote.partition.placement_keys import StoredPlacement
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.placement import workflow_placements
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PostedPrompt
from yggdrasill.server_ext.comfy.placement.refusal import refuse_prompt
from yggdrasill.server_ext.comfy.placement.service import PlacementService
from yggdrasill.server_ext.comfy.placement.workflow_placements import DEFAULT_USER, WorkflowPlacements, current_user, note_users

GROUP_1, GROUP_2 = PartItem("", GROUP, "1"), PartItem("", GROUP, "2")
FORGE = StoredPlacement("forge", "Paint")
REGISTRY = EndpointRegistry({"forge": "http://127.0.0.1:9", "mill": "http://127.0.0.1:8"})


@pytest.fixture
def stored(tmp_path: Path) -> WorkflowPlacements:
    """The placements in an empty folder."""
    return WorkflowPlacements(tmp_path / "placements.json")


def workflow(workflow_id: str, title: str = "Group") -> dict[str, Any]:
    """Return a workflow with two nodes, each in a group of one title."""
    nodes = [{"id": number, "type": "X", "pos": [0, 500 * number], "size": [100, 100]} for number in (1, 2)]
    groups = [{"id": number, "title": title, "bounding": [-50, 500 * number - 100, 400, 300]} for number in (1, 2)]
    return {"id": workflow_id, "nodes": nodes, "groups": groups, "links": []}


def posted(workflow_id: str, **extra: Any) -> dict[str, Any]:
    prompt = {number: {"class_type": "X", "inputs": {}} for number in "12"}
    return {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow(workflow_id)}, **extra}}


def places(service: PlacementService, body: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the endpoints of the nodes of a posted prompt."""
    prompt = service.on_prompt(body)["prompt"]
    if not isinstance(prompt, PostedPrompt):
        return {}
    assert prompt.problem is None, prompt.problem
    return {node: placed.placement.endpoints for placed in prompt.parts for node in placed.part.nodes}


# -- which prompts they apply to ----------------------------------------------------------------------------------


def test_a_placement_applies_to_its_workflow_and_not_to_another_with_the_same_titles(stored: WorkflowPlacements) -> None:
    service = PlacementService(lambda: REGISTRY, lambda: stored)
    stored.place(DEFAULT_USER, "a", "first", {GROUP_1: FORGE})
    assert places(service, posted("a")) == {"1": ("forge",)}
    assert places(service, posted("b")) == {}
    other = posted("b")
    assert service.on_prompt(other) is other


def test_a_caller_names_the_workflow_whose_placements_apply(stored: WorkflowPlacements) -> None:
    service = PlacementService(lambda: REGISTRY, lambda: stored)
    stored.place(DEFAULT_USER, "a", "first", {GROUP_1: FORGE})
    assert places(service, posted("b", yggdrasill={"workflow": "a"})) == {"1": ("forge",)}
    without = {"prompt": posted("a")["prompt"], "extra_data": {"yggdrasill": {"workflow": "a"}}}
    problem = service.on_prompt(without)["prompt"].problem
    assert "Send the workflow" in str(problem)


def test_placements_of_endpoints_yaml_hold_for_all_workflows_and_local_overrides_them_for_one(stored: WorkflowPlacements) -> None:
    registry = EndpointRegistry({"forge": "http://127.0.0.1:9"}, {"Group": "forge"})
    service = PlacementService(lambda: registry, lambda: stored)
    stored.place(DEFAULT_USER, "a", "first", {GROUP_1: StoredPlacement("local", "Group")})
    assert places(service, posted("a")) == {"2": ("forge",)}
    assert places(service, posted("b")) == {"1": ("forge",), "2": ("forge",)}


def test_each_user_has_placements_of_their_own(stored: WorkflowPlacements) -> None:
    service = PlacementService(lambda: REGISTRY, lambda: stored)
    stored.place("ada", "a", "first", {GROUP_1: FORGE})
    for user, expected in (("ada", {"1": ("forge",)}), ("ben", {}), ("", {})):
        token = current_user.set(user)
        try:
            assert places(service, posted("a")) == expected
        finally:
            current_user.reset(token)


@pytest.mark.parametrize("several", [True, False])
async def test_the_user_of_a_request_is_known_where_comfyui_has_several(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    monkeypatch.setattr(compat, "multi_user", lambda: several)
    monkeypatch.setattr(compat, "request_user", lambda request: request.headers.get("comfy-user"))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=current_user.get() or "unknown")

    app = web.Application()
    app.router.add_get("/", answer)
    note_users(app)
    async with TestClient(TestServer(app)) as client:
        for headers, user in (({"comfy-user": "ada"}, "ada"), ({"comfy-user": "ben"}, "ben"), ({}, "unknown")):
            assert await (await client.get("/", headers=headers)).text() == (user if several else DEFAULT_USER)


def test_a_server_without_placement_refuses_a_workflow_with_stored_placements(stored: WorkflowPlacements) -> None:
    stored.place(DEFAULT_USER, "a", "first", {GROUP_1: FORGE})
    found = refuse_prompt(json.dumps(posted("a")).encode(), "it is missing", lambda: REGISTRY, stored)
    assert found is not None
    assert "Part 'Group' is placed on an endpoint" in found["error"]["details"]
    assert refuse_prompt(json.dumps(posted("b")).encode(), "it is missing", lambda: REGISTRY, stored) is None


def test_a_workflow_is_refused_if_its_placements_cannot_be_read(stored: WorkflowPlacements, tmp_path: Path) -> None:
    (tmp_path / "placements.json").write_text('{"version": 9}', encoding="utf-8")
    service = PlacementService(lambda: REGISTRY, lambda: stored)
    problem = service.on_prompt(posted("a"))["prompt"].problem
    assert "has version 9" in str(problem)
    assert "delete it to remove all of them" in str(problem)
    for body in ({"prompt": posted("a")["prompt"]}, {"prompt": posted("a")["prompt"], "extra_data": {}}):
        assert service.on_prompt(body) is body


def test_a_prompt_costs_little_more_with_many_stored_workflows(stored: WorkflowPlacements) -> None:
    stored.place(DEFAULT_USER, "a", "first", {GROUP_1: FORGE})
    service, body, times = PlacementService(lambda: REGISTRY, lambda: stored), posted("b"), []
    for _ in range(20):
        began = time.perf_counter()
        service.on_prompt(body)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.0002


# -- the file -----------------------------------------------------------------------------------------------------


def test_placements_survive_and_removed_ones_leave_nothing(stored: WorkflowPlacements, tmp_path: Path) -> None:
    replicas = {"replicas": ["forge", "mill"], "policy": "first", "fallback": "local"}
    stored.place("ada", "a", "first", {GROUP_1: FORGE, GROUP_2: StoredPlacement(replicas, "Ünïcode \ud800")})
    again = WorkflowPlacements(tmp_path / "placements.json")
    assert again.of_workflow("ada", "a")[GROUP_2].config == replicas
    assert again.of_workflow("ada", None) == again.of_workflow("ben", "a") == {}
    again.place("ada", "a", "", {GROUP_1: None, GROUP_2: None})
    assert stored.of_workflow("ada", "a") == {}
    assert json.loads((tmp_path / "placements.json").read_text(encoding="utf-8")) == {"version": 1, "users": {}}


def test_a_copy_has_the_placements_of_its_original_and_keeps_its_own(stored: WorkflowPlacements) -> None:
    stored.place("ada", "a", "first", {GROUP_1: FORGE})
    assert stored.copy("ada", "a", "b", "second")
    stored.place("ada", "a", "first", {GROUP_1: None, GROUP_2: FORGE})
    assert set(stored.of_workflow("ada", "b")) == {GROUP_1}
    assert not stored.copy("ada", "a", "b", "second")
    assert not stored.copy("ada", "unknown", "c", "third")
    assert not stored.copy("ben", "a", "c", "third")


def test_the_workflows_on_an_endpoint_are_named_and_their_placements_dropped(stored: WorkflowPlacements) -> None:
    stored.place("ada", "a", "first", {GROUP_1: FORGE})
    stored.place(
        "ben", "b", "", {GROUP_1: StoredPlacement({"replicas": ["mill", "forge"]}, "Draw"), GROUP_2: StoredPlacement("mill", "Other")}
    )
    stored.place("ben", "c", "third", {GROUP_1: StoredPlacement("local", "Draw")})
    assert [(use.user, use.name, use.parts) for use in stored.uses("forge")] == [("ada", "first", ("Paint",)), ("ben", "b", ("Draw",))]
    assert stored.uses("local") == []
    stored.drop("forge")
    assert stored.uses("forge") == []
    assert stored.of_workflow("ada", "a") == {}
    assert stored.of_workflow("ben", "b")[GROUP_1].config == {"replicas": ["mill"]}
    assert set(stored.of_workflow("ben", "c")) == {GROUP_1}


def test_the_file_is_bounded(stored: WorkflowPlacements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_placements, "MAX_WORKFLOWS", 3)
    for number in range(5):
        stored.place("ada", str(number), "", {GROUP_1: FORGE})
    assert [number for number in range(5) if stored.of_workflow("ada", str(number))] == [2, 3, 4]
    with pytest.raises(PayloadTooLarge, match="500 placements"):
        stored.place("ada", "4", "", {PartItem("", GROUP, str(number)): FORGE for number in range(501)})
    assert set(stored.of_workflow("ada", "4")) == {GROUP_1}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "users": {"ada": []}}', '{"version": 1, "users": {"a": {"b": {}}}}']
)
def test_a_file_that_is_not_valid_is_an_error_and_stays_unchanged(stored: WorkflowPlacements, tmp_path: Path, text: str) -> None:
    (tmp_path / "placements.json").write_text(text, encoding="utf-8")
    for act in (
        lambda: stored.of_workflow("ada", "a"),
        lambda: stored.place("ada", "a", "", {GROUP_1: FORGE}),
        lambda: stored.uses("forge"),
    ):
        with pytest.raises(InvalidConfig, match=r"placements of workflows in .* cannot be read"):
            act()
    assert (tmp_path / "placements.json").read_text(encoding="utf-8") == text


def test_without_a_folder_nothing_is_stored() -> None:
    stored = WorkflowPlacements(None)
    assert stored.of_workflow(DEFAULT_USER, "a") == {}
    with pytest.raises(InvalidArgument, match="no folder"):
        stored.place(DEFAULT_USER, "a", "", {GROUP_1: FORGE})
    with pytest.raises(InvalidArgument, match="a part of a workflow is"):
        stored.place(DEFAULT_USER, "a", "", {PartItem("", "node", "1"): FORGE})


PLACE_MANY = """
import sys
from pathlib import Path
from yggdrasill.remote.partition.named_parts import PartItem
from yggdrasill.remote.partition.placement_keys import StoredPlacement
from yggdrasill.server_ext.comfy.placement.workflow_placements import WorkflowPlacements
stored = WorkflowPlacements(Path(sys.argv[1]))
for number in range(20):
    stored.place(sys.argv[2], f"{sys.argv[2]}-{number}", "", {PartItem("", "subgraph", "1"): StoredPlacement("forge", "Paint")})
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    file, users = tmp_path / "placements.json", ("ada", "ben", "cleo")
    processes = [subprocess.Popen([sys.executable, "-c", PLACE_MANY, str(file), user]) for user in users]
    assert [process.wait(100) for process in processes] == [0, 0, 0]
    stored = WorkflowPlacements(file)
    for user in users:
        assert all(stored.of_workflow(user, f"{user}-{number}") for number in range(20))
    assert {path.name for path in tmp_path.iterdir()} == {"placements.json", ".placements.json.lock"}
