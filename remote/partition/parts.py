"""Data of a partition: parts, calls and the partitioned prompt; its inverse, and its description as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import PartitionError
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, is_link
from yggdrasill.remote.partition.graph import Source, natural

__all__ = [
    "MOST_PORTS",
    "PLACED_NODE",
    "Part",
    "PartCall",
    "Partition",
    "PlacedInput",
    "PlacedOutput",
    "Relink",
    "describe",
    "restore_prompt",
]

#: The class of the node that replaces a call.
PLACED_NODE = "YggdrasillPlacedPart"
#: The maximum number of inputs, and of outputs, of a placed node.
MOST_PORTS = 100


@dataclass(frozen=True)
class Part:
    """Nodes of a prompt under a name.

    ``node_id`` is the preferred id of the placed node. ``credentials``: the part's endpoint may use the user's account for paid
    services; otherwise nodes that need it run locally.
    """

    name: str
    nodes: frozenset[str]
    node_id: str | None = None
    credentials: bool = False


@dataclass(frozen=True)
class PlacedInput:
    """A value that a call needs: output ``slot`` of ``node`` of the user's prompt.

    ``known`` is False if the type does not determine whether the value is transferable; then the value is inspected at run time.
    """

    name: str
    type: str
    node: str
    slot: int
    known: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of a plan."""
        return {"name": self.name, "type": self.type}


@dataclass(frozen=True)
class PlacedOutput:
    """A value that a call returns: output ``slot`` of ``node`` of the user's prompt.

    ``hand_over``: only other calls use it, so endpoints may transfer it directly. A value that is used locally and by a call is two
    outputs.
    """

    name: str
    type: str
    hand_over: bool
    node: str
    slot: int
    known: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of a plan."""
        return {"name": self.name, "type": self.type, "hand_over": self.hand_over}


@dataclass(frozen=True)
class PartCall:
    """A part, or one ``stage`` of it, as a prompt with ports; its nodes keep the ids of the user's prompt.

    ``node_id`` is the placed node in `Partition.prompt`. ``nodes`` run only in this call. ``copies`` also run in another place, or
    belong to no part: they make values that are not transferable. ``asks_again``: equal inputs need not give equal outputs.
    ``hidden``: the nodes whose classes have the user's prompt or workflow as a hidden input.
    """

    part: str
    node_id: str
    stage: int
    prompt: dict[str, Any]
    inputs: tuple[PlacedInput, ...]
    outputs: tuple[PlacedOutput, ...]
    nodes: tuple[str, ...]
    copies: tuple[str, ...]
    asks_again: bool
    hidden: tuple[str, ...] = ()

    @property
    def plan(self) -> str:
        """Return the placed node's input as JSON; it contains no URL, endpoint or secret.

        The inputs of a node keep the order of the user's prompt, in which nodes with growing inputs receive them.
        """
        facts: dict[str, Any] = {
            "part": self.part,
            "stage": self.stage,
            "prompt": self.prompt,
            "inputs": [port.to_dict() for port in self.inputs],
            "outputs": [port.to_dict() for port in self.outputs],
            "asks_again": self.asks_again,
        }
        if self.hidden:
            facts["hidden"] = list(self.hidden)
        return json.dumps(facts, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class Relink:
    """An input that takes its value from before an output node instead of through it."""

    node: str
    input: str
    through: tuple[str, int]
    source: tuple[str, int]


@dataclass(frozen=True)
class Partition:
    """A prompt whose parts are replaced by placed nodes.

    ``calls`` are in executable order. ``stays`` maps each node of a part that runs locally to the reason.
    ``kept``: nodes of a part that also run locally, because a local node needs their non-transferable output.
    ``eager``: local nodes whose value a call takes although a local run might not have requested it.
    ``dropped``: nodes that no target needs and that depend on a partitioned node.
    """

    prompt: dict[str, Any]
    calls: tuple[PartCall, ...] = ()
    stays: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    eager: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    relinks: tuple[Relink, ...] = ()


def restore_prompt(partition: Partition) -> dict[str, Any]:
    """Return the API prompt that was partitioned, restricted to the nodes that its outputs need.

    Raises:
        PartitionError: two calls have different nodes with one id, or a link leads nowhere; then ``partition`` is not a valid partition.
    """
    calls = {call.node_id: call for call in partition.calls}
    restored = {
        node_id: {**node, "inputs": {name: _restored_input(partition, calls, value) for name, value in node["inputs"].items()}}
        for node_id, node in partition.prompt.items()
        if node_id not in calls
    }
    through = {(link.node, link.input): list(link.through) for link in partition.relinks}
    for call in partition.calls:
        for node_id in (*call.nodes, *call.copies):
            node = call.prompt[node_id]
            inputs = {
                name: through.get((node_id, name)) or _restored_call_input(partition, calls, call, value)
                for name, value in node["inputs"].items()
            }
            existing = restored.setdefault(node_id, {**node, "inputs": inputs})
            if existing["class_type"] != node["class_type"] or existing["inputs"] != inputs:
                raise PartitionError(
                    f"Part {call.part!r}: node {node_id!r} differs from the node with this id in another call",
                    part=call.part,
                    nodes=[node_id],
                )
    return dict(sorted(restored.items(), key=lambda item: natural(item[0])))


def _restored_input(partition: Partition, calls: dict[str, PartCall], value: Any) -> Any:
    """Return the restored value of an input of the remaining prompt."""
    return list(_origin(partition, calls, value[0], value[1])) if is_link(value) else value


def _restored_call_input(partition: Partition, calls: dict[str, PartCall], call: PartCall, value: Any) -> Any:
    """Return the restored value of an input of a call's prompt."""
    if not is_link(value) or call.prompt[value[0]]["class_type"] != INPUT_NODE:
        return value
    name = call.prompt[value[0]]["inputs"]["name"]
    index = next(index for index, port in enumerate(call.inputs) if port.name == name)
    node_id, slot = partition.prompt[call.node_id]["inputs"][f"ports.p{index}"]
    return list(_origin(partition, calls, node_id, slot))


def _origin(partition: Partition, calls: dict[str, PartCall], node_id: str, slot: int) -> Source:
    """Return the node and output that produce the value on a link of the remaining prompt."""
    call = calls.get(node_id)
    if call is None:
        return node_id, slot
    name = call.outputs[slot].name if slot < len(call.outputs) else None
    ends = [node["inputs"] for node in call.prompt.values() if node["class_type"] == OUTPUT_NODE and node["inputs"]["name"] == name]
    if len(ends) != 1 or not is_link(ends[0]["value"]):
        raise PartitionError(f"Part {call.part!r} has no output {slot}", part=call.part, nodes=[node_id])
    source, source_slot = ends[0]["value"]
    return source, source_slot


def describe(partition: Partition) -> dict[str, Any]:
    """Return a partition as JSON values.

    Keys: ``parts`` with their ``calls`` in order, ``here`` (ids of local nodes), ``stays``, ``kept``, ``eager``, ``dropped`` and
    ``through``.
    The key ``from`` of an input is ``here``, or the id of the placed node that provides the value.
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
