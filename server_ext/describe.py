"""What a served runnable publishes about itself: its typed contract, and whether its calls may be repeated or reused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from yggdrasill.foundation.container import Container
from yggdrasill.foundation.graph import Graph
from yggdrasill.pipeline.pipeline import Pipeline
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.stage.stage import Stage
from yggdrasill.world.world import World

__all__ = ["contract_of", "is_stateful"]


def is_stateful(runnable: Any) -> bool:
    """Whether anything below keeps state between calls, as far as it can be known here; a world keeps its content."""
    if isinstance(runnable, World):
        return True
    blocks = runnable.blocks() if isinstance(runnable, Container) else ()
    return any(block.stateful for block in blocks) or any(getattr(leaf, "stateful", False) for leaf in _elsewhere(runnable))


def contract_of(graph_id: str, kind: str, graph_hash: str, runnable: Any) -> dict[str, Any]:
    """The contract as JSON: ports with dtypes, or a stage's and a world's own facts."""
    contract: dict[str, Any] = {
        "graph_id": graph_id,
        "kind": kind,
        "hash": graph_hash,
        "inputs": [],
        "outputs": [],
        "stage": None,
        "world": None,
    }
    if isinstance(runnable, World):
        fields = dict(runnable.state_fields)
        contract["world"] = {"world_id": runnable.world_id, "cycle": list(runnable.cycle), "state_schema": {"blocks": 5, "fields": fields}}
    else:
        contract["inputs"] = runnable.get_input_spec(include_dtype=True)
        contract["outputs"] = runnable.get_output_spec(include_dtype=True)
    if isinstance(runnable, Stage):
        contract["stage"] = _stage(runnable)
    facts = {"deterministic": _is_deterministic(runnable), "stateful": is_stateful(runnable)}
    return {**contract, **facts, "reusable": _is_reusable(runnable, **facts)}


def _is_reusable(runnable: Any, *, deterministic: bool, stateful: bool) -> bool:
    """Whether a caller that knows the result for the same inputs need not call again.

    Of a workflow that is so unless a class in it says that its nodes may have to run again; that is how ComfyUI itself reuses results.
    """
    if isinstance(runnable, ComfyGraph):
        return not runnable.changing_types
    return deterministic and not stateful


def _stage(stage: Stage) -> dict[str, Any]:
    condition = stage.execution_condition
    return {
        "role": stage.role,
        "state_contract": stage.contract.to_config(),
        "execution_condition": None if condition is None else condition.to_config(),
        "pipeline_conditions": {name: guard.to_config() for name, guard in stage.pipeline_conditions.items()},
        "inputs": stage.get_state_input_spec(),
        "outputs": stage.get_state_output_spec(),
    }


def _is_deterministic(runnable: Any) -> bool:
    if isinstance(runnable, World):
        return False
    if not isinstance(runnable, Container):
        return bool(getattr(runnable, "deterministic", False))
    return all(block.deterministic for block in runnable.blocks()) and all(
        getattr(leaf, "deterministic", False) for leaf in _elsewhere(runnable)
    )


def _elsewhere(runnable: Any) -> Iterator[Any]:
    """Children that run somewhere else."""
    for child in _children(runnable):
        if isinstance(child, Container):
            yield from _elsewhere(child)
        else:
            yield child


def _children(runnable: Any) -> list[Any]:
    if isinstance(runnable, Graph):
        return []
    if isinstance(runnable, Pipeline):
        return list(runnable.graphs.values())
    if isinstance(runnable, Stage):
        return list(runnable.pipelines.values())
    return list(runnable.stages.values()) if isinstance(runnable, World) else []
