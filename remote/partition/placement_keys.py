"""Placement keys: which nodes of a prompt run on endpoints, according to the request, the registry and the workflow.

Precedence: the request (``extra_data.yggdrasill.graphs``), the registry, a subgraph node's property, local. A key is a part's path
``outer/inner`` or a suffix of it; of several keys that match a part the longest applies, and a key that matches a part and others
inside it means the outermost. Instances of one definition are separate parts with one name, and ``Upscale (7)`` is the instance of
node 7; a name that matches different definitions is an error unless it is the whole path of one of them. If a placed part lies
inside another one, the inner part runs where it is placed and the outer part has the remaining nodes. The key ``*`` is the whole prompt.

A subgraph's name is the title bar of its node: the node's title, or the name of its definition. A group contains the nodes whose
centre lies in its box, as in the editor, with everything inside subgraph nodes among them. Muted and bypassed nodes, notes and
reroutes are not in the prompt and so in no part. Entries that the editor would not write are ignored.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options, unknown_name
from yggdrasill.remote.partition.parts import Part
from yggdrasill.remote.placement import WHOLE, Placement

__all__ = [
    "ENDPOINT_PROPERTY",
    "GROUP",
    "SELECTION",
    "SUBGRAPH",
    "WORKFLOW",
    "NamedPart",
    "PlacedPart",
    "PlacedParts",
    "named_parts",
    "parts_of",
    "uses_their_models",
    "workflow_node_ids",
]

_WHERE = "extra_data.yggdrasill.graphs"
SUBGRAPH, GROUP, SELECTION, WORKFLOW = "subgraph", "group", "selection", "workflow"
#: The property of a subgraph node that names the endpoint for its contents.
ENDPOINT_PROPERTY = "yggdrasill.endpoint"
_TITLE_HEIGHT = 30
#: Subgraphs nested deeper have no parts.
_MAX_DEPTH = 64
_LETTER = 7


@dataclass(frozen=True)
class PlacedPart:
    """A part and its placement."""

    part: Part
    placement: Placement


@dataclass(frozen=True)
class PlacedParts:
    """The parts that run on endpoints, disjoint in nodes and names, and ``warnings`` for the caller.

    If a name has several instances, each name ends with its node's id: ``Upscale (7)``.
    """

    parts: tuple[PlacedPart, ...] = ()
    warnings: tuple[str, ...] = ()


def parts_of(prompt: Mapping[str, Any], extra_data: Any, placements: Mapping[str, Placement], endpoints: Collection[str]) -> PlacedParts:
    """Return the parts of ``prompt`` that run on endpoints.

    ``extra_data`` is as posted, with the editor's workflow in ``extra_pnginfo``; ``placements`` are the registry's (those that match
    nothing belong to other workflows); ``endpoints`` are the known endpoint names.

    Raises:
        InvalidConfig: malformed entries, an ambiguous name, or parts that overlap partially.
        UnknownName: the request names a node or a part that does not exist.
        UnknownEndpoint
    """
    extra = extra_data if isinstance(extra_data, Mapping) else {}
    chosen, called = _caller_entries(extra, endpoints)
    png = extra.get("extra_pnginfo")
    workflow = png.get("workflow") if isinstance(png, Mapping) else None
    keys = {*placements, *called}
    whole = [NamedPart((WHOLE,), WORKFLOW, (WORKFLOW,), frozenset(prompt))] if WHOLE in keys else []
    keys -= {WHOLE}
    found = [*_selections(chosen, prompt, workflow), *named_parts(workflow, prompt, keys)]
    if not found and not called and not whole:
        return PlacedParts()
    by_name = {part.name for part in found if part.kind == SELECTION}
    found = [part for part in found if part.kind == SELECTION or part.name not in by_name] + whole
    placed = _placed_by_property(found, endpoints) | _placed_by_key(placements, found) | _placed_by_key(called, found)
    _check_caller_names(called, found, workflow, prompt)
    if uses_their_models(workflow):
        placed = {part: placement if placement.is_local else replace(placement, models="theirs") for part, placement in placed.items()}
    unplaced = [part.name for part in found if part.kind == SELECTION and part not in placed]
    hints = (
        [f"{_WHERE}: no placement for {format_options(unplaced)}, so it runs locally. Place it under 'graphs' of endpoints.yaml."]
        if unplaced
        else []
    )
    return PlacedParts(tuple(_disjoint(placed, prompt)), tuple(hints))


def uses_their_models(workflow: Any) -> bool:
    """Return whether a workflow says that its parts use the endpoints' model files, whatever they contain (``extra.yggdrasill.models``)."""
    extra = workflow.get("extra") if isinstance(workflow, Mapping) else None
    entries = extra.get("yggdrasill") if isinstance(extra, Mapping) else None
    return isinstance(entries, Mapping) and entries.get("models") == "theirs"


