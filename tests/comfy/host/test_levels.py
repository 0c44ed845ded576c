"""A workflow in a pipeline beside graphs of blocks: placed on a ComfyUI from outside, and served there as a whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from samples.comfy_graphs import Caller, graph_input, graph_output, know, node, token_of
from yggdrasill.errors import CheckpointMismatch, InvalidArgument, MissingFile, UnknownBlockType
from yggdrasill.foundation import Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote import EndpointRegistry, RemoteGraph
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.loop_thread import loop_thread

ADJUST: dict[str, Any] = {
    "graph_id": "adjust",
    "nodes": [{"node_id": "n", "block_type": "image/adjust", "config": {"brightness": 0.25}}],
    "exposed_inputs": [{"node_id": "n", "port_name": "image", "name": "image"}],
    "exposed_outputs": [{"node_id": "n", "port_name": "image", "name": "image"}],
}
INVERT: dict[str, Any] = {
    "kind": "comfy",
    "graph_id": "invert",
    "prompt": {"1": graph_input("image", "IMAGE"), "2": node("ImageInvert", image=("1", 0)), "3": graph_output("image", ("2", 0), "IMAGE")},
}
PIPELINE: dict[str, Any] = {
    "pipeline_id": "both",
    "graphs": [
        {"pipeline_node_id": "before", "graph_config": ADJUST},
        {"pipeline_node_id": "invert", "graph_config": INVERT},
        {"pipeline_node_id": "after", "graph_config": ADJUST},
    ],
    "edges": [
        {"source_node": "before", "source_port": "image", "target_node": "invert", "target_port": "image"},
        {"source_node": "invert", "source_port": "image", "target_node": "after", "target_port": "image"},
    ],
    "exposed_inputs": [{"pipeline_node_id": "before", "port_name": "image", "name": "image"}],
    "exposed_outputs": [{"pipeline_node_id": "after", "port_name": "image", "name": "image"}],
}


@pytest.fixture(autouse=True)
def _other_torch() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="BuildMismatch")
        yield


def expected(picture: torch.Tensor) -> torch.Tensor:
    adjust = Graph.from_config(ADJUST)
    inverted = 1.0 - adjust.run({"image": picture})["image"]
    result: torch.Tensor = adjust.run({"image": inverted})["image"]
    return result


def registry_for(side: Caller, **placements: str) -> EndpointRegistry:
    registry = EndpointRegistry()
    registry.add("a", side.server.url, token=token_of(side.server))
    for key, endpoint in placements.items():
        registry.place_key(key, endpoint)
    return registry


def test_a_registry_places_the_workflow_on_a_comfyui_and_the_rest_runs_locally(a: Caller) -> None:
    picture = torch.rand(1, 32, 24, 3)
    pipeline = Pipeline.from_config(PIPELINE, endpoints=registry_for(a, invert="a"))
    assert torch.equal(pipeline.run({"image": picture})["image"], expected(picture))
    assert pipeline.to_config()["graphs"][1]["graph_config"]["kind"] == "comfy"


def test_a_built_pipeline_is_placed_the_same_way(a: Caller) -> None:
    picture = torch.rand(1, 32, 24, 3)
    built = Pipeline.from_config(PIPELINE)
    with pytest.raises(InvalidArgument, match="runs only inside a ComfyUI"):
        built.run({"image": picture})
    assert torch.equal(registry_for(a, invert="a").place(built).run({"image": picture})["image"], expected(picture))


def test_the_whole_pipeline_is_served_by_the_comfyui(a: Caller) -> None:
    loop_thread().run(a.client.deploy("both", {"kind": "pipeline", "config": PIPELINE, "state": None}))
    served = RemoteGraph(endpoint=a.client, graph_id="both")
    for _ in range(2):
        picture = torch.rand(1, 200, 100, 3)
        assert torch.equal(served.run({"image": picture})["image"], expected(picture))


def test_what_the_comfyui_lacks_is_named_before_anything_is_sent(a: Caller) -> None:
    registry = registry_for(a, invert="a")
    lacking = {**INVERT["prompt"], "7": node("NodeOfNoPack"), "8": graph_output("more", ("7", 0))}
    with pytest.raises(UnknownBlockType, match="'NodeOfNoPack' at endpoint 'a'"):
        registry.place(ComfyGraph(lacking, "invert"))
    no_file = {**INVERT["prompt"], "7": node("VAELoader", vae_name="some\\vae.safetensors"), "8": graph_output("more", ("7", 0))}
    with pytest.raises(MissingFile, match="'a' does not have"):
        registry.place(ComfyGraph(no_file, "invert"))


def test_a_part_is_not_placed_where_a_model_file_differs(a: Caller, b: Caller) -> None:
    for side, content in ((a, b"a"), (b, b"b")):
        (side.server.base / "models" / "vae").mkdir(parents=True, exist_ok=True)
        (side.server.base / "models" / "vae" / "twin.safetensors").write_bytes(content * 1000)
    told = [loop_thread().run(side.client.model_fingerprints(["twin.safetensors", "none.safetensors"])) for side in (a, b)]
    assert [list(found) for found in told] == [["twin.safetensors"]] * 2
    assert told[0] != told[1]
    prompt = {**INVERT["prompt"], "7": node("VAELoader", vae_name="twin.safetensors"), "8": graph_output("more", ("7", 0))}
    config = copy.deepcopy(PIPELINE)
    config["pipeline_id"] = "twins"
    config["graphs"][1]["graph_config"]["prompt"] = prompt
    know(a.server, {"a": a.server, "b": b.server}, {"invert": "b"})
    try:
        with pytest.raises(CheckpointMismatch, match=r"node '7' needs 'twin.safetensors', and endpoint 'b' has another file of that name"):
            loop_thread().run(a.client.deploy("twins", {"kind": "pipeline", "config": config, "state": None}))
    finally:
        know(a.server, {"a": a.server, "b": b.server})
