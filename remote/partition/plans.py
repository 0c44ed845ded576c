"""Prompts of a partition: one for each call, and the remaining prompt with a placed node for each call."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import PartitionError
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, is_link
from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.graph import PromptGraph, Source, natural
from yggdrasill.remote.partition.layout import CallDraft, Layout
from yggdrasill.remote.partition.parts import MOST_PORTS, PLACED_NODE, PartCall, PlacedInput, PlacedOutput

__all__ = ["WrittenCalls", "write_calls", "write_rest"]

_HANDED_OVER = " handed over"
_SENT_HIDDEN = frozenset({"PROMPT", "EXTRA_PNGINFO"})


@dataclass(frozen=True)
class WrittenCalls:
    """The calls, and the output socket of a placed node for each partitioned output, by use: local (False) or in a call (True)."""

    calls: tuple[PartCall, ...]
    sockets: Mapping[tuple[Source, bool], tuple[str, int]]


def write_calls(assignment: Assignment, layout: Layout) -> WrittenCalls:
    """Write a call for each draft.

    Raises:
        PartitionError: more ports than a placed node can have.
    """
    names = _Names(assignment)
    seen: set[str] = set(layout.local)
    calls: list[PartCall] = []
    sockets: dict[tuple[Source, bool], tuple[str, int]] = {}
    for draft in layout.drafts:
        nodes = {node for node in draft.members if assignment.of.get(node) == draft.part and layout.owner(node) in (None, draft)} - seen
        seen |= nodes
        call = _call(assignment, draft, names, nodes)
        calls.append(call)
        for index, port in enumerate(call.outputs):
            sockets[(port.node, port.slot), port.hand_over] = (call.node_id, index)
    return WrittenCalls(tuple(calls), sockets)


def write_rest(
    prompt: Mapping[str, Any], assignment: Assignment, layout: Layout, written: WrittenCalls
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the remaining prompt, and the ids of nodes that no target needs and that depend on a partitioned node."""
    graph = assignment.graph
    moved = {node for node in graph.order if node not in layout.local}
    dropped = _dependents_outside(prompt, graph, moved)
    rest: dict[str, Any] = {}
    for node_id, node in prompt.items():
        if node_id in moved or node_id in dropped:
            continue
        inputs = dict(node.get("inputs", {}))
        for link in graph.links.get(node_id, ()):
            if link.source in assignment.of and assignment.transferability.is_transferable(link):
                inputs[link.input] = list(written.sockets[(link.source, link.slot), False])
        rest[node_id] = {**node, "inputs": inputs}
    for call in written.calls:
        rest[call.node_id] = _placed_node(call, written)
    return rest, tuple(sorted(dropped, key=natural))


def _placed_node(call: PartCall, written: WrittenCalls) -> dict[str, Any]:
    inputs: dict[str, Any] = {"part": call.part, "plan": call.plan}
    for index, port in enumerate(call.inputs):
        source = (port.node, port.slot)
        inputs[f"ports.p{index}"] = list(written.sockets.get((source, True), source))
    return {"class_type": PLACED_NODE, "inputs": inputs, "_meta": {"title": call.part}}


def _dependents_outside(prompt: Mapping[str, Any], graph: PromptGraph, moved: Collection[str]) -> set[str]:
    """Return the nodes that no target needs and that depend on a moved node."""
    users: dict[str, list[str]] = {}
    for node_id, node in prompt.items():
        if node_id not in graph:
            for value in node.get("inputs", {}).values():
                if is_link(value):
                    users.setdefault(value[0], []).append(node_id)
    found: set[str] = set()
    stack = [user for node in moved for user in users.get(node, ())] if users else []
    while stack:
        node_id = stack.pop()
        if node_id not in found:
            found.add(node_id)
            stack += users.get(node_id, ())
    return found


class _Names:
    """Ids that do not occur in the user's prompt, for placed nodes and for the port nodes of their prompts."""

    def __init__(self, assignment: Assignment) -> None:
        self._parts = assignment.parts
        self._taken = set(assignment.graph.prompt)
        self._stages: dict[int, int] = {}
        self._wanted: dict[int, str] = {}
        self._ports = "port"
        while any(node_id.startswith(self._ports) for node_id in assignment.graph.prompt):
            self._ports += "_"

    def next_stage(self, part: int) -> tuple[int, str]:
        """Return the next stage of a part, and the id of its placed node."""
        stage = self._stages.get(part, 0)
        self._stages[part] = stage + 1
        if stage == 0:
            chosen = self._parts[part]
            self._wanted[part] = chosen.node_id or f"{min(chosen.nodes, key=natural)}.placed"
        node_id = self._wanted[part] + (f".{stage}" if stage else "")
        while node_id in self._taken:
            node_id += "_"
        self._taken.add(node_id)
        return stage, node_id

    def port(self, side: str, index: int) -> str:
        """Return the id of a port node."""
        return f"{self._ports}.{side}.{index}"


