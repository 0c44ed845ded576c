"""The named parts of a workflow: its subgraph nodes and groups, with their nodes of a prompt.

A subgraph's name is the title bar of its node: the node's title, or the name of its definition. A group contains the nodes whose
centre lies in its box, as in the editor, with everything inside subgraph nodes among them. Muted and bypassed nodes, notes and
reroutes are not in the prompt and so in no part. Entries that the editor would not write are ignored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ENDPOINT_PROPERTY",
    "GROUP",
    "SELECTION",
    "SUBGRAPH",
    "WORKFLOW",
    "NamedPart",
    "NodeLocations",
    "PartItem",
    "drawn_nodes",
    "named_parts",
    "workflow_node_ids",
]

SUBGRAPH, GROUP, SELECTION, WORKFLOW = "subgraph", "group", "selection", "workflow"
#: The property of a subgraph node that names the endpoint for its contents.
ENDPOINT_PROPERTY = "yggdrasill.endpoint"
_TITLE_HEIGHT = 30
#: The modes of muted and of bypassed nodes.
_NOT_RUN = (2, 4)
_MOST_NODES = 100_000
#: Subgraphs nested deeper have no parts.
_MAX_DEPTH = 64
_LETTER = 7


@dataclass(frozen=True, order=True)
class PartItem:
    """A subgraph node or a group in the graph that contains it, as the editor identifies it.

    ``graph`` is the id of the definition that contains the item, empty for the workflow itself; ``id`` is the item's id in that graph. An
    item of a definition is one part for each instance.
    """

    graph: str
    kind: str
    id: str


@dataclass(frozen=True)
class NamedPart:
    """A named set of nodes.

    ``path``: titles from the outermost subgraph down. ``source``: the definition, or a group of one; equal for all instances.
    ``node_id``: the subgraph node's id as in the prompt, such as ``7:6``. ``instance``: the same for a subgraph; for a group, the id
    of the subgraph node that contains it, or empty. ``item``: the subgraph node or group in its graph.
    """

    path: tuple[str, ...]
    kind: str
    source: tuple[str, ...]
    nodes: frozenset[str]
    node_id: str | None = None
    instance: str = ""
    pinned: Any = field(default=None, compare=False)
    item: PartItem | None = None

    @property
    def name(self) -> str:
        """Return the path as written in keys and messages."""
        return "/".join(self.path)

    @property
    def instance_name(self) -> str:
        """Return the name, with the instance if there may be several: ``Upscale (7)``."""
        return f"{self.name} ({self.instance})" if self.instance else self.name

    @property
    def unique_name(self) -> str:
        """Return a name that no other part has: a group is named with its id, ``Upscale (group 3)``."""
        if self.item is None or self.kind != GROUP:
            return self.instance_name
        return f"{self.name} ({self.instance}, group {self.item.id})" if self.instance else f"{self.name} (group {self.item.id})"

    def is_named_by(self, key: str) -> bool:
        """Return whether a key is this part's path or a suffix of it, with or without the instance or the group's id.

        A title may contain a slash.
        """
        ends = ["/".join(self.path[start:]) for start in range(len(self.path))]
        if key in ends or key == self.unique_name:
            return True
        suffixes = [self.instance] if self.item is None or self.kind != GROUP else [self.instance, f"group {self.item.id}"]
        return any(f"{end} ({suffix})" == key for end in ends for suffix in suffixes)

    def is_inside(self, other: NamedPart) -> bool:
        """Return whether another part contains this one. Of parts with equal nodes the order is selection, subgraph, group, workflow."""
        return self.nodes < other.nodes or (self.nodes == other.nodes and self._rank > other._rank)

    @property
    def _rank(self) -> tuple[int, int]:
        return (WORKFLOW, GROUP, SUBGRAPH, SELECTION).index(self.kind), len(self.path)

    def __str__(self) -> str:
        return f"{self.kind} {self.instance_name!r}"


def named_parts(
    workflow: Any, prompt: Mapping[str, Any], keys: Collection[str] | None = None, items: Collection[PartItem] = ()
) -> list[NamedPart]:
    """Return the subgraph nodes and groups of a workflow, outer ones first, with their nodes of the prompt (none if muted).

    ``keys`` limits them to ``items``, to parts that one of the keys could name and to subgraph nodes with an endpoint property.
    """
    drawn = _WorkflowReader(workflow, items)
    words = None if keys is None else {word for key in keys for word in _possible_titles(key)}
    if not items and not drawn.has_any(words):
        return []
    return list(drawn.walk(drawn.root, (), "", _nodes_by_prefix(prompt), words))


def workflow_node_ids(workflow: Any) -> set[str]:
    """Return the ids of all nodes of a workflow, each as written in its own graph."""
    drawn = _WorkflowReader(workflow)
    return {str(node.get("id")) for graph in drawn.graphs for node in _entries(graph, "nodes")}


class NodeLocations:
    """Where the nodes of a prompt are drawn: in the workflow itself, or inside definitions of subgraphs."""

    def __init__(self, workflow: Any) -> None:
        self._drawn = _WorkflowReader(workflow)
        self._types: dict[str, dict[str, Any]] = {}

    def path(self, node_id: str) -> list[tuple[str, str]]:
        """Return graph and id of the subgraph nodes that contain a node, outer ones first, and of the node; empty if it is not drawn.

        The graph is the id of a definition, empty for the workflow itself.
        """
        found: list[tuple[str, str]] = []
        graph: Mapping[str, Any] | None = self._drawn.root
        for piece in node_id.split(":", _MAX_DEPTH):
            if graph is None:
                return []
            graph_id = "" if graph is self._drawn.root else str(graph.get("id", ""))
            found.append((graph_id, piece))
            node = self._nodes(graph_id, graph).get(piece)
            graph = None if node is None else self._drawn.definition(node)
        return found

    def _nodes(self, graph_id: str, graph: Mapping[str, Any]) -> dict[str, Any]:
        if graph_id not in self._types:
            self._types[graph_id] = {str(node.get("id")): node for node in _entries(graph, "nodes")}
        return self._types[graph_id]


def drawn_nodes(workflow: Any) -> dict[str, dict[str, Any]]:
    """Return the nodes of a workflow that are neither muted nor bypassed, by their ids in a prompt, with their classes and without inputs."""
    drawn = _WorkflowReader(workflow)
    found: dict[str, dict[str, Any]] = {}
    waiting = [("", drawn.root, 0)]
    while waiting and len(found) < _MOST_NODES:
        prefix, graph, depth = waiting.pop()
        for node in _entries(graph, "nodes"):
            node_id, definition = f"{prefix}{node.get('id')}", drawn.definition(node)
            if node.get("mode") in _NOT_RUN:
                continue
            if definition is None:
                found[node_id] = {"class_type": str(node.get("type")), "inputs": {}}
            elif depth < _MAX_DEPTH and len(waiting) < _MOST_NODES:
                waiting.append((f"{node_id}:", definition, depth + 1))
    return found


def _possible_titles(key: str) -> Iterator[str]:
    """Yield the titles that a key may mean: the key or a suffix, also without the instance."""
    bare = key[: key.rindex(" (")] if key.endswith(")") and " (" in key else key
    for text in {key, bare}:
        yield text
        for position, letter in enumerate(text):
            if letter == "/":
                yield text[position + 1 :]


def _nodes_by_prefix(prompt: Mapping[str, Any]) -> dict[str, set[str]]:
    """Map each id to the nodes of the prompt inside it: ``7:6:3`` is inside itself, ``7:6`` and ``7``."""
    found: dict[str, set[str]] = defaultdict(set)
    for node_id in prompt:
        found[node_id].add(node_id)
        pieces = node_id.split(":", _MAX_DEPTH)
        for depth in range(1, min(len(pieces), _MAX_DEPTH)):
            found[":".join(pieces[:depth])].add(node_id)
    return dict(found)


class _WorkflowReader:
    def __init__(self, workflow: Any, items: Collection[PartItem] = ()) -> None:
        self._items = items
        self.root: Mapping[str, Any] = workflow if isinstance(workflow, Mapping) else {}
        definitions = self.root.get("definitions")
        subgraphs = _entries(definitions, "subgraphs") if isinstance(definitions, Mapping) else ()
        self._definitions = {entry["id"]: entry for entry in subgraphs if isinstance(entry.get("id"), str)}
        self.graphs = (self.root, *self._definitions.values())

    def has_any(self, words: Collection[str] | None) -> bool:
        """Return whether any title is in ``words``, or any subgraph node has an endpoint property."""
        for graph in self.graphs:
            for node in _entries(graph, "nodes"):
                definition = self.definition(node)
                if definition is not None and (words is None or _title(node, definition) in words or _endpoint_property(node) is not None):
                    return True
            if any(words is None or group.get("title") in words for group in _entries(graph, "groups")):
                return True
        return False

    def walk(
        self,
        graph: Mapping[str, Any],
        path: tuple[str, ...],
        prefix: str,
        inside: Mapping[str, set[str]],
        words: Collection[str] | None,
    ) -> Iterator[NamedPart]:
        """Yield the named parts of one graph and of its subgraphs, where the prompt has nodes of them."""
        source = str(graph.get("id", ""))
        graph_id = "" if graph is self.root else source
        for number, group in enumerate(_entries(graph, "groups")):
            title, item = group.get("title"), PartItem(graph_id, GROUP, str(group.get("id", f"#{number}")))
            if isinstance(title, str) and (words is None or title in words or item in self._items):
                members = (inside.get(f"{prefix}{node.get('id')}", ()) for node in _entries(graph, "nodes") if _is_in_group(node, group))
                within = frozenset[str]().union(*members)
                yield NamedPart((*path, title), GROUP, (source, str(number)), within, instance=prefix[:-1], item=item)
        for node in _entries(graph, "nodes"):
            definition = self.definition(node)
            if definition is None:
                continue
            node_id, title, pin = f"{prefix}{node.get('id')}", _title(node, definition), _endpoint_property(node)
            nodes, item = inside.get(node_id, set()), PartItem(graph_id, SUBGRAPH, str(node.get("id")))
            if words is None or title in words or pin is not None or item in self._items:
                yield NamedPart((*path, title), SUBGRAPH, (str(node["type"]),), frozenset(nodes), node_id, node_id, pin, item)
            if nodes:
                yield from self.walk(definition, (*path, title), f"{node_id}:", inside, words)

    def definition(self, node: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the definition of a subgraph node, None for any other node."""
        kind = node.get("type")
        return self._definitions.get(kind) if isinstance(kind, str) else None


