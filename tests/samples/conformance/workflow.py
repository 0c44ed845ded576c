"""Workflows with remote parts: their notation, and their split into prompts."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "CAPTURE",
    "GRAPH_INPUT",
    "GRAPH_OUTPUT",
    "REMOTE",
    "SOURCE",
    "Draw",
    "Drawing",
    "Link",
    "Node",
    "Part",
    "Port",
    "Prompt",
    "ServedPrompt",
    "Types",
    "as_graph",
    "as_parts",
    "links_of",
    "with_ancestors",
    "with_remote_nodes",
    "without",
]

CAPTURE = "ConformanceCapture"
SOURCE = "ConformanceSource"
GRAPH_INPUT = "YggdrasillGraphInput"
GRAPH_OUTPUT = "YggdrasillGraphOutput"
REMOTE = "YggdrasillRemoteGraph"

Prompt = dict[str, dict[str, Any]]
Link = tuple[str, int]


@dataclass(frozen=True)
class Node:
    """A node of a drawing; ``node[1]`` is the link to its second output, the node itself the link to its first."""

    node_id: str

    def __getitem__(self, slot: int) -> Link:
        return self.node_id, slot


@dataclass
class Part:
    """Nodes that run together on the server with this number; 0 is the server with the workflow."""

    server: int
    nodes: list[str] = field(default_factory=list)


class Drawing:
    """An API prompt under construction, and which of its nodes run remotely."""

    def __init__(self) -> None:
        self.prompt: Prompt = {}
        self.parts: list[Part] = []
        self._part: Part | None = None

    def node(self, class_type: str, /, **inputs: Any) -> Node:
        """Add a node. An input is a node, one of its outputs, or a constant."""
        node_id = str(len(self.prompt) + 1)
        links = {name: _as_input(value) for name, value in inputs.items()}
        self.prompt[node_id] = {"class_type": class_type, "inputs": links}
        if self._part is not None:
            self._part.nodes.append(node_id)
        return Node(node_id)

    @contextlib.contextmanager
    def part(self, server: int = 1) -> Iterator[None]:
        """Put the nodes added inside the ``with`` block into one remote graph on that server."""
        self._part = Part(server)
        self.parts.append(self._part)
        try:
            yield
        finally:
            self._part = None

    def capture(self, *values: Node | Link) -> None:
        """Compare the values on these links."""
        for value in values:
            self.node(CAPTURE, value=value)


Draw = Callable[[Drawing], None]


def _as_input(value: Any) -> Any:
    if isinstance(value, Node):
        return [value.node_id, 0]
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Port:
    """A port of a part: its name, its ComfyUI type, and the output in the workflow that its value comes from."""

    name: str
    type: str
    source: Link


@dataclass(frozen=True)
class ServedPrompt:
    """Some nodes of a workflow as a workflow with ports, and its server."""

    server: int
    nodes: tuple[str, ...]
    prompt: Prompt
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Types:
    """Names and types of outputs from ``/object_info``."""

    def __init__(self, info: Mapping[str, Mapping[str, Any]]) -> None:
        self._info = info

    def output(self, prompt: Prompt, link: Link) -> tuple[str, str]:
        """Return name and type of an output; the type is ``*`` if the prompt does not determine it."""
        node = prompt[link[0]]
        facts = self._info[node["class_type"]]
        kind, name = facts["output"][link[1]], facts["output_name"][link[1]]
        if not isinstance(kind, str):
            return name, "COMBO"
        if node["class_type"] == SOURCE:
            return name, node["inputs"]["kind"]
        return name, self._follow(prompt, node) if kind.startswith("COMFY_MATCHTYPE") else kind

    def _follow(self, prompt: Prompt, node: Mapping[str, Any]) -> str:
        """Return the type of an output whose type follows the node's inputs."""
        return next((self.output(prompt, link)[1] for name, link in links_of(node) if name != "switch"), "*")

    def given(self) -> set[str]:
        """Return all output types of a node class."""
        return {kind for facts in self._info.values() for kind in facts["output"] if isinstance(kind, str)}


