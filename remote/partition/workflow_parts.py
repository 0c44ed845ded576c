"""What has a name in a workflow of the editor: subgraph nodes and groups, and the nodes of the prompt that each of them holds.

A subgraph is called as its node's title bar shows it: by the node's own title, else by the name of its definition. A group holds
the nodes whose centre lies in its box, as in the editor, and all that is inside of subgraph nodes among them. What is muted or
bypassed, and notes and reroutes, are not in the prompt and so in no part. Entries of another shape than the editor writes are passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GROUP", "PINNED_BY", "SELECTION", "SUBGRAPH", "WORKFLOW", "NamedPart", "drawn_ids", "named_parts"]

SUBGRAPH, GROUP, SELECTION, WORKFLOW = "subgraph", "group", "selection", "workflow"

#: The property of a subgraph node that names the endpoint its inside runs on.
PINNED_BY = "yggdrasill.endpoint"
_TITLE_HEIGHT = 30
#: Subgraphs nested deeper have no parts of their own.
_DEEPEST = 64
_LETTER = 7


@dataclass(frozen=True)
class NamedPart:
    """Something with a name. ``path`` is its titles from the outermost subgraph down; ``source`` what was drawn: a definition or a
    group of one, the same for all of its instances; ``node_id`` the subgraph node's id in the prompt's spelling, such as ``7:6``;
    ``instance`` the same for a subgraph, and for a group that of the subgraph node it is in, if any."""

    path: tuple[str, ...]
    kind: str
    source: tuple[str, ...]
    nodes: frozenset[str]
    node_id: str | None = None
    instance: str = ""
    pinned: Any = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The path as keys and messages write it."""
        return "/".join(self.path)

    @property
    def own_name(self) -> str:
        """The name, with the instance where there may be several: ``Upscale (7)``."""
        return f"{self.name} ({self.instance})" if self.instance else self.name

    def is_named_by(self, key: str) -> bool:
        """Whether a key is this part's path or the end of it, with or without the instance; a title may itself hold a slash."""
        ends = ["/".join(self.path[start:]) for start in range(len(self.path))]
        return key in ends or any(f"{end} ({self.instance})" == key for end in ends)

    def is_inside(self, other: NamedPart) -> bool:
        """Whether another part holds this one; of two that hold the same nodes, what is chosen by hand is inside a subgraph, that in a group, and all in the workflow."""
        return self.nodes < other.nodes or (self.nodes == other.nodes and self._rank > other._rank)

    @property
    def _rank(self) -> tuple[int, int]:
        return (WORKFLOW, GROUP, SUBGRAPH, SELECTION).index(self.kind), len(self.path)

    def __str__(self) -> str:
        return f"{self.kind} {self.own_name!r}"


def named_parts(workflow: Any, prompt: Mapping[str, Any], keys: Collection[str] | None = None) -> list[NamedPart]:
    """The subgraph nodes and groups of a workflow, outer ones first, with the nodes of the prompt inside (none if it is muted).

    ``keys`` limits them to those that one of these could name and to subgraph nodes with an endpoint pinned on them.
    """
    drawn = _Drawing(workflow)
    words = None if keys is None else {word for key in keys for word in _ends(key)}
    if not drawn.mentions(words):
        return []
    return list(drawn.walk(drawn.root, (), "", _inside(prompt), words))


def drawn_ids(workflow: Any) -> set[str]:
    """The ids of all nodes that a workflow shows, each as its own graph has it."""
    drawn = _Drawing(workflow)
    return {str(node.get("id")) for graph in drawn.graphs for node in _entries(graph, "nodes")}


def _ends(key: str) -> Iterator[str]:
    """The titles that a key may mean: it or its end, without the instance too."""
    bare = key[: key.rindex(" (")] if key.endswith(")") and " (" in key else key
    for text in {key, bare}:
        yield text
        for position, letter in enumerate(text):
            if letter == "/":
                yield text[position + 1 :]


def _inside(prompt: Mapping[str, Any]) -> dict[str, set[str]]:
    """The nodes of a prompt by the ids of what they are in: ``7:6:3`` is in itself, in ``7:6`` and in ``7``."""
    found: dict[str, set[str]] = defaultdict(set)
    for node_id in prompt:
        found[node_id].add(node_id)
        pieces = node_id.split(":", _DEEPEST)
        for depth in range(1, min(len(pieces), _DEEPEST)):
            found[":".join(pieces[:depth])].add(node_id)
    return dict(found)


class _Drawing:
    def __init__(self, workflow: Any) -> None:
        self.root: Mapping[str, Any] = workflow if isinstance(workflow, Mapping) else {}
        definitions = self.root.get("definitions")
        subgraphs = _entries(definitions, "subgraphs") if isinstance(definitions, Mapping) else ()
        self._definitions = {entry["id"]: entry for entry in subgraphs if isinstance(entry.get("id"), str)}
        self.graphs = (self.root, *self._definitions.values())

    def mentions(self, words: Collection[str] | None) -> bool:
        """Whether anything is called by one of the words, or pinned."""
        for graph in self.graphs:
            for node in _entries(graph, "nodes"):
                definition = self._definition(node)
                if definition is not None and (words is None or _title(node, definition) in words or _pin(node) is not None):
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
        """The named parts of one graph and of the subgraphs in it, as far as the prompt has nodes there."""
        source = str(graph.get("id", ""))
        for number, group in enumerate(_entries(graph, "groups")):
            title = group.get("title")
            if isinstance(title, str) and (words is None or title in words):
                members = (inside.get(f"{prefix}{node.get('id')}", ()) for node in _entries(graph, "nodes") if _is_in(node, group))
                yield NamedPart((*path, title), GROUP, (source, str(number)), frozenset().union(*members), instance=prefix[:-1])
        for node in _entries(graph, "nodes"):
            definition = self._definition(node)
            if definition is None:
                continue
            node_id, title, pin = f"{prefix}{node.get('id')}", _title(node, definition), _pin(node)
            nodes = inside.get(node_id, set())
            if words is None or title in words or pin is not None:
                yield NamedPart((*path, title), SUBGRAPH, (str(node["type"]),), frozenset(nodes), node_id, node_id, pin)
            if nodes:
                yield from self.walk(definition, (*path, title), f"{node_id}:", inside, words)

    def _definition(self, node: Mapping[str, Any]) -> Mapping[str, Any] | None:
        kind = node.get("type")
        return self._definitions.get(kind) if isinstance(kind, str) else None


def _entries(holder: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    found = holder.get(field)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _title(node: Mapping[str, Any], definition: Mapping[str, Any]) -> str:
    return str(node.get("title") or definition.get("name") or "")


def _pin(node: Mapping[str, Any]) -> Any:
    properties = node.get("properties")
    return properties.get(PINNED_BY) if isinstance(properties, Mapping) else None


def _is_in(node: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    """Whether a node's centre lies in a group's box, left and upper edge included (``LGraphGroup.recomputeInsideNodes``).

    A node's box begins above its position, at its title bar. A collapsed node is a title bar as wide as its text, which the editor
    measures and which is estimated here.
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
    """The numbers of a list, or of the mapping by index that older editors wrote."""
    items = [value.get(str(index)) for index in range(len(value))] if isinstance(value, Mapping) else value
    if not isinstance(items, list) or not all(isinstance(item, (int, float)) for item in items):
        return []
    return items
