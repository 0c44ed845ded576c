"""One config of every level, as written by `to_config`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

Config = dict[str, Any]


def _node(node_id: str, block_type: str, **more: Any) -> Config:
    return {"node_id": node_id, "block_type": block_type, "block_id": node_id, "config": {}, "trainable": True, **more}


def _edge(source: str, target: str) -> Config:
    (source_node, source_port), (target_node, target_port) = source.split("."), target.split(".")
    return {"source_node": source_node, "source_port": source_port, "target_node": target_node, "target_port": target_port}


def _exposed(*entries: str, key: str = "node_id") -> list[Config]:
    found = []
    for entry in entries:
        end, _, name = entry.partition(" as ")
        part, port = end.split(".")
        found.append({key: part, "port_name": port, **({"name": name} if name else {})})
    return found


def _text_to_image() -> Config:
    return {
        "schema_version": "1.0",
        "graph_id": "text_to_image",
        "graph_kind": "diffusion",
        "metadata": {"num_loop_steps": 20},
        "nodes": [
            _node("tokenizer", "tokenizer/bpe"),
            _node("conditioner", "conditioner/clip", trainable=False),
            _node("backbone", "backbone/unet2d"),
            _node("solver", "solver/ddim"),
            _node("codec", "codec/vae", config={"ref": "blocks/vae.yaml"}),
        ],
        "edges": [
            _edge("tokenizer.token_ids", "conditioner.input"),
            _edge("conditioner.embedding", "backbone.condition"),
            _edge("backbone.pred", "solver.pred"),
            _edge("solver.next_latent", "backbone.latent"),
            _edge("solver.next_timestep", "backbone.timestep"),
            _edge("solver.next_latent", "solver.latent"),
            _edge("solver.next_timestep", "solver.timestep"),
            _edge("solver.next_latent", "codec.decode_latent"),
        ],
        "exposed_inputs": _exposed(
            "tokenizer.text as text",
            "backbone.latent as latent",
            "backbone.timestep as timestep",
            "solver.latent as latent",
            "solver.timestep as timestep",
        ),
        "exposed_outputs": _exposed("codec.decode_image as image"),
    }


def _chain(graph_id: str, *types: str) -> Config:
    names = [block_type.split("/")[-1] for block_type in types]
    return {
        "schema_version": "1.0",
        "graph_id": graph_id,
        "nodes": [_node(name, block_type) for name, block_type in zip(names, types, strict=True)],
        "edges": [_edge(f"{left}.out", f"{right}.in") for left, right in itertools.pairwise(names)],
        "exposed_inputs": _exposed(f"{names[0]}.in as in"),
        "exposed_outputs": _exposed(f"{names[-1]}.out as out"),
    }


def _graph_entry(node_id: str, config: Config) -> Config:
    return {"pipeline_node_id": node_id, "graph_config": config, "trainable": True}


def _pipeline(pipeline_id: str, *graphs: Config) -> Config:
    return {"schema_version": "1.0", "pipeline_id": pipeline_id, "graphs": list(graphs), "edges": []}


def _generate_and_upscale() -> Config:
    upscale = _chain("upscale", "image/resize", "codec/encode", "backbone/dit", "codec/decode")
    return {
        **_pipeline("generate_and_upscale", _graph_entry("generate", _text_to_image()), _graph_entry("upscale", upscale)),
        "edges": [_edge("generate.image", "upscale.in")],
        "exposed_inputs": _exposed("generate.text as prompt", "generate.latent as latent", key="pipeline_node_id"),
        "exposed_outputs": _exposed("upscale.out as image", "generate.image as draft", key="pipeline_node_id"),
    }


def _stage(role: str, reads: list[int], writes: list[int], *pipelines: Config, **contract: Any) -> Config:
    return {
        "schema_version": "1.0",
        "stage_id": role,
        "role": role,
        "pipelines": list(pipelines),
        "edges": [],
        "state_contract": {"input_blocks": reads, "output_blocks": writes, **contract},
    }


def _pipeline_entry(node_id: str, config: Config, **more: Any) -> Config:
    return {"stage_node_id": node_id, "pipeline_config": config, "trainable": True, **more}


def _creator() -> Config:
    terrain = _pipeline(
        "render",
        _graph_entry("terrain", _chain("terrain", "procedural/noise", "procedural/erosion", "procedural/rivers", "procedural/biomes")),
        _graph_entry("shade", _chain("shade", "procedural/relief", "image/compose")),
        {"pipeline_node_id": "polish", "endpoint_url": "http://user:secret@gpu-box:8188/yggdrasill", "trainable": True},
    )
    terrain["edges"] = [_edge("terrain.out", "shade.in"), _edge("shade.out", "polish.in")]
    post = _pipeline("frame", _graph_entry("border", _chain("border", "image/border", "image/label")))
    stage = _stage(
        "creator",
        [2],
        [3],
        _pipeline_entry("render", terrain),
        _pipeline_entry("frame", post),
        _pipeline_entry("archive", {"ref": "pipelines/archive.yaml"}, condition=[3]),
        mapping_input=[{"block": 2, "stage_node_id": "render", "port": "configuration"}],
        mapping_output=[{"block": 3, "stage_node_id": "frame", "port": "image"}],
    )
    stage["edges"] = [_edge("render.image", "frame.image"), _edge("render.image", "archive.image")]
    return stage


def _world() -> Config:
    def one(name: str, *types: str) -> Config:
        return _pipeline_entry(name, _pipeline(name, _graph_entry(types[0].split("/")[1], _chain(name, *types))))

    update = one("world_update", "procedural/chronicle", "text/append", "text/index")
    return {
        "schema_version": "2.0",
        "world_id": "canon_2.0",
        "description": "The canonical world",
        "cycle": ["philosopher", "author", "environment", "architect", "creator"],
        "stages": {
            "philosopher": _stage("philosopher", [1, 2, 3], [4], one("describe", "procedural/measure", "text/compose")),
            "author": _stage("author", [1, 2, 3, 4], [5], one("narrate", "llm/chat", "text/compose")),
            "environment": _stage(
                "environment",
                [1, 2, 3, 4, 5],
                [1],
                {**update, "condition": "world_update"},
                one("development_of_the_world", "llm/chat", "text/pick"),
            ),
            "architect": _stage("architect", [1], [2], one("configure", "procedural/configuration")),
            "creator": _creator(),
        },
        "state_schema": {"blocks": 5, "fields": ["glossary", "style"]},
    }


@pytest.fixture
def graph() -> Config:
    return _text_to_image()


@pytest.fixture
def pipeline() -> Config:
    return _generate_and_upscale()


@pytest.fixture
def stage() -> Config:
    return _creator()


@pytest.fixture
def world() -> Config:
    return _world()


@pytest.fixture(params=["graph", "pipeline", "stage", "world"])
def config(request: pytest.FixtureRequest) -> Config:
    found: Config = request.getfixturevalue(request.param)
    return found
