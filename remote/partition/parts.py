"""Parts"""

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

#: The class of the node that stands for a partitioned part.
PLACED_NODE = "YggdrasillPlacedPart"
#: A placed node has at most this many inputs, and this many outputs.
MOST_PORTS = 100


@dataclass(frozen=True)
class Part:
    """Nodes of a prompt under a name.

    ``node_id`` is the id of the node that takes their place, where one is wanted and free. ``credentials``: where the part runs may
    have the user's account for paid services; else nodes that need it stay here.
    """

    name: str
    nodes: frozenset[str]
    node_id: str | None = None
    credentials: bool = False


@dataclass(frozen=True)
class PlacedInput:
    """A value that a call needs: output ``slot`` of ``node`` of the user's prompt.

    ``known`` is false where the type does not tell whether the value can travel; then it is looked at when it is there.
    """

    name: str
    type: str
    node: str
    slot: int
    known: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The entry of a plan."""
        return {"name": self.name, "type": self.type}


@dataclass(frozen=True)
class PlacedOutput:
    """A value that a call gives: output ``slot`` of ``node`` of the user's prompt.

    ``hand_over``: only other calls use it, so the endpoints may pass it between them. A value that is used here and by a call is
    two outputs.
    """

    name: str
    type: str
    hand_over: bool
    node: str
    slot: int
    known: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The entry of a plan."""
        return {"name": self.name, "type": self.type, "hand_over": self.hand_over}


@dataclass(frozen=True)
class PartCall:
    """A part, or one ``stage`` of it, as a prompt of its own with ports; the nodes in it keep the ids of the user's prompt.

    ``node_id`` is the placed node in `Partition.prompt`. ``nodes`` are those that only run in this call; ``copies`` run somewhere
    else too, or belong to no part: they make what cannot travel.
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

    @property
    def plan(self) -> str:
        """What the placed node is given as canonical JSON: no url, no endpoint, no secret."""
        facts = {
            "part": self.part,
            "stage": self.stage,
            "prompt": self.prompt,
            "inputs": [port.to_dict() for port in self.inputs],
            "outputs": [port.to_dict() for port in self.outputs],
            "asks_again": self.asks_again,
        }
        return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


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

    ``calls`` are in an order in which they can run. ``stays`` says of each node of a part that runs here after all, why.
    ``kept``: nodes of a part that also run here, because something here needs what they make and it cannot travel.
    ``eager``: nodes here whose value a call takes although, run here, nothing might have asked for it.
    ``dropped``: nodes that nothing asked for needs and that hang on a partitioned one.
    """

    prompt: dict[str, Any]
    calls: tuple[PartCall, ...] = ()
    stays: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    eager: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    relinks: tuple[Relink, ...] = ()


def restore_prompt(partition: Partition) -> dict[str, Any]:
    """The API prompt that ``partition`` was made of, as far as its outputs need it.

    Raises:
        PartitionError: two calls have different nodes of one id, or a wire leads nowhere; then it was not made by a partition.
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
            there = restored.setdefault(node_id, {**node, "inputs": inputs})
            if there["class_type"] != node["class_type"] or there["inputs"] != inputs:
                raise PartitionError(f"part {call.part!r}: node {node_id!r} is another one than elsewhere", part=call.part, nodes=[node_id])
    return dict(sorted(restored.items(), key=lambda item: natural(item[0])))


def _restored_input(partition: Partition, calls: dict[str, PartCall], value: Any) -> Any:
    """What an input of the prompt that is left has in the restored one."""
    return list(_origin(partition, calls, value[0], value[1])) if is_link(value) else value


def _restored_call_input(partition: Partition, calls: dict[str, PartCall], call: PartCall, value: Any) -> Any:
    """What an input of a call's prompt has in the restored one."""
    if not is_link(value) or call.prompt[value[0]]["class_type"] != INPUT_NODE:
        return value
    name = call.prompt[value[0]]["inputs"]["name"]
    index = next(index for index, port in enumerate(call.inputs) if port.name == name)
    node_id, slot = partition.prompt[call.node_id]["inputs"][f"ports.p{index}"]
    return list(_origin(partition, calls, node_id, slot))


def _origin(partition: Partition, calls: dict[str, PartCall], node_id: str, slot: int) -> Source:
    """The node that makes the value on a link of the prompt that is left."""
    call = calls.get(node_id)
    if call is None:
        return node_id, slot
    name = call.outputs[slot].name if slot < len(call.outputs) else None
    ends = [node["inputs"] for node in call.prompt.values() if node["class_type"] == OUTPUT_NODE and node["inputs"]["name"] == name]
    if len(ends) != 1 or not is_link(ends[0]["value"]):
        raise PartitionError(f"part {call.part!r} has no output {slot}", part=call.part, nodes=[node_id])
    source, source_slot = ends[0]["value"]
    return source, source_slot


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
