"""The partition undone: the partitioned parts back in their places, by following the wires of the prompts and nothing else."""

from __future__ import annotations

from typing import Any

from yggdrasill.errors import PartitionError
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, is_link
from yggdrasill.remote.partition.graph import Source, natural
from yggdrasill.remote.partition.parts import PartCall, Partition

__all__ = ["plug"]


def plug(partition: Partition) -> dict[str, Any]:
    """The API prompt that ``partition`` was made of, as far as its outputs need it.

    Raises:
        PartitionError: two calls have different nodes of one id, or a wire leads nowhere; then it was not made by a partition.
    """
    calls = {call.node_id: call for call in partition.calls}
    plugged = {
        node_id: {**node, "inputs": {name: _release_slot(partition, calls, value) for name, value in node["inputs"].items()}}
        for node_id, node in partition.prompt.items()
        if node_id not in calls
    }
    through = {(link.node, link.input): list(link.through) for link in partition.relinks}
    for call in partition.calls:
        for node_id in (*call.nodes, *call.copies):
            node = call.prompt[node_id]
            inputs = {
                name: through.get((node_id, name)) or _inside(partition, calls, call, value) for name, value in node["inputs"].items()
            }
            there = plugged.setdefault(node_id, {**node, "inputs": inputs})
            if there["class_type"] != node["class_type"] or there["inputs"] != inputs:
                raise PartitionError(f"part {call.part!r}: node {node_id!r} is another one than elsewhere", part=call.part, nodes=[node_id])
    return dict(sorted(plugged.items(), key=lambda item: natural(item[0])))


def _release_slot(partition: Partition, calls: dict[str, PartCall], value: Any) -> Any:
    """What an input of the prompt that is left has in the plugged one."""
    return list(_origin(partition, calls, value[0], value[1])) if is_link(value) else value


def _inside(partition: Partition, calls: dict[str, PartCall], call: PartCall, value: Any) -> Any:
    """What an input of a call's prompt has in the plugged one."""
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
