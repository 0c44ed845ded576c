"""A prompt as a graph: the nodes that the requested outputs need, their links, and a topological order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from yggdrasill.errors import InvalidConfig
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.partition.schemas import InputSchema, NodeSchema

__all__ = ["Link", "PromptGraph", "Source", "natural", "reached"]

Source = tuple[str, int]
_UNDECLARED = InputSchema("*", need="optional")


class Link(NamedTuple):
    """Link from output ``slot`` of ``source`` to input ``input`` of ``node``."""

    node: str
    input: str
    source: str
    slot: int
    schema: InputSchema


@dataclass(frozen=True)
class PromptGraph:
    """The subgraph of a prompt that its ``targets`` need. ``order`` is topological: sources first.

    ``targets`` are output nodes, and the ends of loops that take values from them: ComfyUI runs a loop to its end although only an output node
    inside it is requested. The graph does not depend on the order of the entries in the prompt.
    """

    prompt: Mapping[str, Mapping[str, Any]]
    targets: frozenset[str]
    order: tuple[str, ...]
    links: Mapping[str, tuple[Link, ...]]
    users: Mapping[str, tuple[Link, ...]]
    classes: Mapping[str, NodeSchema | None]

    @classmethod
    def of(
        cls, prompt: Mapping[str, Mapping[str, Any]], schemas: Mapping[str, NodeSchema], targets: Collection[str] | None = None
    ) -> PromptGraph:
        """Build the graph of an API prompt. Without ``targets``, all output nodes are targets.

        Raises:
            InvalidConfig: a link to a missing node, or a cycle; ComfyUI refuses such a prompt.
        """
        classes = {kind: schemas.get(kind) for kind in {node["class_type"] for node in prompt.values()}}
        wanted = frozenset(
            node_id
            for node_id, node in prompt.items()
            if (targets is None or node_id in targets) and (schema := classes[node["class_type"]]) is not None and schema.is_output_node
        )
        wanted |= _ends_after(prompt, classes, wanted)
        links: dict[str, tuple[Link, ...]] = {}
        order = tuple(_walk(prompt, classes, sorted(wanted, key=natural), links))
        users: dict[str, list[Link]] = {node_id: [] for node_id in order}
        for node_id in order:
            for link in links[node_id]:
                users[link.source].append(link)
        return cls(prompt, wanted, order, links, {node_id: tuple(found) for node_id, found in users.items()}, classes)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self.links

    def class_of(self, node_id: str) -> str:
        """Return the class of a node."""
        return str(self.prompt[node_id]["class_type"])

    def schema(self, node_id: str) -> NodeSchema | None:
        """Return the schema of a node's class, or None if it is unknown."""
        return self.classes[self.prompt[node_id]["class_type"]]

    def loop_role(self, node_id: str) -> str | None:
        """Return ``start`` or ``end`` for a node that begins or ends a loop of ComfyUI's own kind."""
        schema = self.schema(node_id)
        return schema.loop if schema is not None else None

    def label(self, node_id: str) -> str:
        """Return a node for a message: ``'3' (KSampler)``."""
        return f"{node_id!r} ({self.class_of(node_id)})"

    def before(self, last: str) -> set[str]:
        """Return ``last`` and all nodes that it needs."""
        return reached([last], lambda node: (link.source for link in self.links[node]))

    def between(self, first: str, last: str) -> set[str]:
        """Return the nodes on the paths from ``first`` to ``last``, both included."""
        return self.before(last) & reached([first], lambda node: (link.node for link in self.users[node])) | {first, last}


@lru_cache(maxsize=8192)
def natural(node_id: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders ids numerically: ``2``, ``10``, ``10:2``, ``a``."""
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in node_id.split(":"))


def _ends_after(
    prompt: Mapping[str, Mapping[str, Any]], classes: Mapping[str, NodeSchema | None], outputs: Collection[str]
) -> frozenset[str]:
    """Return the ends of loops that take values from output nodes inside the loop."""
    roles = {kind: schema.loop for kind, schema in classes.items() if schema is not None and schema.loop is not None}
    if not roles:
        return frozenset()
    users: dict[str, list[str]] = {}
    for node_id, node in prompt.items():
        for value in node.get("inputs", {}).values():
            if is_link(value):
                users.setdefault(value[0], []).append(node_id)
    starts = (node_id for node_id, node in prompt.items() if roles.get(node["class_type"]) == "start")
    found = reached(outputs, lambda node_id: users.get(node_id, ()), starts)
    return frozenset(node_id for node_id in found if roles.get(prompt[node_id]["class_type"]) == "end")


def _walk(
    prompt: Mapping[str, Mapping[str, Any]], classes: Mapping[str, NodeSchema | None], wanted: list[str], links: dict[str, tuple[Link, ...]]
) -> Iterator[str]:
    """Yield the nodes that ``wanted`` need, sources first, and fill ``links``."""
    done: set[str] = set()
    open_nodes: dict[str, Iterator[Link]] = {}
    for first in wanted:
        stack = [] if first in done else [first]
        while stack:
            node_id = stack[-1]
            if node_id not in open_nodes:
                links[node_id] = found = _links_of(node_id, prompt, classes)
                open_nodes[node_id] = iter(found)
            link = next((link for link in open_nodes[node_id] if link.source not in done), None)
            if link is None:
                done.add(node_id)
                yield stack.pop()
            elif link.source in open_nodes:
                cycle = [*stack[stack.index(link.source) :], link.source]
                raise InvalidConfig(f"The prompt has a cycle: {' -> '.join(reversed(cycle))}", nodes=cycle[:-1])
            else:
                stack.append(link.source)


def _links_of(node_id: str, prompt: Mapping[str, Mapping[str, Any]], classes: Mapping[str, NodeSchema | None]) -> tuple[Link, ...]:
    node = prompt[node_id]
    schema = classes[node["class_type"]]
    found = []
    for name, value in sorted([item for item in node.get("inputs", {}).items() if is_link(item[1])]):
        if value[0] not in prompt:
            raise InvalidConfig(
                f"Input {name!r} of node {node_id!r} ({node['class_type']}) is linked to node {value[0]!r}, which does not exist",
                nodes=[node_id],
            )
        declared = schema.input(name) if schema is not None else None
        found.append(Link(node_id, name, value[0], value[1], declared or _UNDECLARED))
    return tuple(found)


def reached(first: Iterable[str], step: Callable[[str], Iterable[str]], stops: Iterable[str] = ()) -> set[str]:
    """Return ``first`` and what ``step`` leads to from there; nodes in ``stops`` are reached but not left."""
    barrier = frozenset(stops)
    found: set[str] = set()
    waiting = list(first)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if node not in barrier:
                waiting += step(node)
    return found
