"""Runs a graph or pipeline for the Run Graph node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.foundation.container import ConnectedContainer
from yggdrasill.foundation.kinds import find_kind
from yggdrasill.server_ext.comfy.levels.building import build_placed, checked_level
from yggdrasill.server_ext.comfy.levels.graph_ports import inputs_by_name, outputs_in_order
from yggdrasill.server_ext.comfy.levels.node_work import NodeWork
from yggdrasill.values.handles import load_handles

__all__ = ["run_graph"]


def run_graph(work: NodeWork[Any], config: Mapping[str, Any], sockets: Mapping[str, Any], seed: int, loop_steps: int) -> dict[int, Any]:
    """Run a graph, each part where the registry places it, and return its outputs by socket. They equal those of a Python run with this seed.

    Raises:
        InvalidArgument: the linked sockets do not match the ports. Also the errors of the graph's ``run``.
    """
    kind = checked_level(config, "graph", "pipeline")
    name = find_kind(kind).id_of(config)
    graph = build_placed(config)
    inputs = inputs_by_name(graph, name, sockets)
    work.meter.begin(len(graph.children) if isinstance(graph, ConnectedContainer) else 1)

    def on_child(child_id: str, phase: str, **facts: Any) -> None:
        if phase == "after":
            work.meter.step()

    options: dict[str, Any] = {"num_loop_steps": loop_steps} if loop_steps > 0 else {}
    outputs = graph.run(inputs, seed=seed, callbacks=on_child, **options)
    return outputs_in_order(graph, load_handles(dict(outputs)))
