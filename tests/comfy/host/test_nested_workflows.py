"""Run Graph, Run Stage and Run World with parts that are ComfyUI workflows: nested locally, on an endpoint, and in a call cycle."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from samples.comfy_graphs import Caller, graph_input, graph_output, know, node, remote_node, until
from samples.level_nodes import pasted, value_of, values_of
from yggdrasill.stage import State

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]

PICTURE = node("EmptyImage", width=12, height=8, batch_size=2, color=0x2244AA)


def workflow(name: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """A ComfyUI workflow as a graph."""
    return {"kind": "comfy", "graph_id": name, "prompt": prompt}


def step(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A workflow with one node between ``x`` and ``y``."""
    return {
        "1": graph_input("x", "IMAGE"),
        "2": node(class_type, image=("1", 0), **inputs),
        "9": graph_output("y", ("2", 0), "IMAGE"),
    }


def slow(seconds: float, salt: str) -> dict[str, Any]:
    """A workflow that inverts a picture after some work."""
    return {
        "1": graph_input("x", "IMAGE"),
        "2": node("TestSlow", value=("1", 0), seconds=seconds, salt=salt),
        "3": node("ImageInvert", image=("2", 0)),
        "9": graph_output("y", ("3", 0), "IMAGE"),
    }


def chain(name: str, *graphs: dict[str, Any]) -> dict[str, Any]:
    """A pipeline in which each graph takes the output of the previous one."""
    ids = [graph["graph_id"] for graph in graphs]
    return {
        "pipeline_id": name,
        "graphs": [{"pipeline_node_id": graph["graph_id"], "graph_config": graph} for graph in graphs],
        "edges": [{"source_node": one, "source_port": "y", "target_node": other, "target_port": "x"} for one, other in pairwise(ids)],
        "exposed_inputs": [{"pipeline_node_id": ids[0], "port_name": "x", "name": "x"}],
        "exposed_outputs": [{"pipeline_node_id": ids[-1], "port_name": "y", "name": "y"}],
    }


