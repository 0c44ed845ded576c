"""The cached output of a Remote Graph node is reused exactly as long as it is valid."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from samples.comfy_graphs import Caller, Prompt, graph_input, graph_output, know, load_image, node, remote_node
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.server_ext.comfy.contract_fingerprint import TIMEOUT

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")


def prompt_of(graph: str, **inputs: Any) -> Prompt:
    """A prompt of the owner that shows the brightness of a graph's output for a picture."""
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0x204060),
        "2": remote_node(graph, "b", ("1", 0), **inputs),
        "3": node("TestShow", value=("2", 0)),
    }


def shown(side: Caller, prompt: Prompt) -> str:
    """Return the text that the prompt showed."""
    entry = side.server.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return str(entry["outputs"]["3"]["text"])


def picture_graph(inner: dict[str, Any]) -> Prompt:
    """A workflow with one node between its ports."""
    return {"1": graph_input("x", "IMAGE"), "2": inner, "3": graph_output("y", ("2", 0), "IMAGE")}


def test_a_replaced_graph_is_called_again_without_a_stored_contract(a: Caller, b: Caller) -> None:
    b.deploy("fresh", picture_graph(node("ImageInvert", image=("1", 0))))
    first = shown(a, prompt_of("fresh"))
    b.deploy("fresh", picture_graph(node("ImageScaleBy", image=("1", 0), upscale_method="nearest-exact", scale_by=1.0)))
    second = shown(a, prompt_of("fresh"))
    assert first != second
    b.deploy("fresh", picture_graph(node("ImageInvert", image=("1", 0))))
    assert shown(a, prompt_of("fresh")) == first


def test_a_repeated_call_is_cached(a: Caller, b: Caller) -> None:
    b.deploy("again", picture_graph(node("ImageInvert", image=("1", 0))))
    first = shown(a, prompt_of("again"))
    late = 0
    for _ in range(9):
        began = time.monotonic()
        assert shown(a, prompt_of("again")) == first
        # on a machine that stood still for as long, the fingerprint was not there in time and the node was executed again
        late += time.monotonic() - began > TIMEOUT
    assert 1 <= len(b.jobs(graph_id="again")) <= 1 + late


def test_a_workflow_whose_nodes_may_change_is_always_called(a: Caller, b: Caller) -> None:
    def paint(value: int) -> dict[str, Any]:
        return load_image(b.server, "changing.png", np.full((8, 8, 3), value, dtype=np.uint8))

    workflow = {"1": graph_input("x", "IMAGE"), "2": paint(10), "3": graph_output("y", ("2", 0), "IMAGE")}
    b.deploy("changing", workflow)
    contract = loop_thread().run(b.client.contract("changing"))
    assert contract["reusable"] is False
    first = shown(a, prompt_of("changing"))
    paint(200)
    assert shown(a, prompt_of("changing")) != first


def test_a_graph_whose_endpoint_does_not_answer_runs_again_and_fails(a: Caller, b: Caller) -> None:
    b.deploy("away", picture_graph(node("ImageInvert", image=("1", 0))))
    shown(a, prompt_of("away"))
    file = a.server.base / "user" / "yggdrasill" / "endpoints.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(b.server.url, "http://127.0.0.1:9"), encoding="utf-8")
    try:
        began = time.monotonic()
        entry = a.server.run(prompt_of("away"))
        assert entry["status"]["status_str"] == "error"
        assert time.monotonic() - began < 25
    finally:
        know(a.server, {"a": a.server, "b": b.server})