def _call(assignment: Assignment, draft: CallDraft, names: _Names, nodes: Collection[str]) -> PartCall:
    part = assignment.parts[draft.part]
    inputs, outputs = _inputs(assignment, draft), _outputs(assignment, draft)
    members = sorted(draft.members, key=natural)
    for side, count in (("inputs", len(inputs)), ("outputs", len(outputs))):
        if count > MOST_PORTS:
            raise PartitionError(
                f"Part {part.name!r} would have {count} {side}, and a placed part has at most {MOST_PORTS}. "
                "Place fewer nodes, or also those that are linked to it.",
                part=part.name,
                nodes=members,
            )
    stage, node_id = names.next_stage(draft.part)
    return PartCall(
        part=part.name,
        node_id=node_id,
        stage=stage,
        prompt=_prompt(assignment, draft, names, members, inputs, outputs),
        inputs=inputs,
        outputs=outputs,
        nodes=tuple(node for node in members if node in nodes),
        copies=tuple(node for node in members if node not in nodes),
        asks_again=any(schema.asks_again for schema in map(assignment.graph.schema, members) if schema is not None),
        hidden=tuple(node for node in members if _reads_prompt(assignment.graph, node)),
    )


def _reads_prompt(graph: PromptGraph, node_id: str) -> bool:
    schema = graph.schema(node_id)
    return schema is not None and not _SENT_HIDDEN.isdisjoint(schema.hidden)


def _inputs(assignment: Assignment, draft: CallDraft) -> tuple[PlacedInput, ...]:
    found = []
    for source in sorted(draft.ports, key=_by_place):
        transfer = assignment.transferability.transfer(*source)
        found.append(PlacedInput(_port_name(source), transfer.type, *source, transfer.known))
    return tuple(found)


def _outputs(assignment: Assignment, draft: CallDraft) -> tuple[PlacedOutput, ...]:
    found = []
    for source in sorted(draft.outputs, key=_by_place):
        transfer = assignment.transferability.transfer(*source)
        if source in draft.used_locally:
            found.append(PlacedOutput(_port_name(source), transfer.type, False, *source, transfer.known))
        if source in draft.used_by_calls:
            found.append(PlacedOutput(_port_name(source) + _HANDED_OVER, transfer.type, True, *source, transfer.known))
    return tuple(found)


def _prompt(
    assignment: Assignment,
    draft: CallDraft,
    names: _Names,
    members: Sequence[str],
    inputs: Sequence[PlacedInput],
    outputs: Sequence[PlacedOutput],
) -> dict[str, Any]:
    """Return the call's API prompt: its members under their ids, and a port node for every input and output."""
    ports: dict[Source, str] = {}
    prompt: dict[str, Any] = {}
    for index, port in enumerate(inputs):
        ports[port.node, port.slot] = port_id = names.port("in", index)
        prompt[port_id] = {"class_type": INPUT_NODE, "inputs": {"name": port.name, "type": port.type}}
    for node_id in members:
        prompt[node_id] = _member(assignment, draft, node_id, ports)
    for index, out in enumerate(outputs):
        settings = {"name": out.name, "type": out.type, "value": [out.node, out.slot]}
        prompt[names.port("out", index)] = {"class_type": OUTPUT_NODE, "inputs": settings}
    return prompt


def _member(assignment: Assignment, draft: CallDraft, node_id: str, ports: Mapping[Source, str]) -> dict[str, Any]:
    """Return a node as it is sent: class, inputs and title, without data that an earlier run wrote into it."""
    node = assignment.graph.prompt[node_id]
    inputs = dict(node.get("inputs", {}))
    for link in assignment.graph.links[node_id]:
        source = assignment.source_in_call(link)
        inputs[link.input] = list(source) if source[0] in draft.included else [ports[source], 0]
    for name, value in inputs.items():
        if isinstance(value, dict):
            inputs[name] = copy.deepcopy(value)
    found: dict[str, Any] = {"class_type": assignment.graph.class_of(node_id), "inputs": inputs}
    meta = node.get("_meta")
    if isinstance(meta, Mapping) and isinstance(meta.get("title"), str):
        found["_meta"] = {"title": meta["title"]}
    return found


def _port_name(source: Source) -> str:
    return f"{source[0]}.{source[1]}"


def _by_place(source: Source) -> tuple[object, int]:
    return natural(source[0]), source[1]
