"""Compilation of a graph to the program that the executor runs, and the joining of several values at one port."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.executor.program import AggregatedInput, Call, InputBinding, Key, Loop, Program
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.node import Node
from yggdrasill.foundation.ports import Port, PortAggregation

if TYPE_CHECKING:
    from yggdrasill.foundation.graph import Graph

__all__ = ["compile_graph", "input_rule"]


def compile_graph(graph: Graph) -> Program:
    """What runs the graph as it is now."""
    rings = graph._rings()
    calls = {node_id: _call(graph, node, rings.get(node_id, ())) for node_id, node in graph.nodes.items()}
    steps: list[Call | Loop] = []
    for step in graph.plan().steps:
        if step[0] == "node":
            steps.append(calls[step[1]])
        else:
            steps.append(Loop(step[1][0], tuple(calls[node_id] for node_id in step[1][1])))
    inputs = {key: tuple((e.node_id, e.port_name) for e in entries) for key, entries in graph._edge_table.keys(output=False).items()}
    outputs = tuple((entry.key, (entry.node_id, entry.port_name)) for entry in graph._edge_table.outputs)
    ports = tuple((node_id, port) for node_id, node in graph.nodes.items() for port in node.block.ports)
    return Program(tuple(steps), inputs, outputs, ports, _mode_setter([node.block for node in graph.nodes.values()]))


def _call(graph: Graph, node: Node, ring: Collection[str]) -> Call:
    bindings, aggregated = graph._input_rules(node.node_id, ring, node.defaults)
    interface = graph.interface(node.node_id)
    return Call(
        node_id=node.node_id,
        block_type=node.block_type,
        forward=node.block.forward,
        lock=node.block.lock,
        bindings=bindings,
        aggregated=aggregated,
        outputs=tuple((name, (node.node_id, name)) for name in interface.outputs),
        required=frozenset(name for name, port in interface.inputs.items() if not port.optional),
    )


def _mode_setter(blocks: list[AbstractBaseBlock]) -> Callable[[bool], None]:
    """One call that puts every block into training or inference mode, skipping those that certainly are in it."""
    plain = [
        b for b in blocks if type(b).train is AbstractBaseBlock.train and type(b).eval is AbstractBaseBlock.eval and not b.get_sub_blocks()
    ]
    known = {id(block) for block in plain}
    others = [block for block in blocks if id(block) not in known]

    def set_mode(training: bool) -> None:
        for block in plain:
            if block.training is not training:
                block.training = training
        for block in others:
            if training:
                block.train(True)
            else:
                block.eval()

    return set_mode


Join = Callable[[Sequence[Key], Sequence[Any]], Any]


def input_rule(port: Port, sources: Sequence[Key], own: Key, default: Any) -> InputBinding | AggregatedInput:
    """What the executor does for ``port``: take the first present source, or join all of them; else the value given
    from outside under ``own``; else ``default``."""
    join = _JOINS.get(port.aggregation)
    if join is None:
        return InputBinding(port.name, (*sources, own), default)
    return AggregatedInput(port.name, tuple(sources), join, own, default)


def _concat(sources: Sequence[Key], values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, (list, str, tuple, bytes)):
        if any(type(value) is not type(first) for value in values):
            raise _cannot("concatenate", sources, values)
        return reduce(add, values)
    for module, join in (("torch", "cat"), ("numpy", "concatenate")):
        library = sys.modules.get(module)
        kind = getattr(library, "Tensor" if module == "torch" else "ndarray", None)
        if kind is not None and all(isinstance(value, kind) for value in values):
            return getattr(library, join)(tuple(values))
    raise _cannot("concatenate", sources, values)


def _sum(sources: Sequence[Key], values: Sequence[Any]) -> Any:
    try:
        return reduce(add, values)
    except TypeError:
        raise _cannot("add", sources, values) from None


def _dict(sources: Sequence[Key], values: Sequence[Any]) -> dict[str, Any]:
    return {f"{node}:{port}": value for (node, port), value in zip(sources, values, strict=True)}


def _cannot(verb: str, sources: Sequence[Key], values: Sequence[Any]) -> InvalidArgument:
    parts = ", ".join(f"{type(value).__name__} from {node}.{port}" for (node, port), value in zip(sources, values, strict=True))
    return InvalidArgument(f"cannot {verb} {parts}; the values of one port must be of one kind (lists, tuples, strings, tensors)")


_JOINS: dict[PortAggregation, Join] = {PortAggregation.CONCAT: _concat, PortAggregation.SUM: _sum, PortAggregation.DICT: _dict}
