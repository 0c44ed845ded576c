"""A part whose endpoint dies: the policy applies, and the error is on the node and contains no address."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from samples.comfy import Server, Servers, make_base_directory
from samples.comfy_graphs import Caller, InBackground, data_folder, know, node, until
from samples.page_view import Shown, show

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]


@pytest.fixture
def mortal(a: Caller, b: Caller, servers: Servers, request: pytest.FixtureRequest) -> Iterator[Caller]:
    """A third server, in the registry of ``a`` as ``c``, that may be killed."""
    base = make_base_directory(servers.folder / f"mortal-{request.node.name[:40]}")
    nodes = a.server.base / "custom_nodes" / "nodes_for_tests.py"
    (base / "custom_nodes" / nodes.name).write_text(nodes.read_text(encoding="utf-8"), encoding="utf-8")
    server: Server = servers.start("--cache-lru", "30", base=base)
    know(a.server, {"a": a.server, "b": b.server, "c": server})
    yield Caller(server)
    server.stop()
    know(a.server, {"a": a.server, "b": b.server})


def prompt_of(salt: str, seconds: float = 0.1) -> dict[str, Any]:
    return {
        "1": node("TestSeveral", count=3),
        "2": node("TestDouble", value=("1", 0)),
        "3": node("TestSlow", value=("2", 0), seconds=seconds, salt=salt),
        "4": node("TestShow", value=("3", 0)),
    }


def placed_at(endpoint: Any) -> dict[str, Any]:
    return {"yggdrasill": {"graphs": {"part": {"nodes": ["2", "3"], "endpoint": endpoint}}}}


def test_an_endpoint_lost_after_validation_falls_back(a: Caller, b: Caller, mortal: Caller) -> None:
    assert show(a.server, prompt_of("up"), placed_at("c")).outputs["4"] == {"text": ["0.0", "2.0", "4.0"]}
    mortal.server.kill()
    here = show(a.server, prompt_of("here"), placed_at({"replicas": ["c"], "fallback": "local"}))
    assert here.outputs["4"] == {"text": ["0.0", "2.0", "4.0"]}
    assert here.ran | here.cached == {"1", "2", "3", "4"}
    assert "part 'part' runs locally" in a.server.printed()


def test_an_endpoint_lost_after_validation_is_replaced_by_the_next_replica(a: Caller, b: Caller, mortal: Caller) -> None:
    show(a.server, prompt_of("up"), placed_at("c"))
    before = len(b.jobs(graph_id="part"))
    mortal.server.kill()
    shown = show(a.server, prompt_of("next"), placed_at({"replicas": ["c", "b"], "policy": "first"}))
    assert shown.outputs["4"] == {"text": ["0.0", "2.0", "4.0"]}
    assert len(b.jobs(graph_id="part")) == before + 1


def test_an_endpoint_that_dies_is_reported_on_an_inner_node_and_in_the_history(a: Caller, b: Caller, mortal: Caller) -> None:
    watched = InBackground(partial(show, a.server, prompt_of("dying", 120.0), placed_at("c")))
    until(lambda: mortal.jobs(graph_id="part", status="IN_PROGRESS"))
    a.server.post("/queue", {"clear": True})
    mortal.server.kill()
    shown: Shown = watched.wait(90)
    assert shown.error["node_id"] in ("2", "3")
    assert "'c'" in shown.error["exception_message"]
    assert mortal.server.url not in json.dumps([shown.messages, shown.entry])
    assert shown.entry["status"]["status_str"] == "error"


def handed_over(radius: int) -> dict[str, Any]:
    """A workflow with a picture of 3 MB that one part makes and another one blurs."""
    return {
        "1": node("EmptyImage", width=512, height=512, batch_size=1, color=0x336699),
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("ImageBlur", image=("2", 0), blur_radius=radius, sigma=1.5),
        "4": node("TestShow", value=("3", 0)),
    }


def test_a_cached_value_whose_endpoint_lost_it_is_produced_again_in_the_same_prompt(
    a: Caller, b: Caller, mortal: Caller, servers: Servers
) -> None:
    def placed(blur: str) -> dict[str, Any]:
        return {"yggdrasill": {"graphs": {"make": {"nodes": ["2"], "endpoint": "c"}, "blur": {"nodes": ["3"], "endpoint": blur}}}}

    # b does not see the value before it is lost, so that only its producer has it
    assert show(a.server, handed_over(1), placed("c")).entry["status"]["status_str"] == "success"
    made = len(mortal.jobs(graph_id="make"))
    mortal.server.kill()
    shutil.rmtree(data_folder(mortal.server) / "artifacts")
    servers.start_again(mortal.server, "--cache-lru", "30")
    again = show(a.server, handed_over(2), placed("b"))
    assert again.entry["status"]["status_str"] == "success", again.entry["status"]["messages"]
    assert "2" in again.cached, "the value was cached, so its node did not run before the value was missed"
    assert again.outputs["4"] == show(a.server, handed_over(2)).outputs["4"]
    assert len(mortal.jobs(graph_id="make")) == made + 1
    assert "its inputs from other parts are produced again" in a.server.printed()
