"""How many ports a graph may have for a node that runs it: the node's form names every socket beforehand."""

from __future__ import annotations

from yggdrasill.errors import InvalidArgument

__all__ = ["MOST_PORTS", "check_ports"]

MOST_PORTS = 32
"""Sockets on each side of a node; the editor has the same number in ``contract.js``."""


def check_ports(graph: str, inputs: int, outputs: int, node: str) -> None:
    """Raise `InvalidArgument` if a graph has more ports on a side than ``node`` has sockets."""
    for count, side in ((inputs, "inputs"), (outputs, "outputs")):
        if count > MOST_PORTS:
            raise InvalidArgument(
                f"{graph!r} has {count} {side}, and {node} runs graphs of up to {MOST_PORTS}; let fewer be ports of the whole, or divide it "
                "into graphs that each have a node"
            )
