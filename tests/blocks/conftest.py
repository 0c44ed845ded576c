"""Small graphs of built-in blocks, connected as in a world."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from yggdrasill.executor import enter_run
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Edge, Graph

CREATOR_EDGES = """
ground.elevation -> erosion.ground
erosion.elevation -> climate.elevation
erosion.elevation -> rivers.elevation
climate.rainfall -> rivers.rainfall
erosion.elevation -> shade.elevation
climate.temperature -> shade.temperature
climate.rainfall -> shade.rainfall
rivers.discharge -> shade.discharge
rivers.receiver -> shade.receiver
rivers.rivers -> shade.rivers
rivers.lakes -> shade.lakes
shade.image -> atlas.image
erosion.elevation -> atlas.elevation
climate.temperature -> atlas.temperature
climate.rainfall -> atlas.rainfall
climate.biomes -> atlas.biomes
rivers.discharge -> atlas.discharge
rivers.receiver -> atlas.receiver
rivers.rivers -> atlas.rivers
rivers.lakes -> atlas.lakes
"""
CREATOR_NODES = {
    "ground": "procedural/heightfield",
    "erosion": "procedural/erosion",
    "climate": "procedural/climate",
    "rivers": "procedural/rivers",
    "shade": "procedural/shade",
    "atlas": "procedural/atlas",
}


class Build(Protocol):
    """Build a built-in block."""

    def __call__(self, block_type: str, **config: Any) -> AbstractBaseBlock: ...


class Pass(Protocol):
    """Run one pass of the canonical ring; return the blocks 1 to 5 and the new content."""

    def __call__(self, content: dict[str, Any], number: int, *, action: str | None = None, seed: int = 5) -> dict[str, Any]: ...


@pytest.fixture(scope="session")
def build() -> Build:
    def build_block(block_type: str, **config: Any) -> AbstractBaseBlock:
        return BlockRegistry().build({"block_type": block_type, **config})

    return build_block


@pytest.fixture(scope="session")
def creator() -> Graph:
    graph = Graph("creator")
    for node_id, block_type in CREATOR_NODES.items():
        graph.add_node(node_id, block_type)
        graph.expose_input(node_id, "configuration", name="configuration")
    for line in CREATOR_EDGES.strip().splitlines():
        source, target = line.split(" -> ")
        graph.add_edge(Edge(*source.split("."), *target.split(".")))
    graph.expose_output("atlas", "artifacts", name="artifacts")
    for port in ("elevation",):
        graph.expose_output("erosion", port, name=port)
    for port in ("filled", "receiver", "discharge", "rivers", "lakes"):
        graph.expose_output("rivers", port, name=port)
    graph.expose_output("shade", "image", name="image")
    return graph


@pytest.fixture(scope="session")
def turn(build: Build, creator: Graph) -> Pass:
    def one_pass(content: dict[str, Any], number: int, *, action: str | None = None, seed: int = 5) -> dict[str, Any]:
        with enter_run(seed=seed, path=("world",), pass_index=number):
            opened = {"world": content} | ({"action": action} if action else {})
            happening = build("text/develop").forward(opened)["happening"]
            configuration = build("text/architect", size=64).forward({"happening": happening, "world": content})["configuration"]
            artifacts = creator.run({"configuration": configuration})["artifacts"]
            measures = build("procedural/measure").forward({"artifacts": artifacts})["measures"]
            description = build("text/describe").forward({"measures": measures, "happening": happening})["description"]
            told = {"happening": happening, "configuration": configuration, "description": description}
            account = build("text/narrate").forward({**told, "world": content})["account"]
            full = {**told, "artifacts": artifacts, "account": account}
            updated = build("text/chronicle").forward({"content": content, **full})["world"]
        return {**full, "world": updated}

    return one_pass
