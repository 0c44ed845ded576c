"""A ComfyUI workflow as a graph, outside ComfyUI: its contract, where it may be used, and why it does not run in this process."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from yggdrasill.errors import InvalidArgument, InvalidConfig, InvalidEdge, MissingInput, UnknownName
from yggdrasill.executor.context import RunContext
from yggdrasill.foundation.contract import Runnable
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote.comfy_graph import ComfyGraph, run_prompts_with
from yggdrasill.remote.comfy_ports import PortList, port_value, port_values
from yggdrasill.values import dumps, loads

PROMPT: dict[str, Any] = {
    "1": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "picture", "type": "IMAGE"}},
    "2": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "strength", "type": "FLOAT", "default": 0.5}},
    "3": {"class_type": "ImageBlend", "inputs": {"image1": ["1", 0], "image2": ["1", 0], "blend_factor": ["2", 0], "blend_mode": "normal"}},
    "4": {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "blended", "type": "IMAGE", "value": ["3", 0]}},
}
CONFIG = {"kind": "comfy", "graph_id": "blend", "prompt": PROMPT}


@pytest.fixture
def graph() -> ComfyGraph:
    return ComfyGraph.from_config(CONFIG)


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    prompt = copy.deepcopy(PROMPT)
    prompt[node]["inputs"].update(inputs)
    return prompt


def test_it_is_a_graph_to_the_levels(graph: ComfyGraph) -> None:
    assert isinstance(graph, Runnable)
    assert graph.to_config() == CONFIG
    assert ComfyGraph.from_config(graph.to_config()).to_config() == CONFIG


def test_its_ports_are_its_graph_input_and_output_nodes(graph: ComfyGraph) -> None:
    assert graph.get_input_spec() == [{"name": "picture"}, {"name": "strength"}]
    assert graph.get_input_spec(include_dtype=True) == [
        {"name": "picture", "dtype": "image", "comfy_type": "IMAGE", "optional": False},
        {"name": "strength", "dtype": "comfy/FLOAT", "comfy_type": "FLOAT", "optional": True},
    ]
    assert graph.get_output_spec(include_dtype=True) == [{"name": "blended", "dtype": "image", "comfy_type": "IMAGE", "optional": False}]


def test_ports_are_in_the_order_that_their_nodes_are_numbered_in() -> None:
    def named(name: str, **more: Any) -> dict[str, Any]:
        return {"class_type": "YggdrasillGraphInput", "inputs": {"name": name, "type": "IMAGE"}, **more}

    prompt = {
        "1": named("last"),
        "2": named("second", _meta={"order": 4, "title": "x"}),
        "3": named("first", _meta={"order": 0}),
        "4": named("after all", _meta={"order": "0"}),
        "9": {"class_type": "YggdrasillGraphOutput", "inputs": {"name": "y", "value": ["1", 0]}},
    }
    assert list(ComfyGraph(prompt).inputs) == ["first", "second", "last", "after all"]


def test_two_inputs_of_one_name_are_one_port() -> None:
    prompt = {**PROMPT, "9": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "picture", "type": "*"}}}
    graph = ComfyGraph(prompt)
    assert graph.inputs["picture"].nodes == ("1", "9")
    assert graph.inputs["picture"].type == "IMAGE"


@pytest.mark.parametrize(
    "prompt, said",
    [
        ({}, "a prompt must be a mapping"),
        ([], "a prompt must be a mapping"),
        ({"nodes": [], "links": []}, r"Export \(API\)"),
        ({"1": {"inputs": {}}}, "node '1' needs a class_type"),
        ({"1": {"class_type": "A", "inputs": {"x": ["7", 0]}}}, "linked to node '7', which does not exist"),
        ({"1": {"class_type": "A", "inputs": {"x": {1}}}}, "consist of JSON values"),
        (changed("1", name=" "), "node '1'.*needs a name"),
        (changed("1", type=["a"]), "node '1'.*needs a name, and a type"),
        ({**PROMPT, "5": PROMPT["4"]}, "two outputs named 'blended', at nodes 4, 5"),
        ({**PROMPT, "5": {"class_type": "YggdrasillGraphInput", "inputs": {"name": "picture", "type": "MASK"}}}, "types.*'IMAGE', 'MASK'"),
    ],
)
def test_an_invalid_prompt_is_refused_with_its_location(prompt: Any, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        ComfyGraph(prompt)


def test_a_config_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="kind: comfy"):
        ComfyGraph.from_config({"prompt": PROMPT})
    with pytest.raises(InvalidConfig, match="color"):
        ComfyGraph.from_config({**CONFIG, "color": 1})


def test_running_it_outside_comfyui_says_where_it_can_run(graph: ComfyGraph) -> None:
    with pytest.raises(InvalidArgument, match=r"runs only inside a ComfyUI.*endpoints.yaml"):
        graph.run({"picture": 1})


def test_inputs_are_checked_before_anything_runs(graph: ComfyGraph) -> None:
    with pytest.raises(MissingInput, match="no value for 'picture'"):
        graph.run({})
    with pytest.raises(UnknownName, match=r"Unknown input 'pictur'.*Did you mean 'picture'"):
        graph.run({"pictur": 1})
    with pytest.raises(InvalidArgument, match="train"):
        graph.run({"picture": 1}, training=True)


def test_a_dry_run_needs_no_comfyui(graph: ComfyGraph) -> None:
    assert graph.run({"picture": 1}, dry_run=True) == {"blended": None}


def pipeline_config(source_port: str) -> dict[str, Any]:
    source = {
        "graph_id": "source",
        "nodes": [{"node_id": "n", "block_type": "codec/identity"}],
        "exposed_inputs": [{"node_id": "n", "port_name": "encode_image", "name": "in"}],
        "exposed_outputs": [
            {"node_id": "n", "port_name": "decode_image", "name": "image"},
            {"node_id": "n", "port_name": "encode_latent", "name": "latent"},
        ],
    }
    return {
        "pipeline_id": "p",
        "graphs": [{"pipeline_node_id": "source", "graph_config": source}, {"pipeline_node_id": "blend", "graph_config": CONFIG}],
        "edges": [{"source_node": "source", "source_port": source_port, "target_node": "blend", "target_port": "picture"}],
        "exposed_outputs": [{"pipeline_node_id": "blend", "port_name": "blended", "name": "out"}],
    }


def test_it_runs_in_a_pipeline_beside_graphs_of_blocks() -> None:
    pipeline = Pipeline.from_config(pipeline_config("image"))
    assert isinstance(pipeline.get_graph("blend"), ComfyGraph)
    again = Pipeline.from_config(pipeline.to_config())
    assert again.to_config() == pipeline.to_config()
    with pytest.raises(InvalidEdge, match=r"source.latent -> blend.picture"):
        Pipeline.from_config(pipeline_config("latent"))


class Echo:
    """A runner that returns its input."""

    def run_prompt(
        self, graph: ComfyGraph, inputs: Mapping[str, Any], context: RunContext, preview_method: str | None = None
    ) -> dict[str, Any]:
        return {"blended": inputs["picture"]}

    def changing(self, node_types: Sequence[str]) -> list[str]:
        return [name for name in node_types if name == "LoadImage"]


def test_a_runner_gets_its_inputs_and_hooks_see_one_node(graph: ComfyGraph) -> None:
    seen: list[tuple[str, str]] = []
    run_prompts_with(Echo())
    try:
        outputs = graph.run({"picture": 3}, callbacks=lambda node, phase, **_: seen.append((node, phase)))
    finally:
        run_prompts_with(None)
    assert outputs == {"blended": 3}
    assert seen == [("blend", "before"), ("blend", "after")]


@pytest.mark.parametrize("values", [[], [1], [1, 2], [[1, 2]], [(1,), None]])
def test_the_values_of_a_port_survive_the_transfer(values: list[Any]) -> None:
    assert port_values(loads(dumps(port_value(values)))) == values


def test_a_single_list_is_not_several_values() -> None:
    assert port_value([[1, 2]]) == [1, 2]
    assert port_value([1, 2]) == PortList([1, 2])
    assert PortList([1]) != [1]
