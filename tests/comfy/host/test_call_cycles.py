"""Servers that call each other in a cycle, and mutually while both are busy: every call returns, with the same bytes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from samples.comfy_graphs import Caller, InBackground, give, graph_input, graph_output, know, node, remote_node, until
from samples.level_nodes import pasted
from yggdrasill.errors import YggdrasillError

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.conformance]


def through(graph: str, endpoint: str) -> dict[str, Any]:
    """A workflow that calls ``graph`` at ``endpoint`` and inverts its output."""
    return {
        "1": graph_input("x", "IMAGE"),
        "2": remote_node(graph, endpoint, ("1", 0)),
        "3": node("ImageInvert", image=("2", 0)),
        "9": graph_output("y", ("3", 0), "IMAGE"),
    }


INVERT = {"1": graph_input("x", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "9": graph_output("y", ("2", 0), "IMAGE")}


def slow_invert(seconds: float, salt: str) -> dict[str, Any]:
    """The same, after some work."""
    return {
        **INVERT,
        "2": node("TestSlow", value=("1", 0), seconds=seconds, salt=salt),
        "3": node("ImageInvert", image=("2", 0)),
        "9": graph_output("y", ("3", 0)),
    }


def test_a_call_cycle_returns_the_right_bytes(a: Caller, b: Caller) -> None:
    a.deploy("ring-end", INVERT)
    b.deploy("ring-middle", through("ring-end", "a"))
    ring = a.deploy("ring-start", through("ring-middle", "b"))
    picture = torch.rand(1, 16, 12, 3)
    inverted = 1.0 - (1.0 - (1.0 - picture))
    for _ in range(3):
        assert torch.equal(ring.run({"x": picture})["y"], inverted)
        picture = torch.rand(1, 16, 12, 3)
        inverted = 1.0 - (1.0 - (1.0 - picture))


def test_mutual_calls_of_two_busy_servers_both_end(a: Caller, b: Caller) -> None:
    a.deploy("cross-leaf-a", slow_invert(0.3, "cross-a"))
    b.deploy("cross-leaf-b", slow_invert(0.3, "cross-b"))
    from_a = a.deploy("cross-a", through("cross-leaf-b", "b"))
    from_b = b.deploy("cross-b", through("cross-leaf-a", "a"))
    pictures = [torch.rand(1, 8, 8, 3) for _ in range(8)]
    calls = [InBackground(partial(give, side, picture)) for picture in pictures for side in (from_a, from_b)]
    for number, call in enumerate(calls):
        picture = pictures[number // 2]
        assert torch.equal(call.wait(), 1.0 - (1.0 - picture))


def test_mutual_calls_from_the_owners_prompts_both_end(a: Caller, b: Caller) -> None:
    a.deploy("owner-leaf-a", slow_invert(0.5, "owner-a"))
    b.deploy("owner-leaf-b", slow_invert(0.5, "owner-b"))

    def prompt(graph: str, endpoint: str, color: int) -> dict[str, Any]:
        return {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=color),
            "2": remote_node(graph, endpoint, ("1", 0)),
            "3": node("PreviewImage", images=("2", 0)),
        }

    started = [
        (side, side.start(prompt(graph, name, color)))
        for color in range(4)
        for side, graph, name in ((a, "owner-leaf-b", "b"), (b, "owner-leaf-a", "a"))
    ]
    for side, prompt_id in started:
        entry = until(partial(side.history, prompt_id), 60.0)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]


def test_a_waiting_run_graph_node_executes_a_reentrant_run(a: Caller, b: Caller) -> None:
    both = {"a": a.server, "b": b.server}
    know(a.server, both, {"placed-here": "a"})
    try:
        prompt_id = a.start(
            {
                "1": pasted("graph", {"kind": "comfy", "graph_id": "placed-here", "prompt": INVERT}),
                "2": node("EmptyImage", width=8, height=8, batch_size=1, color=9),
                "3": node("YggdrasillRunGraph", graph=("1", 0), seed=0, loop_steps=0, preview=False, **{"ports.p0": ("2", 0)}),
                "4": node("PreviewImage", images=("3", 0)),
            }
        )
        entry = until(partial(a.history, prompt_id), 30.0)
    finally:
        know(a.server, both)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1][1]["exception_message"]
    assert any("placed-here" in job["graph_id"] for job in a.jobs())


def test_an_endless_call_cycle_ends_with_an_error(a: Caller, b: Caller) -> None:
    b.deploy("endless-b", through("endless-a", "a"))
    endless = a.deploy("endless-a", through("endless-b", "b"))
    call = InBackground(lambda: endless.run({"x": torch.rand(1, 8, 8, 3)}))
    with pytest.raises(YggdrasillError, match="cycle"):
        call.wait(60)


def test_a_reentrant_run_is_cancelled_alone(a: Caller, b: Caller) -> None:
    a.deploy("slow-end", slow_invert(60.0, "nested"))
    b.deploy("slow-middle", through("slow-end", "a"))
    prompt_id = a.start(
        {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=7),
            "2": remote_node("slow-middle", "b", ("1", 0)),
            "3": node("PreviewImage", images=("2", 0)),
        }
    )
    job = until(lambda: a.jobs(graph_id="slow-end", status="IN_PROGRESS"))[0]
    until(lambda: [data for kind, data in a.live_events(job["job_id"]) if kind == "progress"])
    from yggdrasill.remote.loop_thread import loop_thread

    loop_thread().run(a.client.cancel(job["job_id"]))
    until(lambda: a.jobs(graph_id="slow-end")[0]["status"] == "CANCELLED")
    entry = until(lambda: a.history(prompt_id))
    assert entry["status"]["messages"][-1][0] == "execution_error"
    assert "Cancelled" in entry["status"]["messages"][-1][1]["exception_message"]


def test_the_owners_interrupt_reaches_the_prompt_around_a_reentrant_run(a: Caller, b: Caller) -> None:
    a.deploy("slow-end", slow_invert(60.0, "interrupted"))
    b.deploy("slow-middle", through("slow-end", "a"))
    prompt_id = a.start(
        {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=8),
            "2": remote_node("slow-middle", "b", ("1", 0)),
            "3": node("PreviewImage", images=("2", 0)),
        }
    )
    job = until(lambda: a.jobs(graph_id="slow-end", status="IN_PROGRESS"))[0]
    until(lambda: [data for kind, data in a.live_events(job["job_id"]) if kind == "progress"])
    a.server.post("/interrupt", {})
    entry = until(lambda: a.history(prompt_id))
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    until(lambda: a.jobs(graph_id="slow-end")[0]["status"] == "CANCELLED")
    until(lambda: b.jobs(graph_id="slow-middle")[0]["status"] in ("CANCELLED", "FAILED"))