def run(config: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """A prompt whose node 3 runs the graph or pipeline on a picture."""
    level = "pipeline" if "graphs" in config else "graph"
    return {
        "1": pasted(level, config),
        "2": PICTURE,
        "3": node("YggdrasillRunGraph", graph=("1", 0), seed=seed, loop_steps=0, preview=True, **{"ports.p0": ("2", 0)}),
    }


@pytest.fixture(autouse=True)
def _placements(a: Caller, b: Caller) -> Any:
    yield
    for side in (a, b):
        know(side.server, {"a": a.server, "b": b.server})


def placed(a: Caller, b: Caller, **graphs: str) -> None:
    """Place parts in the registry of ``a``."""
    know(a.server, {"a": a.server, "b": b.server}, graphs)


BOTH = chain(
    "both", workflow("turn", step("ImageInvert")), workflow("shrink", step("ImageScaleBy", upscale_method="bilinear", scale_by=0.5))
)


def test_two_workflows_return_the_same_bytes_for_every_placement(a: Caller, b: Caller) -> None:
    plain = {
        "1": PICTURE,
        "2": node("ImageInvert", image=("1", 0)),
        "3": node("ImageScaleBy", image=("2", 0), upscale_method="bilinear", scale_by=0.5),
    }
    expected = value_of(a, plain, ("3", 0))
    places: list[dict[str, str]] = [{}, {"shrink": "b"}, {"turn": "b"}, {"turn": "b", "shrink": "b"}, {"both": "b"}]
    for seed, graphs in enumerate(places):
        placed(a, b, **graphs)
        assert torch.equal(value_of(a, run(BOTH, seed), ("3", 0)), expected), graphs


def test_the_owners_prompt_runs_nested_workflows_and_shows_their_messages(a: Caller, b: Caller) -> None:
    placed(a, b, shrink="b")
    entry = a.server.run(run(BOTH, seed=50))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    assert len(entry["outputs"]["3"]["images"]) == 2


def test_a_nested_workflow_in_a_call_cycle_ends(a: Caller, b: Caller) -> None:
    a.deploy("level-end", step("ImageInvert"))
    b.deploy("level-middle", {**step("ImageInvert"), "2": remote_node("level-end", "a", ("1", 0))})
    ring = {**step("ImageInvert"), "2": remote_node("level-middle", "b", ("1", 0))}
    prompt = run(workflow("ring", ring))
    for seed in (1, 2):
        prompt["3"]["inputs"]["seed"] = seed
        found = values_of(a, prompt, picture=("2", 0), result=("3", 0))
        assert torch.equal(found["result"], 1.0 - found["picture"])


def test_an_interrupt_stops_a_nested_workflow(a: Caller, b: Caller) -> None:
    prompt_id = a.start(run(workflow("slow", slow(60.0, "level-interrupted"))))
    until(lambda: prompt_id in a.queue()[0])
    until(lambda: a.server.get("/queue")["queue_running"])
    a.server.post("/interrupt", {})
    entry = until(partial(a.history, prompt_id))
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_failure_in_a_nested_workflow_names_the_inner_node(a: Caller, b: Caller) -> None:
    inner = {**step("ImageInvert"), "2": node("TestFail", value=("1", 0), message="no luck today")}
    entry = a.server.run(run(chain("both", workflow("first", step("ImageInvert")), workflow("second", inner))))
    error = next(facts for kind, facts in entry["status"]["messages"] if kind == "execution_error")
    assert error["node_id"] == "3"
    assert "node 'second/2' (TestFail) failed: ValueError: no luck today" in error["exception_message"]


def test_a_stage_with_a_workflow_returns_the_same_state_for_every_placement(a: Caller, b: Caller) -> None:
    texts = dict.fromkeys(("condition", "reads", "writes", "conditions", "names"), "")
    lines = "3 -> turn.x\nturn.y -> 4"
    prompt = {
        "1": pasted("graph", workflow("turn", step("ImageInvert"))),
        "2": node("YggdrasillStage", stage_id="s", role="none", carry=True, connections=lines, **texts, **{"pipelines.p0": ("1", 0)}),
        "3": PICTURE,
        "4": node("YggdrasillState", edits="", block_3=("3", 0)),
    }
    for seed, graphs in enumerate(({}, {"turn": "b"})):
        placed(a, b, **graphs)
        run_stage = node("YggdrasillRunStage", stage=("2", 0), state=("4", 0), action="", seed=seed)
        found = values_of(a, {**prompt, "5": run_stage}, picture=("3", 0), state=("5", 0))
        assert torch.equal(State.from_dict(found["state"])[4], 1.0 - found["picture"])


def ends(side: Caller, prompt_id: str) -> None:
    """Assert that the owner's prompt succeeds."""
    entry = until(partial(side.history, prompt_id), 90.0)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]


def test_a_call_cycle_through_the_parts_of_a_node_ends(a: Caller, b: Caller) -> None:
    a.deploy("level-end", step("ImageInvert"))
    placed(a, b, around="b")
    around = workflow("extension_context", {**step("ImageInvert"), "2": remote_node("level-end", "a", ("1", 0))})
    ends(a, a.start(run(around)))
    found = values_of(a, run(chain("more", workflow("turn", step("ImageInvert")), around)), picture=("2", 0), result=("3", 0))
    assert torch.equal(found["result"], 1.0 - (1.0 - found["picture"]))


def test_mutual_parts_of_two_busy_servers_end(a: Caller, b: Caller) -> None:
    both = {"a": a.server, "b": b.server}
    know(a.server, both, {"cross-a": "b"})
    know(b.server, both, {"cross-b": "a"})
    started = [
        (side, side.start(run(chain(f"pair-{name}-{seed}", workflow("first", step("ImageInvert")), part), seed)))
        for seed in range(3)
        for side, name in ((a, "a"), (b, "b"))
        for part in [workflow(f"cross-{name}", slow(0.4, f"cross-{name}-{seed}"))]
    ]
    for side, prompt_id in started:
        ends(side, prompt_id)
