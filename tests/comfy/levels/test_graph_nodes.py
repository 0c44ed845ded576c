"""Graphs and pipelines composed with nodes in a real ComfyUI: configs and results equal those of Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from samples.comfy_graphs import Caller, node
from samples.level_nodes import add_block, error_of, pasted, value_of, values_of
from yggdrasill.foundation import Edge, Graph
from yggdrasill.foundation.templates import render_template
from yggdrasill.pipeline import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

BUILT: dict[str, Any] = {
    "1": add_block("image/adjust", "light", graph_id="brighter", brightness=0.25),
    "2": add_block("image/resize", "", ("1", 0), scale="2", method="nearest"),
    "3": node(
        "YggdrasillConnect", graph=("2", 0), connections="image -> light.image\nlight.adjusted -> image_resize_1.image", open_rest=True
    ),
}
PICTURE = {"4": node("EmptyImage", width=12, height=8, batch_size=2, color=0x2244AA)}


def brighter() -> Graph:
    graph = Graph("brighter")
    graph.add_node("light", "image/adjust", config={"brightness": 0.25})
    graph.add_node("image/resize", config={"scale": 2, "method": "nearest"})
    graph.add_edge(Edge("light", "adjusted", "image_resize_1", "image"))
    graph.expose_input("light", "image", "image")
    graph.expose_output("image_resize_1", "resized", "resized")
    return graph


def two() -> Pipeline:
    pipeline = Pipeline("both")
    pipeline.add_graph(brighter())
    pipeline.add_graph(Graph.from_template("upscale", scale=1.5))
    pipeline.add_edge("brighter", "resized", "upscale", "image")
    pipeline.expose_input("brighter", "image", "image")
    pipeline.expose_output("upscale", "image", "image")
    return pipeline


def run_node(graph: tuple[str, int], *ports: tuple[str, int], seed: int = 5) -> dict[str, Any]:
    links = {f"ports.p{index}": link for index, link in enumerate(ports)}
    return node("YggdrasillRunGraph", graph=graph, seed=seed, loop_steps=0, preview=True, **links)


def pipeline_node(*graphs: tuple[str, int], **settings: Any) -> dict[str, Any]:
    links = {f"graphs.g{index}": link for index, link in enumerate(graphs)}
    values = {"pipeline_id": "both", "connections": "", "names": "", "open_rest": True, **settings}
    return node("YggdrasillPipeline", **values, **links)


UPSCALE = node("YggdrasillLoadGraph", source="template: upscale", **{"source.scale": 1.5})


def test_a_graph_composed_with_nodes_has_the_same_config_as_in_python(comfy: Caller) -> None:
    found = values_of(comfy, BUILT, graph=("3", 0), name=("2", 1))
    assert found["graph"] == brighter().to_config()
    assert found["name"] == "image_resize_1"


def test_a_graph_created_in_python_can_be_extended_with_nodes(comfy: Caller) -> None:
    (comfy.server.base / "user" / "yggdrasill" / "configs").mkdir(exist_ok=True)
    brighter().save_config(comfy.server.base / "user" / "yggdrasill" / "configs" / "brighter.yaml")
    prompt = {
        "1": node("YggdrasillLoadGraph", source="file", **{"source.name": "brighter.yaml"}),
        "2": pasted("graph", brighter().to_config()),
        "3": add_block("image/adjust", "again", ("2", 0), gamma=2.0),
    }
    found = values_of(comfy, prompt, file=("1", 0), text=("2", 0), more=("3", 0))
    assert found["file"] == found["text"] == brighter().to_config()
    more = brighter()
    more.add_node("again", "image/adjust", config={"gamma": 2.0})
    assert found["more"] == more.to_config()


def test_a_pipeline_connected_by_name_or_by_lines_equals_that_of_python(comfy: Caller) -> None:
    lines = "image -> brighter.image\nbrighter.resized -> upscale.image\nupscale.image -> image"
    prompt = {**BUILT, "5": UPSCALE, "6": pipeline_node(("3", 0), ("5", 0)), "7": pipeline_node(("3", 0), ("5", 0), connections=lines)}
    prompt["8"] = pasted("pipeline", two().to_config())
    found = values_of(comfy, prompt, joined=("6", 0), lines=("7", 0), loaded=("8", 0))
    assert found["joined"] == found["lines"] == found["loaded"] == two().to_config()


def test_a_run_returns_the_bytes_of_python_and_shows_the_picture(comfy: Caller) -> None:
    prompt = {**BUILT, **PICTURE, "5": run_node(("3", 0), ("4", 0))}
    found = values_of(comfy, prompt, picture=("4", 0), result=("5", 0))
    assert torch.equal(found["result"], brighter().run({"image": found["picture"]})["resized"])
    entry = comfy.server.run(prompt)
    assert len(entry["outputs"]["5"]["images"]) == 2


def test_parts_on_an_endpoint_return_the_same_bytes(comfy: Caller, place: Callable[..., None]) -> None:
    prompt = {**BUILT, **PICTURE, "5": UPSCALE, "6": pipeline_node(("3", 0), ("5", 0)), "7": run_node(("6", 0), ("4", 0))}
    here = values_of(comfy, prompt, picture=("4", 0), result=("7", 0))
    expected = two().run({"image": here["picture"]}, seed=5)["image"]
    assert torch.equal(here["result"], expected)
    for number, places in enumerate(({"upscale": "forge"}, {"brighter": "forge", "upscale": "forge"}, {"both": "forge"})):
        place(**places)
        again = {**prompt, "7": run_node(("6", 0), ("4", 0), seed=6 + number)}
        assert torch.equal(value_of(comfy, again, ("7", 0)), expected)


def test_random_numbers_equal_those_of_python(comfy: Caller) -> None:
    config = render_template("graph", "architect", {})
    prompt = {
        "1": pasted("graph", config),
        "2": node("PrimitiveStringMultiline", value="A storm over the islands"),
        "3": run_node(("1", 0), ("2", 0), seed=77),
    }
    expected = Graph.from_config(config).run({"happening": "A storm over the islands"}, seed=77)["configuration"]
    assert value_of(comfy, prompt, ("3", 0)) == expected


def test_a_graph_linked_to_a_state_input_is_refused_by_type(comfy: Caller) -> None:
    refused = comfy.refused({**PICTURE, "5": run_node(("4", 0)), "6": node("PreviewAny", source=("5", 0))})
    assert "received_type(IMAGE)" in json.dumps(refused["node_errors"]["5"])


@pytest.mark.parametrize(
    "bad, said",
    [
        (node("YggdrasillLoadGraph", source="template: removed"), "Unknown graph template 'removed'. Available: 'architect'"),
        (add_block("image/adjusted"), "Unknown block type 'image/adjusted'. Available: 'image/adjust'"),
        (pasted("graph", {"schema_version": "2.0", "nodes": []}), "newer than '1.0', the newest this version reads; update yggdrasill"),
        (pasted("graph", "nodes: ["), "the file must hold YAML"),
        (pasted("graph", {"stages": {}, "cycle": []}), "Expected the config of one of 'graph', got the config of a world"),
        (pasted("graph", {"nodes": [{"node_id": "a", "block_type": "oil/painting"}]}), "Unknown block type 'oil/painting'"),
        (
            pasted("graph", {"nodes": [{"node_id": "a", "block_type": "image/adjust", "config": {"checkpoint_path": "/etc/passwd"}}]}),
            "not in a folder that this host allows",
        ),
        (node("YggdrasillLoadGraph", source="file", **{"source.name": "../endpoints.yaml"}), "is outside the folders"),
        (node("YggdrasillLoadGraph", source="file", **{"source.name": "nowhere.yaml"}), "File 'nowhere.yaml' was not found in"),
        (add_block("image/adjust", gamma=99.0), "bigger than max"),
        (pipeline_node(), "Link at least one graph"),
    ],
)
def test_errors_are_reported_on_the_node(comfy: Caller, bad: dict[str, Any], said: str) -> None:
    if said == "bigger than max":
        assert said in json.dumps(comfy.refused({"1": bad, "2": node("PreviewAny", source=("1", 0))})["node_errors"]["1"])
        return
    error = error_of(comfy, {"1": bad})
    assert error["node_id"] == "1"
    assert said in error["exception_message"]


@pytest.mark.parametrize(
    "lines, said",
    [
        ("light.adjusted", "is not a connection. Write one per line"),
        ("light.adjusted -> dark.image", "Unknown node 'dark'. Available: 'image_resize_1', 'light'"),
        ("light.shine -> image_resize_1.image", "Unknown output 'shine'. Available: 'adjusted'"),
        ("a -> b", "does not name a node"),
    ],
)
def test_an_invalid_connection_line_is_named_in_the_error(comfy: Caller, lines: str, said: str) -> None:
    error = error_of(comfy, {**BUILT, "3": node("YggdrasillConnect", graph=("2", 0), connections=lines, open_rest=True)})
    assert error["node_id"] == "3"
    assert said in error["exception_message"]


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_graph_with_more_ports_than_sockets_is_refused_with_the_limit(comfy: Caller, side: str) -> None:
    graph = Graph("wide")
    for number in range(33):
        block = graph.add_node("image/adjust", node_id=f"n{number}")
        graph.expose_input(block, "image", None if side == "inputs" else "image")
        graph.expose_output(block, "adjusted", f"picture {number}")
    error = error_of(comfy, {**PICTURE, "5": pasted("graph", graph.to_config()), "6": run_node(("5", 0), ("4", 0))})
    assert error["node_id"] == "6"
    said = f"'wide' has 33 {side}, but Run Graph supports at most 32. Expose fewer ports, or split the graph"
    assert said in error["exception_message"]


def test_missing_inputs_and_surplus_sockets_are_named(comfy: Caller) -> None:
    assert "is missing the inputs 'image'" in error_of(comfy, {**BUILT, "4": run_node(("3", 0))})["exception_message"]
    error = error_of(comfy, {**BUILT, **PICTURE, "5": run_node(("3", 0), ("4", 0), ("4", 0))})
    assert "Socket 'p1' is linked, but 'brighter' has 1 inputs: 'image'. Unlink the socket." in error["exception_message"]
    error = error_of(comfy, {**BUILT, "4": node("PrimitiveString", value="x"), "5": run_node(("3", 0), ("4", 0))})
    assert "requires an IMAGE [batch, height, width, channels], got str" in error["exception_message"]
