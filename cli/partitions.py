"""A partition for people: as lines of text, and as the mapping that `draw_partition` draws."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.partition.parts import PartCall, Partition, describe
from yggdrasill.remote.partition.schemas import NodeSchema

__all__ = ["partition_picture", "partition_text"]


def partition_text(partition: Partition, prompt: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """What runs where, what crosses, what is copied and what stays, with the reason; ``places`` says where each part runs."""
    return "\n".join(_lines(partition, prompt, places))


def _lines(partition: Partition, prompt: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    told = describe(partition)
    for part in told["parts"]:
        yield f"{part['name']} runs at {places[part['name']]}" + (f", in {len(part['calls'])} stages" if len(part["calls"]) > 1 else "")
        for call in part["calls"]:
            if len(part["calls"]) > 1:
                yield f"  stage {call['stage'] + 1}"
            yield f"  nodes   {_named(call['nodes'], prompt)}"
            if call["copies"]:
                yield f"  copies  {_named(call['copies'], prompt)}"
            yield from (f"  takes   {port['name']} {port['type']}{_from(port['from'])}" for port in call["inputs"])
            yield from (f"  gives   {port['name']} {port['type']}" for port in call["outputs"])
            if call["asks_again"]:
                yield "  is asked in every run: it holds nodes that may change by themselves"
        yield ""
    yield f"here      {_named(told['here'], prompt)}"
    yield from (f"stays     {_named([node], prompt)}: {reason}" for node, reason in told["stays"].items())
    if told["kept"]:
        yield f"here too  {_named(told['kept'], prompt)}"
    if told["dropped"]:
        yield f"left out  {_named(told['dropped'], prompt)}: nothing that is asked for needs it"


def _named(nodes: Iterable[str], prompt: Mapping[str, Any]) -> str:
    return ", ".join(f"{node} {prompt[node]['class_type']}" for node in nodes) or "nothing"


def _from(source: str) -> str:
    return "" if source == "here" else f", handed over by {source}"


def partition_picture(
    partition: Partition, prompt: Mapping[str, Any], places: Mapping[str, str], schemas: Mapping[str, NodeSchema]
) -> dict[str, Any]:
    """The nodes and edges of what runs, with a node for each call; ``schemas`` name the outputs of what runs here by their types."""
    calls = {call.node_id: call for call in partition.calls}
    staged = {call.part for call in partition.calls if call.stage}
    nodes = [
        _call_node(calls[node_id], prompt, places, staged) if node_id in calls else _node(node_id, prompt) for node_id in partition.prompt
    ]
    edges = [edge for target in partition.prompt for edge in _edges(target, partition.prompt, calls, schemas)]
    return {"nodes": nodes, "edges": edges}


def _call_node(call: PartCall, prompt: Mapping[str, Any], places: Mapping[str, str], staged: Collection[str]) -> dict[str, Any]:
    inner = [_node(node, prompt) | {"copy": node in call.copies} for node in (*call.copies, *call.nodes)]
    known = {node["node_id"] for node in inner}
    edges = [edge for node in known for edge in _edges(node, call.prompt, {}, {}) if edge["source_node"] in known]
    count = len(call.nodes)
    return {
        "node_id": call.node_id,
        "title": f"{call.part}, stage {call.stage + 1}" if call.part in staged else call.part,
        "class_type": f"{count} node{'' if count == 1 else 's'}",
        "place": places[call.part],
        "inside": {"nodes": inner, "edges": sorted(edges, key=lambda edge: sorted(edge.items()))},
    }


def _node(node_id: str, prompt: Mapping[str, Any]) -> dict[str, Any]:
    node = prompt[node_id]
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    about = "" if title in (None, node["class_type"]) else node["class_type"]
    return {"node_id": node_id, "title": f"{node_id} {title or node['class_type']}", "class_type": about}


def _edges(
    target: str, prompt: Mapping[str, Any], calls: Mapping[str, PartCall], schemas: Mapping[str, NodeSchema]
) -> Iterator[dict[str, str]]:
    for name, value in prompt[target].get("inputs", {}).items():
        if is_link(value) and value[0] in prompt:
            source, slot = value
            schema = schemas.get(prompt[source]["class_type"])
            socket = schema.output_type(slot) if schema is not None else str(slot)
            yield {
                "source_node": source,
                "source_port": _given(calls[source], slot) if source in calls else socket,
                "target_node": target,
                "target_port": _taken(calls[target], name) if target in calls else name,
            }


def _given(call: PartCall, slot: int) -> str:
    return f"{call.outputs[slot].type} {call.outputs[slot].name}"


def _taken(call: PartCall, name: str) -> str:
    port = call.inputs[int(name.removeprefix("ports.p"))]
    return f"{port.type} {port.name}"
