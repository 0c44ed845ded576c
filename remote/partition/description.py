"""A partition told as plain data, for a page or a terminal: what runs where, what crosses, what stays and why."""

from __future__ import annotations

from typing import Any

from yggdrasill.remote.partition.parts import PartCall, Partition, PlacedInput

__all__ = ["describe"]


def describe(partition: Partition) -> dict[str, Any]:
    """JSON values: ``parts`` with their ``calls`` in order, ``here`` (node ids), and ``stays``, ``kept``, ``eager``, ``dropped``, ``through``.

    An input says ``from``: ``here``, or the id of the placed node that hands the value over.
    """
    makers = {(port.node, port.slot): call.node_id for call in partition.calls for port in call.outputs}
    parts: dict[str, list[dict[str, Any]]] = {}
    for call in partition.calls:
        parts.setdefault(call.part, []).append(_call(call, makers))
    placed = {call.node_id for call in partition.calls}
    return {
        "parts": [{"name": name, "calls": calls} for name, calls in parts.items()],
        "here": [node_id for node_id in partition.prompt if node_id not in placed],
        "stays": dict(partition.stays),
        "kept": list(partition.kept),
        "eager": list(partition.eager),
        "dropped": list(partition.dropped),
        "through": [
            {"node": link.node, "input": link.input, "skips": link.through[0], "takes": list(link.source)} for link in partition.relinks
        ],
    }


def _call(call: PartCall, makers: dict[tuple[str, int], str]) -> dict[str, Any]:
    return {
        "node_id": call.node_id,
        "stage": call.stage,
        "nodes": list(call.nodes),
        "copies": list(call.copies),
        "asks_again": call.asks_again,
        "inputs": [_input(port, makers) for port in call.inputs],
        "outputs": [{"name": port.name, "type": port.type, "known": port.known, "hand_over": port.hand_over} for port in call.outputs],
    }


def _input(port: PlacedInput, makers: dict[tuple[str, int], str]) -> dict[str, Any]:
    return {"name": port.name, "type": port.type, "known": port.known, "from": makers.get((port.node, port.slot), "here")}