def _caller_entries(extra: Mapping[str, Any], endpoints: Collection[str]) -> tuple[dict[str, list[Any]], dict[str, Placement]]:
    """Return the request's entries: nodes by name, and placements by name."""
    entries = extra.get("yggdrasill")
    graphs = entries.get("graphs") if isinstance(entries, Mapping) else None
    if not graphs:
        return {}, {}
    if not isinstance(graphs, Mapping):
        raise InvalidConfig(f"{_WHERE} must be a mapping from names to {{nodes, endpoint}}, got {type(graphs).__name__}")
    chosen, called = {}, {}
    for name, entry in graphs.items():
        where = f"{_WHERE}.{name}"
        unknown = sorted(set(map(str, entry)) - {"nodes", "endpoint"}) if isinstance(entry, Mapping) else None
        if unknown is None or unknown or not entry:
            raise InvalidConfig(f"{where} is {entry!r}; it takes 'nodes', a list of node ids, and 'endpoint', where the part runs")
        if "nodes" in entry:
            if not isinstance(entry["nodes"], list) or not all(isinstance(node, (str, int)) for node in entry["nodes"]):
                raise InvalidConfig(f"{where}.nodes must be a list of node ids, got {entry['nodes']!r}")
            chosen[str(name)] = entry["nodes"]
        if "endpoint" in entry:
            called[str(name)] = Placement.of(entry["endpoint"], endpoints, where)
    return chosen, called


def _selections(chosen: Mapping[str, list[Any]], prompt: Mapping[str, Any], workflow: Any) -> list[NamedPart]:
    """Return the request's sets of nodes. A subgraph node means all nodes inside it; nodes that the prompt omits may be named too."""
    if not chosen:
        return []
    drawn = {part.node_id: part.nodes for part in named_parts(workflow, prompt)}
    left_out = workflow_node_ids(workflow)
    found = []
    for name, nodes in chosen.items():
        inside: set[str] = set()
        for node_id in map(str, nodes):
            below = {node_id} if node_id in prompt else drawn.get(node_id) or {other for other in prompt if other.startswith(f"{node_id}:")}
            if not below and node_id.rpartition(":")[2] not in left_out:
                error = unknown_name("node", node_id, prompt, f"It is named in {_WHERE}.{name}.nodes.")
                raise error
            inside |= below
        found.append(NamedPart((name,), SELECTION, (SELECTION, name), frozenset(inside)))
    return found


def _placed_by_property(found: Iterable[NamedPart], endpoints: Collection[str]) -> dict[NamedPart, Placement]:
    where = "property {!r} of {}; a key of the same name under 'graphs' of endpoints.yaml overrides it"
    return {part: Placement.of(part.pinned, endpoints, where.format(ENDPOINT_PROPERTY, part)) for part in found if part.pinned is not None}


def _placed_by_key(placements: Mapping[str, Placement], found: list[NamedPart]) -> dict[NamedPart, Placement]:
    """Return the placements by key; of several matching keys the longest applies."""
    placed = {}
    for key in sorted(placements, key=len):
        for part in _named_by(key, found, placements[key]):
            placed[part] = placements[key]
    return placed


def _named_by(key: str, found: list[NamedPart], placement: Placement) -> list[NamedPart]:
    """Return the parts that a key names."""
    matching = [part for part in found if part.nodes and part.is_named_by(key)]
    whole = {part.source for part in matching if key in {part.name, part.instance_name}}
    matching = [part for part in matching if not whole or part.source in whole]
    outermost = [part for part in matching if not any(part.is_inside(other) for other in matching)]
    if len({part.source for part in outermost}) > 1 and not placement.is_local:
        count_of = Counter(map(str, outermost))
        names = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in sorted(count_of.items())[:6])
        raise InvalidConfig(
            f"{key!r} is ambiguous in this workflow: it can be {names}. Write one of these names, or use different titles.",
            key=key,
            nodes=sorted(part.node_id for part in outermost if part.node_id),
        )
    return outermost


def _check_caller_names(called: Mapping[str, Placement], found: list[NamedPart], workflow: Any, prompt: Mapping[str, Any]) -> None:
    """Raise for a placed name of the request that matches nothing. A name whose nodes are all muted is accepted."""
    for key in called:
        if not any(part.is_named_by(key) for part in found):
            existing = {part.name for part in [*found, *named_parts(workflow, prompt)]}
            error = unknown_name(
                "part", key, existing, f"It is named in {_WHERE}; a part is a subgraph or group by its title, or a list of 'nodes'."
            )
            raise error


