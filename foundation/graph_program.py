"""A graph as the executor runs it: a call for each node with the rules of its inputs, and a loop for each cycle."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from yggdrasill.executor.program import Call, Loop, Program
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.node import Node

if TYPE_CHECKING:
    from yggdrasill.foundation.graph import Graph

__all__ = ["compile_graph"]


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
