"""Hypothesis strategies that generate runnable projects: pipelines, stages and worlds of small graphs over tensors.

They draw configs, so that one case can be built several times, saved, or placed. Graphs double, add, draw noise, run
loops, keep a sum between calls (`stateful`) or share one linear model (`SHARED`). Inputs are float32 tensors [4].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from samples.blocks import register_samples
from yggdrasill.foundation import BlockRegistry, Edge, Graph, ReusePool
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage, State
from yggdrasill.world import CANONICAL_CYCLE, World

__all__ = ["REGISTRY", "SHARED", "full_state", "pipeline_configs", "pipeline_inputs", "stage_configs", "world_configs"]

REGISTRY = BlockRegistry(built_ins=False)
register_samples(REGISTRY)

#: What the linear blocks' configs name, so that all of them are one block wherever a pool is shared.
SHARED = "memory://projects-linear"

_KINDS = ("double", "add", "noisy", "loop", "linear", "accumulate")
_NEEDS = {
    "stage": ((), (1, 2, 3)),
    "philosopher": ((1, 2, 3), (4,)),
    "author": ((1, 2, 3, 4), (5,)),
    "architect": ((1,), (2,)),
    "creator": ((2,), (3,)),
}


def graph_of_kind(kind: str, name: str) -> Graph:
    """Return a graph with input ``x`` (and ``z`` for ``add``) and output ``y``."""
    graph = Graph(name, registry=REGISTRY, pool=ReusePool.off())
    block, into, out_of = {
        "double": ("double", {"x": "x"}, "y"),
        "add": ("add", {"a": "x", "b": "z"}, "out"),
        "noisy": ("add", {"a": "x"}, "out"),
        "loop": ("add", {"a": "x"}, "out"),
        "linear": ("linear", {"x": "x"}, "y"),
        "accumulate": ("accumulate", {"x": "x"}, "total"),
    }[kind]
    config = {"linear": {"size": 4, "checkpoint_ref": SHARED}, "loop": {"offset": 0.5, "defaults": {"b": 1}}}.get(kind, {})
    graph.add_node("n", f"sample/{block}", config=config, auto_connect=False)
    for port, external in into.items():
        graph.expose_input("n", port, external)
    graph.expose_output("n", out_of, "y")
    if kind == "noisy":
        graph.add_node("noise", "sample/noise", auto_connect=False)
        graph.add_edge(Edge("noise", "noise", "n", "b"))
    if kind == "loop":
        graph.add_edge(Edge("n", "out", "n", "a"))
        graph.metadata["num_loop_steps"] = 2
    return graph


@st.composite
def pipeline_configs(
    draw: st.DrawFn, *, name: str = "pipeline", sources: Sequence[str] = ("one", "two"), kinds: Sequence[str] = _KINDS
) -> dict[str, Any]:
    """Draw a valid pipeline of 1 to 4 graphs in any order; its inputs are among ``sources`` and its first output is ``result``."""
    ids = draw(st.permutations("abcd"[: draw(st.integers(1, 4))]))
    pipeline = Pipeline(name)
    for graph_id in ids:
        pipeline.add_graph(graph_of_kind(draw(st.sampled_from(kinds)), graph_id))
    order = draw(st.permutations(ids))
    for place, graph_id in enumerate(order):
        for port in pipeline.interface(graph_id).inputs:
            source = draw(st.sampled_from([*sources, *order[:place]]))
            if source in order[:place]:
                pipeline.add_edge(source, "y", graph_id, port)
            else:
                pipeline.expose_input(graph_id, port, source)
    pipeline.expose_output(order[-1], "y", "result")
    for graph_id in order[:-1]:
        if not pipeline.get_edges_out(graph_id) or draw(st.booleans()):
            pipeline.expose_output(graph_id, "y", graph_id)
    pipeline.validate(validate_graphs=True)
    return pipeline.to_config()


def pipeline_inputs(config: dict[str, Any], scale: float = 1.0) -> dict[str, Any]:
    """Draw a tensor for every external input of a pipeline's config."""
    import torch

    names = dict.fromkeys(entry["name"] for entry in config["exposed_inputs"])
    return {name: torch.arange(4.0) * scale + number for number, name in enumerate(names)}


@st.composite
def stage_configs(draw: st.DrawFn, *, role: str | None = None, kinds: Sequence[str] = _KINDS) -> dict[str, Any]:
    """Draw a stage of 1 or 2 pipelines that reads allowed blocks and writes those of its role (without a role: 1 to 3)."""
    stage = Stage(role or "stage", role=role)
    if role == "environment":
        return draw(_environments(kinds))
    required, writes = _NEEDS[role or "stage"]
    into: list[tuple[Any, str, str]] = []
    out_of: list[tuple[Any, str, str]] = []
    for name in ("p", "q")[: draw(st.integers(1, 2))]:
        _add(draw, stage, name, required or (4, 5), kinds, into)
        out_of.append((writes[len(out_of)] if role is None else writes[0], name, "result"))
    reads = sorted({block for block, _, _ in into})
    stage.set_state_contract(reads, sorted({block for block, _, _ in out_of}), into, out_of[-1:] if role else out_of)
    stage.set_execution_condition(role if role in {"philosopher", "author"} else None)
    return stage.to_config()


@st.composite
def _environments(draw: st.DrawFn, kinds: Sequence[str]) -> dict[str, Any]:
    stage = Stage("environment", role="environment")
    into: list[tuple[Any, str, str]] = []
    _add(draw, stage, "world_update", (1, 2, 3, 4, 5), kinds, into, "world_update")
    noise = Graph("noise", registry=REGISTRY)
    noise.add_node("n", "sample/noise", auto_connect=False)
    noise.expose_output("n", "noise", "result")
    stage.add_pipeline(noise, "development_of_the_world")
    reads = sorted({block for block, _, _ in into})
    stage.set_state_contract(
        reads, [1], into, [("content", "world_update", "result"), (1, "development_of_the_world", "result")], carry=False
    )
    return stage.to_config()


def _add(
    draw: st.DrawFn,
    stage: Stage,
    name: str,
    blocks: Sequence[int],
    kinds: Sequence[str],
    into: list[tuple[Any, str, str]],
    guard: str | None = None,
) -> None:
    config = draw(pipeline_configs(name=name, sources=[f"block_{block}" for block in blocks], kinds=kinds))
    stage.add_pipeline(config, condition=guard, registry=REGISTRY, pool=ReusePool.off())
    into += [(int(external[-1]), name, external) for external in pipeline_inputs(config)]


@st.composite
def world_configs(draw: st.DrawFn, *, kinds: Sequence[str] = _KINDS) -> dict[str, Any]:
    """Draw a canonical world whose stages are all generated."""
    world = World("invented", seed=draw(st.integers(0, 99)))
    for role in CANONICAL_CYCLE:
        world.add_stage(draw(stage_configs(role=role, kinds=kinds)), registry=REGISTRY, pool=ReusePool.off())
    world.set_canonical_cycle()
    world.validate(validate_stages=True)
    return world.to_config()


def full_state(*blocks: int) -> State:
    """Return a state with a tensor in each of these blocks."""
    import torch

    return State({block: torch.arange(4.0) - block for block in blocks}, seed=3)