def _disjoint(placed: Mapping[NamedPart, Placement], prompt: Mapping[str, Any]) -> Iterable[PlacedPart]:
    """Yield the placed parts without the nodes of placed parts inside them. A part inside another with equal placement is merged into
    it.
    """
    parts = sorted((part for part in placed if part.nodes), key=lambda part: len(part.nodes))
    shared = Counter(part.name for part in parts)
    for number, part in enumerate(parts):
        overlapping = [other for other in parts[:number] + parts[number + 1 :] if not part.nodes.isdisjoint(other.nodes)]
        for other in overlapping:
            if not part.is_inside(other) and not other.is_inside(part):
                raise InvalidConfig(
                    f"{part} and {other} share nodes {format_options(part.nodes & other.nodes)}, and neither lies inside the other. "
                    "Place only one of them, or separate them.",
                    nodes=sorted(part.nodes & other.nodes),
                )
        outer = [other for other in overlapping if part.is_inside(other)]
        parent = next((other for other in outer if all(other.is_inside(next_) for next_ in outer if next_ is not other)), None)
        if placed[part].is_local or (parent is not None and placed[parent] == placed[part]):
            continue
        inner = (other.nodes for other in overlapping if other.is_inside(part) and placed[other] != placed[part])
        nodes = part.nodes.difference(*inner)
        if nodes:
            preferred = part.node_id if part.kind == SUBGRAPH and part.node_id not in prompt else None
            name = part.name if shared[part.name] == 1 else part.instance_name
            yield PlacedPart(Part(name, nodes, preferred), placed[part])


@dataclass(frozen=True)
class NamedPart:
    """A named set of nodes.

    ``path``: titles from the outermost subgraph down. ``source``: the definition, or a group of one; equal for all instances.
    ``node_id``: the subgraph node's id as in the prompt, such as ``7:6``. ``instance``: the same for a subgraph; for a group, the id
    of the subgraph node that contains it, or empty.
    """

    path: tuple[str, ...]
    kind: str
    source: tuple[str, ...]
    nodes: frozenset[str]
    node_id: str | None = None
    instance: str = ""
    pinned: Any = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Return the path as written in keys and messages."""
        return "/".join(self.path)

    @property
    def instance_name(self) -> str:
        """Return the name, with the instance if there may be several: ``Upscale (7)``."""
        return f"{self.name} ({self.instance})" if self.instance else self.name

    def is_named_by(self, key: str) -> bool:
        """Return whether a key is this part's path or a suffix of it, with or without the instance; a title may contain a slash."""
        ends = ["/".join(self.path[start:]) for start in range(len(self.path))]
        return key in ends or any(f"{end} ({self.instance})" == key for end in ends)

    def is_inside(self, other: NamedPart) -> bool:
        """Return whether another part contains this one. Of parts with equal nodes the order is selection, subgraph, group, workflow."""
        return self.nodes < other.nodes or (self.nodes == other.nodes and self._rank > other._rank)

    @property
    def _rank(self) -> tuple[int, int]:
        return (WORKFLOW, GROUP, SUBGRAPH, SELECTION).index(self.kind), len(self.path)

    def __str__(self) -> str:
        return f"{self.kind} {self.instance_name!r}"


def named_parts(workflow: Any, prompt: Mapping[str, Any], keys: Collection[str] | None = None) -> list[NamedPart]:
    """Return the subgraph nodes and groups of a workflow, outer ones first, with their nodes of the prompt (none if muted).

    ``keys`` limits them to parts that one of the keys could name and to subgraph nodes with an endpoint property.
    """
    drawn = _WorkflowReader(workflow)
    words = None if keys is None else {word for key in keys for word in _possible_titles(key)}
    if not drawn.has_any(words):
        return []
    return list(drawn.walk(drawn.root, (), "", _nodes_by_prefix(prompt), words))


def workflow_node_ids(workflow: Any) -> set[str]:
    """Return the ids of all nodes of a workflow, each as written in its own graph."""
    drawn = _WorkflowReader(workflow)
    return {str(node.get("id")) for graph in drawn.graphs for node in _entries(graph, "nodes")}


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
    def __init__(self, workflow: Any) -> None:
        self.root: Mapping[str, Any] = workflow if isinstance(workflow, Mapping) else {}
        definitions = self.root.get("definitions")
        subgraphs = _entries(definitions, "subgraphs") if isinstance(definitions, Mapping) else ()
        self._definitions = {entry["id"]: entry for entry in subgraphs if isinstance(entry.get("id"), str)}
        self.graphs = (self.root, *self._definitions.values())

    def has_any(self, words: Collection[str] | None) -> bool:
        """Return whether any title is in ``words``, or any subgraph node has an endpoint property."""
        for graph in self.graphs:
            for node in _entries(graph, "nodes"):
                definition = self._definition(node)
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
        for number, group in enumerate(_entries(graph, "groups")):
            title = group.get("title")
            if isinstance(title, str) and (words is None or title in words):
                members = (inside.get(f"{prefix}{node.get('id')}", ()) for node in _entries(graph, "nodes") if _is_in_group(node, group))
                yield NamedPart((*path, title), GROUP, (source, str(number)), frozenset().union(*members), instance=prefix[:-1])
        for node in _entries(graph, "nodes"):
            definition = self._definition(node)
            if definition is None:
                continue
            node_id, title, pin = f"{prefix}{node.get('id')}", _title(node, definition), _endpoint_property(node)
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