def links_of(node: Mapping[str, Any]) -> Iterator[tuple[str, Link]]:
    """Return the linked inputs of a node."""
    for name, value in node["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int:
            yield name, (value[0], value[1])


def sources_into(prompt: Prompt, nodes: Iterable[str]) -> list[Link]:
    """Return the outputs of other nodes that ``nodes`` use, each once, in order."""
    inside = set(nodes)
    return list(dict.fromkeys(link for node in in_order(prompt, inside) for _, link in links_of(prompt[node]) if link[0] not in inside))


def sources_out_of(prompt: Prompt, nodes: Iterable[str]) -> list[Link]:
    """Return the outputs of ``nodes`` that others use, each once, in order."""
    inside = set(nodes)
    return list(dict.fromkeys(link for node in prompt if node not in inside for _, link in links_of(prompt[node]) if link[0] in inside))


def in_order(prompt: Prompt, nodes: Iterable[str]) -> list[str]:
    """Return ``nodes`` in the order of the prompt."""
    wanted = set(nodes)
    return [node for node in prompt if node in wanted]


def with_ancestors(prompt: Prompt, nodes: Iterable[str], stop: Iterable[str] = ()) -> set[str]:
    """Return ``nodes`` and all nodes they depend on, without those in ``stop``."""
    found: set[str] = set()
    waiting, barred = list(nodes), set(stop)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in barred:
            found.add(node)
            waiting += [link[0] for _, link in links_of(prompt[node])]
    return found


def as_parts(drawing: Drawing, types: Types) -> list[ServedPrompt]:
    """Return each remote part of a drawing as a workflow with ports."""
    prompt = drawing.prompt
    return [as_graph(prompt, part.nodes, sources_out_of(prompt, part.nodes), types, part.server) for part in drawing.parts]


def with_remote_nodes(prompt: Prompt, parts: Sequence[ServedPrompt], settings: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return ``prompt`` with each part replaced by a Remote Graph node with the part's ``settings``.

    A part's contract may order its ports differently; ``settings[...]["contract"]`` is that contract as JSON.
    """
    moved = {node: number for number, part in enumerate(parts) for node in part.nodes}
    orders = [json.loads(each["contract"]) for each in settings]

    def home(link: Link) -> list[Any]:
        if link[0] not in moved:
            return list(link)
        number = moved[link[0]]
        name = next(port.name for port in parts[number].outputs if port.source == link)
        return [f"remote-{number}", [entry["name"] for entry in orders[number]["outputs"]].index(name)]

    made = {node: copy.deepcopy(prompt[node]) for node in prompt if node not in moved}
    for node in made:
        for name, link in list(links_of(prompt[node])):
            made[node]["inputs"][name] = home(link)
    for number, part in enumerate(parts):
        sources = {port.name: port.source for port in part.inputs}
        sockets = {f"ports.p{index}": home(sources[entry["name"]]) for index, entry in enumerate(orders[number]["inputs"])}
        made[f"remote-{number}"] = {"class_type": REMOTE, "inputs": {**settings[number], **sockets}}
    return made


def without(prompt: Prompt, lost: Iterable[Link]) -> Prompt:
    """Return ``prompt`` without the nodes that depend on an output in ``lost``."""
    gone = set(lost)
    kept = dict(prompt)
    while True:
        stopped = [node for node in kept if any(link in gone or link[0] not in kept for _, link in links_of(kept[node]))]
        if not stopped:
            return kept
        for node in stopped:
            del kept[node]


def as_graph(prompt: Prompt, nodes: Iterable[str], outputs: Iterable[Link], types: Types, server: int = 0) -> ServedPrompt:
    """Return ``nodes`` of ``prompt`` as a workflow whose ports are the links into them and ``outputs``."""
    inside = in_order(prompt, nodes)
    taken: set[str] = set()
    inputs = [_port(prompt, link, types, taken) for link in sources_into(prompt, inside)]
    given = [_port(prompt, link, types, taken) for link in outputs]
    made: Prompt = {node: copy.deepcopy(prompt[node]) for node in inside}
    for port in inputs:
        entry = f"in-{port.name}"
        made[entry] = {"class_type": GRAPH_INPUT, "inputs": {"name": port.name, "type": port.type}}
        for node in inside:
            for name, link in list(links_of(prompt[node])):
                if link == port.source:
                    made[node]["inputs"][name] = [entry, 0]
    for port in given:
        inner = [f"in-{each.name}" for each in inputs if each.source == port.source]
        value = [inner[0], 0] if inner else list(port.source)
        made[f"out-{port.name}"] = {"class_type": GRAPH_OUTPUT, "inputs": {"name": port.name, "type": port.type, "value": value}}
    return ServedPrompt(server, tuple(inside), made, tuple(inputs), tuple(given))


def _port(prompt: Prompt, link: Link, types: Types, taken: set[str]) -> Port:
    name, kind = types.output(prompt, link)
    base = name.lower().replace(" ", "_")
    number = 1
    while (unique := base if number == 1 else f"{base}_{number}") in taken:
        number += 1
    taken.add(unique)
    return Port(unique, kind, link)
