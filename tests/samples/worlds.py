"""A canonical world of small blocks: five stages with real state flow, tensors in block 3 and random numbers.

`canonical_world` builds it in code, `canonical_config` returns it as a config. Every block raises while its
``failures`` is above zero, so a test can stop a pass inside any stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from samples.blocks import register_samples
from yggdrasill.executor.context import current_run
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.edges import Edge
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.ports import Port, PortDirection
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage, State
from yggdrasill.values import dumps
from yggdrasill.world import World

__all__ = [
    "INITIAL_WORLD",
    "WORLD_BLOCKS",
    "bits",
    "block_of",
    "canonical_config",
    "canonical_world",
    "user_state",
    "world_registry",
]

INITIAL_WORLD = {"initial_story": "a lake under ice", "rules": ["water is slow"]}


class Step(AbstractBaseBlock):
    """A block with ports by name from the class, all inputs optional; counts its calls and fails while ``failures`` is above zero."""

    takes: ClassVar[tuple[str, ...]]
    gives: ClassVar[str]

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.calls = 0
        self.failures = 0

    def declare_ports(self) -> Iterable[Port]:
        for name in self.takes:
            yield Port(name, PortDirection.IN, optional=True)
        yield Port(self.gives, PortDirection.OUT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if self.failures > 0:
            self.failures -= 1
            raise ValueError(f"{self.block_type} failed on purpose")
        return {self.gives: self.make(inputs)}

    def make(self, inputs: dict[str, Any]) -> Any:
        """Return the one output."""
        raise NotImplementedError


class Describe(Step):
    """Philosopher: the sum of the artifact, as text."""

    block_type = "sample/describe"
    takes = ("happening", "configuration", "artifact")
    gives = "description"

    def make(self, inputs: dict[str, Any]) -> Any:
        return f"a field that weighs {float(inputs['artifact'].sum()):.9g}"


class Narrate(Step):
    """Author: what really happened, with a random word from the run's generator and the number of earlier episodes."""

    block_type = "sample/narrate"
    takes = ("happening", "configuration", "artifact", "description", "world")
    gives = "account"

    def make(self, inputs: dict[str, Any]) -> Any:
        word = current_run().derived_seed() % 1000
        before = len(inputs.get("world", {}).get("episodes", []))
        return f"{word}: {inputs['happening']}; {inputs['description']}; after {before} episodes"


class Apply(Step):
    """World update: the content with one more episode."""

    block_type = "sample/apply"
    takes = ("content", "happening", "configuration", "artifact", "description", "account")
    gives = "new_content"

    def make(self, inputs: dict[str, Any]) -> Any:
        content = inputs.get("content", {})
        episode = {name: inputs[name] for name in self.takes[1:]}
        return {**content, "episodes": [*content.get("episodes", []), episode]}


class Develop(Step):
    """Development: the next event, from the content and an optional action."""

    block_type = "sample/develop"
    takes = ("world", "action")
    gives = "happening"

    def make(self, inputs: dict[str, Any]) -> Any:
        episodes = inputs.get("world", {}).get("episodes", [])
        last = episodes[-1]["account"][:20] if episodes else inputs.get("world", {}).get("initial_story", "nothing")
        draw = current_run().derived_seed() % 1000
        return f"episode {len(episodes) + 1} after {last!r}, {inputs.get('action', 'by itself')}, {draw}"


class Configure(Step):
    """Architect: the configuration of the artifact."""

    block_type = "sample/configure"
    takes = ("happening", "world")
    gives = "configuration"

    def make(self, inputs: dict[str, Any]) -> Any:
        return {"rows": 2, "scale": 1 + len(inputs["happening"]) % 7}


class Create(Step):
    """Creator: a float32 tensor [rows, 3] of scaled noise from the run's generator."""

    block_type = "sample/create"
    takes = ("configuration",)
    gives = "artifact"

    def make(self, inputs: dict[str, Any]) -> Any:
        import torch

        configuration = inputs["configuration"]
        return torch.randn(configuration["rows"], 3, generator=current_run().generator()) * configuration["scale"]


WORLD_BLOCKS: tuple[type[Step], ...] = (Apply, Configure, Create, Describe, Develop, Narrate)

#: stage -> (condition, carry, input blocks, output blocks, pipelines), a pipeline being
#: (id, guard, block class, {port: state source}, state block it writes).
_STAGES: dict[
    str, tuple[str | None, bool, list[int], list[int], list[tuple[str, str | None, type[Step], dict[str, int | str], int | str]]]
] = {
    "philosopher": (
        "philosopher",
        True,
        [1, 2, 3],
        [4],
        [("describe", None, Describe, {"happening": 1, "configuration": 2, "artifact": 3}, 4)],
    ),
    "author": (
        "author",
        True,
        [1, 2, 3, 4],
        [5],
        [("narrate", None, Narrate, {"happening": 1, "configuration": 2, "artifact": 3, "description": 4, "world": "content"}, 5)],
    ),
    "environment": (
        None,
        False,
        [1, 2, 3, 4, 5],
        [1],
        [
            (
                "world_update",
                "world_update",
                Apply,
                {"content": "content", "happening": 1, "configuration": 2, "artifact": 3, "description": 4, "account": 5},
                "content",
            ),
            ("development_of_the_world", None, Develop, {"world": "content", "action": "action"}, 1),
        ],
    ),
    "architect": (None, True, [1], [2], [("configure", None, Configure, {"happening": 1, "world": "content"}, 2)]),
    "creator": (None, True, [2], [3], [("create", None, Create, {"configuration": 2}, 3)]),
}
#: Development reads the content that World update wrote in the same stage, if it ran.
_UPDATED = ("world_update", "new_content", "development_of_the_world", "world")


