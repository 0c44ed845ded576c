"""The prompts of a carving: one of its own for each call, and the one that is left, with a placed node for each call."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import CarveError
from yggdrasill.remote.carve.drafts import Draft, Layout
from yggdrasill.remote.carve.graph import PromptGraph, Source, natural
from yggdrasill.remote.carve.homes import Homes
from yggdrasill.remote.carve.parts import MOST_PORTS, PLACED_NODE, CarvedCall, PlacedInput, PlacedOutput
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, is_link

__all__ = ["Written", "write_calls", "write_rest"]

_HANDED = " handed over"


@dataclass(frozen=True)
class Written:
    """The calls, and which output socket of which placed node has the value of a carved output, for a user here or in a call."""

    calls: tuple[CarvedCall, ...]
    sockets: Mapping[tuple[Source, bool], tuple[str, int]]


def write_calls(homes: Homes, layout: Layout) -> Written:
    """A call for each draft.

    Raises:
        CarveError: more ports than a node can have.
    """
    taken = set(homes.graph.prompt)
    stages: dict[int, int] = {}
    seen: set[str] = set()
    calls: list[CarvedCall] = []
    sockets: dict[tuple[Source, bool], tuple[str, int]] = {}
    for draft in layout.drafts:
        stage = stages.get(draft.part, 0)
        stages[draft.part] = stage + 1
        node_id = _node_id(homes, draft, stage, taken)
        own = {node for node in draft.members if homes.of.get(node) == draft.part and layout.owner(node) in (None, draft)} - seen
        seen |= own
        call = _call(homes, draft, stage, node_id, own - layout.here)
        calls.append(call)
        for index, port in enumerate(call.outputs):
            sockets[(port.node, port.slot), port.hand_over] = (node_id, index)
    return Written(tuple(calls), sockets)


def write_rest(prompt: Mapping[str, Any], homes: Homes, layout: Layout, written: Written) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The prompt that is left, and the ids of nodes that nothing wanted needs and that would hang on a carved one."""
    graph = homes.graph
    moved = {node for node in graph.order if node not in layout.here}
    dropped = _hanging(prompt, graph, moved)
    rest: dict[str, Any] = {}
    for node_id, node in prompt.items():
        if node_id in moved or node_id in dropped:
            continue
        inputs = dict(node.get("inputs", {}))
        if node_id in graph:
            for link in graph.links[node_id]:
                source = (link.source, link.slot)
                if link.source in homes.of and homes.travel.travels(link):
                    inputs[link.input] = list(written.sockets[source, False])
        rest[node_id] = {**node, "inputs": inputs}
    for call in written.calls:
        rest[call.node_id] = _placed_node(call, homes, written)
    return rest, tuple(sorted(dropped, key=natural))


def _placed_node(call: CarvedCall, homes: Homes, written: Written) -> dict[str, Any]:
    inputs: dict[str, Any] = {"part": call.part, "plan": call.plan}
    for index, port in enumerate(call.inputs):
        source = (port.node, port.slot)
        inputs[f"ports.p{index}"] = list(written.sockets.get((source, True), source))
    return {"class_type": PLACED_NODE, "inputs": inputs, "_meta": {"title": call.part}}


def _hanging(prompt: Mapping[str, Any], graph: PromptGraph, moved: Collection[str]) -> set[str]:
    """Nodes that are not wanted and that need one that is not there."""
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


def _node_id(homes: Homes, draft: Draft, stage: int, taken: set[str]) -> str:
    part = homes.parts[draft.part]
    wanted = part.node_id or f"{min(part.nodes, key=natural)}.placed"
    node_id = wanted if stage == 0 else f"{wanted}.{stage}"
    while node_id in taken:
        node_id += "_"
    taken.add(node_id)
    return node_id


def _call(homes: Homes, draft: Draft, stage: int, node_id: str, own: Collection[str]) -> CarvedCall:
    part = homes.parts[draft.part]
    inputs = tuple(PlacedInput(_port_name(source), *_type(homes, source)) for source in sorted(draft.ports, key=_by_place))
    outputs = tuple(
        PlacedOutput(_port_name(source) + _HANDED * handed, kind, handed, node, slot, known)
        for source in sorted(draft.outputs, key=_by_place)
        for kind, node, slot, known in [_type(homes, source)]
        for handed in (False, True)
        if source in (draft.used_there if handed else draft.used_here)
    )
    for side, ports in (("inputs", inputs), ("outputs", outputs)):
        if len(ports) > MOST_PORTS:
            raise CarveError(
                f"part {part.name!r} would have {len(ports)} {side}, and a placed part has at most {MOST_PORTS}; "
                "place fewer nodes, or those too that are linked to it",
                part=part.name,
                nodes=sorted(draft.members, key=natural),
            )
    members = sorted(draft.members, key=natural)
    schemas = [homes.graph.schema(node) for node in members]
    return CarvedCall(
        part=part.name,
        node_id=node_id,
        stage=stage,
        prompt=_prompt(homes, draft, members, inputs, outputs),
        inputs=inputs,
        outputs=outputs,
        nodes=tuple(node for node in members if node in own),
        copies=tuple(node for node in members if node not in own),
        asks_again=any(schema is not None and schema.asks_again for schema in schemas),
    )


def _prompt(
    homes: Homes, draft: Draft, members: Sequence[str], inputs: Sequence[PlacedInput], outputs: Sequence[PlacedOutput]
) -> dict[str, Any]:
    """The call's own API prompt: its members under their ids, and a port node for every input and output."""
    graph = homes.graph
    free = _PortIds(graph.prompt)
    ports: dict[Source, str] = {}
    prompt: dict[str, Any] = {}
    for index, port in enumerate(inputs):
        ports[port.node, port.slot] = port_id = free.take("in", index)
        prompt[port_id] = {"class_type": INPUT_NODE, "inputs": {"name": port.name, "type": port.type}}
    for node_id in members:
        node = graph.prompt[node_id]
        inner = {name: copy.deepcopy(value) if isinstance(value, (dict, list)) else value for name, value in node.get("inputs", {}).items()}
        for link in graph.links[node_id]:
            source = homes.inside(link)
            inner[link.input] = list(source) if source[0] in draft.inside else [ports[source], 0]
        prompt[node_id] = {"class_type": graph.class_of(node_id), "inputs": inner}
        title = node.get("_meta", {}).get("title") if isinstance(node.get("_meta"), Mapping) else None
        if isinstance(title, str):
            prompt[node_id]["_meta"] = {"title": title}
    for index, out in enumerate(outputs):
        marks = {"name": out.name, "type": out.type, "value": [out.node, out.slot]}
        prompt[free.take("out", index)] = {"class_type": OUTPUT_NODE, "inputs": marks}
    return prompt


class _PortIds:
    """Ids for port nodes that no node of the user's prompt has."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._prefix = "port"
        while any(node_id.startswith(self._prefix) for node_id in prompt):
            self._prefix += "_"

    def take(self, side: str, index: int) -> str:
        """The id of a port."""
        return f"{self._prefix}.{side}.{index}"


def _type(homes: Homes, source: Source) -> tuple[str, str, int, bool]:
    journey = homes.travel.journey(*source)
    return journey.type, *source, journey.known


def _port_name(source: Source) -> str:
    return f"{source[0]}.{source[1]}"


def _by_place(source: Source) -> tuple[object, int]:
    return natural(source[0]), source[1]
