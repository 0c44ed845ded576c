"""The contract of a deployment: typed inputs and outputs, and whether its results are deterministic and reusable."""

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
    """Return whether the runnable keeps state between calls. Worlds do; remote children count by their contracts."""
    if isinstance(runnable, World):
        return True
    blocks = runnable.blocks() if isinstance(runnable, Container) else ()
    return any(block.stateful for block in blocks) or any(getattr(leaf, "stateful", False) for leaf in _remote_children(runnable))


def contract_of(graph_id: str, kind: str, graph_hash: str, runnable: Any) -> dict[str, Any]:
    """Return the contract as JSON: ports with dtypes, and the entries for stages and worlds."""
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
    properties = {"deterministic": _is_deterministic(runnable), "stateful": is_stateful(runnable)}
    return {**contract, **properties, "reusable": _is_reusable(runnable, **properties)}


def _is_reusable(runnable: Any, *, deterministic: bool, stateful: bool) -> bool:
    """Return whether a caller may reuse the result of an earlier call with equal inputs.

    A workflow is reusable unless one of its node classes may have to run again (`fingerprint_inputs`), as in ComfyUI's cache.
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
        getattr(leaf, "deterministic", False) for leaf in _remote_children(runnable)
    )


def _remote_children(runnable: Any) -> Iterator[Any]:
    """Yield the children that are not containers: they run on other endpoints."""
    for child in _children(runnable):
        if isinstance(child, Container):
            yield from _remote_children(child)
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