def world_registry() -> BlockRegistry:
    """Return a registry of the sample blocks and the world's blocks."""
    registry = BlockRegistry(built_ins=False)
    register_samples(registry)
    for block in WORLD_BLOCKS:
        registry.register(block.block_type, block)
    return registry


def canonical_world(*, stateful: bool = False, seed: int | None = 7, world_id: str = "tiny", by_role: bool = False) -> World:
    """The world, built in code; with ``stateful`` the Creator gives the sum of all artifacts it ever made, and with
    ``by_role`` the stages have roles and no conditions."""
    world = World(world_id, seed=seed)
    for stage_id, (condition, carry, reads, writes, pipelines) in _STAGES.items():
        stage = Stage(stage_id, role=stage_id)
        into, out_of = [], []
        for name, guard, block, sources, target in pipelines:
            pipeline = Pipeline(name)
            pipeline.add_graph(_graph(name, block, stateful and block is Create))
            for port in block.takes:
                pipeline.expose_input(name, port, port)
            pipeline.expose_output(name, block.gives, block.gives)
            stage.add_pipeline(pipeline, condition=None if by_role else guard)
            into += [(source, name, port) for port, source in sources.items()]
            out_of.append((target, name, block.gives))
        if stage_id == "environment":
            stage.add_edge(*_UPDATED)
        stage.set_state_contract(reads, writes, into, out_of, carry=carry)
        stage.set_execution_condition(None if by_role else condition)
        world.add_stage(stage)
    world.set_canonical_cycle()
    world.set_initial_world(INITIAL_WORLD)
    return world


def _graph(name: str, block: type[Step], stateful: bool) -> Graph:
    graph = Graph(name, registry=world_registry(), pool=ReusePool.off())
    graph.add_node(name, block.block_type, auto_connect=False)
    for port in block.takes:
        graph.expose_input(name, port, port)
    if stateful:
        graph.add_node("sum", "sample/accumulate", auto_connect=False)
        graph.add_edge(Edge(name, block.gives, "sum", "x"))
        graph.expose_output("sum", "total", block.gives)
    else:
        graph.expose_output(name, block.gives, block.gives)
    return graph


def canonical_config(*, seed: int | None = 7, world_id: str = "tiny") -> dict[str, Any]:
    """Return the same world as a config."""
    stages = {}
    for stage_id, (condition, carry, reads, writes, pipelines) in _STAGES.items():
        contract: dict[str, Any] = {
            "input_blocks": reads,
            "output_blocks": writes,
            "mapping_input": [
                {"block": source, "stage_node_id": name, "port": port}
                for name, _, _, sources, _ in pipelines
                for port, source in sources.items()
            ],
            "mapping_output": [{"block": target, "stage_node_id": name, "port": block.gives} for name, _, block, _, target in pipelines],
        }
        if not carry:
            contract["carry"] = False
        edge = dict(zip(("source_node", "source_port", "target_node", "target_port"), _UPDATED, strict=True))
        stages[stage_id] = {
            "schema_version": "1.0",
            "stage_id": stage_id,
            "role": stage_id,
            "pipelines": [_pipeline_entry(name, guard, block) for name, guard, block, _, _ in pipelines],
            "edges": [edge] if stage_id == "environment" else [],
            "state_contract": contract,
            **({"execution_condition": condition} if condition else {}),
        }
    return {
        "schema_version": "2.0",
        "world_id": world_id,
        "description": "",
        **({} if seed is None else {"seed": seed}),
        "cycle": list(_STAGES),
        "stages": stages,
        "state_schema": {"blocks": 5},
        "initial_world": {name: part if isinstance(part, str) else list(part) for name, part in INITIAL_WORLD.items()},
    }


def _pipeline_entry(name: str, guard: str | None, block: type[Step]) -> dict[str, Any]:
    def exposed(field: str, ports: Iterable[str]) -> list[dict[str, str]]:
        return [{field: name, "port_name": port, "name": port} for port in ports]

    graph = {
        "schema_version": "1.0",
        "graph_id": name,
        "nodes": [{"node_id": name, "block_type": block.block_type, "block_id": name, "config": {}, "trainable": True}],
        "edges": [],
        "exposed_inputs": exposed("node_id", block.takes),
        "exposed_outputs": exposed("node_id", [block.gives]),
    }
    pipeline = {
        "schema_version": "1.0",
        "pipeline_id": name,
        "graphs": [{"pipeline_node_id": name, "graph_config": graph, "trainable": True}],
        "edges": [],
        "exposed_inputs": exposed("pipeline_node_id", block.takes),
        "exposed_outputs": exposed("pipeline_node_id", [block.gives]),
    }
    entry: dict[str, Any] = {"stage_node_id": name, "pipeline_config": pipeline, **({"condition": guard} if guard else {})}
    return {**entry, "trainable": True}


def block_of(world: World, stage_id: str, pipeline_id: str | None = None) -> Any:
    """Return the sample block of a stage (of its first pipeline, unless another is named)."""
    stage = world.get_stage(stage_id)
    name = pipeline_id or next(iter(stage.pipelines))
    return stage.get_pipeline(name).get_graph(name).get_node(name).block


def user_state(*blocks: int) -> State:
    """Return a state in which a user filled these blocks."""
    import torch

    values = {1: "a storm", 2: {"rows": 2, "scale": 1}, 3: torch.arange(6.0).reshape(2, 3), 4: "grey waves", 5: "the storm broke the ice"}
    return State({number: values[number] for number in blocks})


def bits(value: Any) -> bytes:
    """Return the exact bytes of a value or state, to compare results bit for bit."""
    return dumps(value.to_dict() if isinstance(value, State) else value)