def _entries(holder: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    found = holder.get(field)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _title(node: Mapping[str, Any], definition: Mapping[str, Any]) -> str:
    return str(node.get("title") or definition.get("name") or "")


def _endpoint_property(node: Mapping[str, Any]) -> Any:
    properties = node.get("properties")
    return properties.get(ENDPOINT_PROPERTY) if isinstance(properties, Mapping) else None


def _is_in_group(node: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    """Return whether a node's centre lies in a group's box, left and upper edge included (``LGraphGroup.recomputeInsideNodes``).

    A node's box begins above its position, at its title bar. A collapsed node is a title bar as wide as its text; the editor measures
    that width and this function estimates it.
    """
    position, size, box = (_numbers(value) for value in (node.get("pos"), node.get("size"), group.get("bounding")))
    if len(position) < 2 or len(size) < 2 or len(box) < 4:
        return False
    width, height = size[0], size[1] + _TITLE_HEIGHT
    flags = node.get("flags")
    if isinstance(flags, Mapping) and flags.get("collapsed"):
        title = str(node.get("title") or node.get("type") or "")
        width, height = min(width, len(title) * _LETTER + 2 * _TITLE_HEIGHT), _TITLE_HEIGHT
    x, y = position[0] + width / 2, position[1] - _TITLE_HEIGHT + height / 2
    return box[0] <= x < box[0] + box[2] and box[1] <= y < box[1] + box[3]


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a list, or of the mapping by index that older editors wrote."""
    items = [value.get(str(index)) for index in range(len(value))] if isinstance(value, Mapping) else value
    if not isinstance(items, list) or not all(isinstance(item, (int, float)) for item in items):
        return []
    return items
