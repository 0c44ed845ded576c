"""Placement keys: which nodes of a prompt run on endpoints, according to the request, the workflow's placements and the registry.

Precedence: the request (``extra_data.yggdrasill.graphs``), the placements that the editor stored for the workflow, the registry, a
subgraph node's property, local. The editor identifies a subgraph node or a group by its id, the others by a key: a part's path
``outer/inner`` or a suffix of it. Of several keys that match a part the longest applies, and a key that matches a part and others
inside it means the outermost. A key of several parts places all of them, unless it is the whole path of some. ``Upscale (7)`` is the
instance of node 7, and ``Upscale (group 3)`` the group with id 3. If a placed part lies inside another one, the inner part runs where it
is placed and the outer part has the remaining nodes. The key ``*`` is the whole prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from yggdrasill.errors import InvalidConfig, YggdrasillError, format_options, unknown_name
from yggdrasill.remote.partition.named_parts import (
    ENDPOINT_PROPERTY,
    SELECTION,
    SUBGRAPH,
    WORKFLOW,
    NamedPart,
    PartItem,
    named_parts,
    workflow_node_ids,
)
from yggdrasill.remote.partition.parts import Part
from yggdrasill.remote.placement import WHOLE, Placement

__all__ = [
    "PlacedPart",
    "PlacedParts",
    "StoredPlacement",
    "WorkflowParts",
    "parts_of",
    "uses_their_models",
    "workflow_id",
    "workflow_parts",
]

_EXTRA = "extra_data.yggdrasill"
_WHERE = f"{_EXTRA}.graphs"
_FORM = "{'graphs': {NAME: {'nodes': [ID], 'endpoint': ENDPOINT}}}"
_NO_ID = "00000000-0000-0000-0000-000000000000"
_MAX_ID = 200
_PROPERTY, _REGISTRY, _STORED, _REQUEST = range(4)
"""Where a placement is written; of several for one part the highest applies."""


@dataclass(frozen=True)
class StoredPlacement:
    """The placement of one part that the editor stored: its config, and the part's title at that time."""

    config: Any
    title: str


@dataclass(frozen=True)
class PlacedPart:
    """A part and its placement."""

    part: Part
    placement: Placement


@dataclass(frozen=True)
class PlacedParts:
    """The parts that run on endpoints, disjoint in nodes and names, and ``warnings`` for the caller.

    If a name has several instances, each name ends with its node's id: ``Upscale (7)``, or for a group ``Upscale (group 3)``.
    """

    parts: tuple[PlacedPart, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkflowParts:
    """All named parts of a workflow, and those that are placed directly."""

    named: tuple[NamedPart, ...]
    placed: Mapping[NamedPart, Placement]

    def placement_of(self, part: NamedPart) -> Placement | None:
        """Return the placement of a part, else that of the smallest placed part that contains it, else None."""
        if part in self.placed:
            return self.placed[part]
        around = [other for other in self.placed if part.nodes and part.is_inside(other)]
        smallest = min(around, key=lambda other: len(other.nodes), default=None)
        return None if smallest is None else self.placed[smallest]


def workflow_id(extra_data: Any) -> str | None:
    """Return the id of the workflow that a request names in ``extra_data.yggdrasill.workflow``, else of the one that it contains.

    Raises:
        InvalidConfig: malformed entries.
    """
    extra = extra_data if isinstance(extra_data, Mapping) else {}
    named = _entries_of(extra).get("workflow")
    if named is not None:
        if not isinstance(named, str) or not 0 < len(named) <= _MAX_ID:
            raise InvalidConfig(f"{_EXTRA}.workflow must be the id of a workflow, a text of up to {_MAX_ID} characters, got {named!r}")
        return named
    workflow = _workflow_of(extra)
    found = workflow.get("id") if isinstance(workflow, Mapping) else None
    return found if isinstance(found, str) and 0 < len(found) <= _MAX_ID and found != _NO_ID else None


def parts_of(
    prompt: Mapping[str, Any],
    extra_data: Any,
    placements: Mapping[str, Placement],
    endpoints: Collection[str],
    stored: Mapping[PartItem, StoredPlacement] | None = None,
) -> PlacedParts:
    """Return the parts of ``prompt`` that run on endpoints.

    ``extra_data`` is as posted, with the editor's workflow in ``extra_pnginfo``; ``placements`` are the registry's (those that match
    nothing belong to other workflows); ``endpoints`` are the known endpoint names; ``stored`` are the workflow's placements.

    Raises:
        InvalidConfig: malformed entries, parts of the workflow or the request that overlap partially, or stored placements that need
            the workflow, which the request omits.
        UnknownName: the request names a node or a part that does not exist.
        UnknownEndpoint
    """
    extra = extra_data if isinstance(extra_data, Mapping) else {}
    chosen, called = _caller_entries(extra, endpoints)
    workflow = _workflow_of(extra)
    by_item = _stored_placements(stored or {}, endpoints)
    keys = {*placements, *called}
    whole = [NamedPart((WHOLE,), WORKFLOW, (WORKFLOW,), frozenset(prompt))] if WHOLE in keys else []
    keys -= {WHOLE}
    found = [*_selections(chosen, prompt, workflow), *named_parts(workflow, prompt, keys, by_item)]
    if workflow is None:
        found += _subgraphs_by_prefix(by_item, stored or {}, prompt)
    if not found and not called and not whole:
        return PlacedParts()
    by_name = {part.name for part in found if part.kind == SELECTION}
    found = [part for part in found if part.kind == SELECTION or part.name not in by_name] + whole
    placed = _all_placed(found, placements, by_item, called, endpoints)
    _check_caller_names(called, found, workflow, prompt)
    if uses_their_models(workflow):
        placed = {part: (_with_their_models(placement), source) for part, (placement, source) in placed.items()}
    unplaced = [part.name for part in found if part.kind == SELECTION and part not in placed]
    hints = (
        [f"{_WHERE}: no placement for {format_options(unplaced)}, so it runs locally. Place it under 'graphs' of endpoints.yaml."]
        if unplaced
        else []
    )
    return PlacedParts(tuple(_disjoint(placed, prompt, hints)), tuple(hints))


def workflow_parts(
    prompt: Mapping[str, Any],
    workflow: Any,
    placements: Mapping[str, Placement],
    endpoints: Collection[str],
    stored: Mapping[PartItem, StoredPlacement],
) -> WorkflowParts:
    """Return all named parts of a workflow with their placements, for a request that names none; raise as `parts_of`."""
    named = named_parts(workflow, prompt)
    whole = [NamedPart((WHOLE,), WORKFLOW, (WORKFLOW,), frozenset(prompt))] if WHOLE in placements else []
    placed = _all_placed([*named, *whole], placements, _stored_placements(stored, endpoints), {}, endpoints)
    return WorkflowParts(tuple(named), {part: placement for part, (placement, _) in placed.items()})


def _all_placed(
    found: list[NamedPart],
    placements: Mapping[str, Placement],
    by_item: Mapping[PartItem, Placement],
    called: Mapping[str, Placement],
    endpoints: Collection[str],
) -> dict[NamedPart, tuple[Placement, int]]:
    """Return the placement of each part that is placed directly, and where it is written."""
    by_property = _placed_by_property(found, endpoints)
    by_id = {part: by_item[part.item] for part in found if part.item is not None and part.item in by_item}
    sources = ((_PROPERTY, by_property), (_REGISTRY, _placed_by_key(placements, found)), (_STORED, by_id))
    placed = {part: (placement, source) for source, group in sources for part, placement in group.items()}
    return placed | {part: (placement, _REQUEST) for part, placement in _placed_by_key(called, found).items()}


def _workflow_of(extra: Mapping[str, Any]) -> Any:
    png = extra.get("extra_pnginfo")
    return png.get("workflow") if isinstance(png, Mapping) else None


def _entries_of(extra: Mapping[str, Any]) -> Mapping[Any, Any]:
    """Return what a request says about placement. Raise `InvalidConfig` for any other form than that documented."""
    entries = extra.get("yggdrasill")
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        raise InvalidConfig(f"{_EXTRA} must be a mapping {_FORM}, got {type(entries).__name__}.")
    _check_keys(entries, ("graphs", "workflow"), _EXTRA, f"Names of parts belong below 'graphs': {_FORM}.")
    return entries


def _stored_placements(stored: Mapping[PartItem, StoredPlacement], endpoints: Collection[str]) -> dict[PartItem, Placement]:
    where = "the placement of {!r} in this workflow; place it again in the editor"
    return {item: Placement.of(each.config, endpoints, where.format(each.title)) for item, each in stored.items()}


def _subgraphs_by_prefix(
    by_item: Mapping[PartItem, Placement], stored: Mapping[PartItem, StoredPlacement], prompt: Mapping[str, Any]
) -> Iterator[NamedPart]:
    """Yield the stored parts of a request without the workflow: subgraph nodes, whose nodes have ids that begin with theirs."""
    unknown = [stored[item].title for item in by_item if item.graph or item.kind != SUBGRAPH]
    if unknown:
        raise InvalidConfig(
            f"This workflow has placements of {format_options(unknown)}, which the prompt alone does not contain. "
            "Send the workflow in extra_data.extra_pnginfo.workflow, or select the nodes in extra_data.yggdrasill.graphs."
        )
    for item in by_item:
        inside = frozenset(node_id for node_id in prompt if node_id.startswith(f"{item.id}:"))
        yield NamedPart((stored[item].title,), SUBGRAPH, (SUBGRAPH, item.id), inside, item.id, item.id, item=item)


def uses_their_models(workflow: Any) -> bool:
    """Return whether a workflow says that its parts use the endpoints' model files, whatever they contain (``extra.yggdrasill.models``)."""
    extra = workflow.get("extra") if isinstance(workflow, Mapping) else None
    entries = extra.get("yggdrasill") if isinstance(extra, Mapping) else None
    return isinstance(entries, Mapping) and entries.get("models") == "theirs"


def _with_their_models(placement: Placement) -> Placement:
    return placement if placement.is_local else replace(placement, models="theirs")


def _caller_entries(extra: Mapping[str, Any], endpoints: Collection[str]) -> tuple[dict[str, list[Any]], dict[str, Placement]]:
    """Return the request's entries: nodes by name, and placements by name."""
    chosen, called = {}, {}
    for name, entry in _request_graphs(extra).items():
        where = f"{_WHERE}.{name}"
        if not isinstance(entry, Mapping) or not entry:
            raise InvalidConfig(f"{where} must be a mapping with 'nodes', 'endpoint' or both, got {entry!r}.")
        _check_keys(entry, ("nodes", "endpoint"), where)
        if "nodes" in entry:
            if not isinstance(entry["nodes"], list) or not all(_is_node_id(node) for node in entry["nodes"]):
                raise InvalidConfig(f"{where}.nodes must be a list of node ids, got {entry['nodes']!r}.")
            chosen[str(name)] = entry["nodes"]
        if "endpoint" in entry:
            try:
                called[str(name)] = Placement.of(entry["endpoint"], endpoints, where)
            except YggdrasillError as error:
                error.details.setdefault("nodes", list(map(str, chosen.get(str(name), ()))))
                raise
    return chosen, called


def _request_graphs(extra: Mapping[str, Any]) -> Mapping[Any, Any]:
    graphs = _entries_of(extra).get("graphs")
    if graphs is not None and not isinstance(graphs, Mapping):
        raise InvalidConfig(f"{_WHERE} must be a mapping from names to {{'nodes', 'endpoint'}}, got {type(graphs).__name__}.")
    return graphs or {}


def _check_keys(entry: Mapping[Any, Any], available: Collection[str], where: str, advice: str = "") -> None:
    unknown = [str(key) for key in entry if key not in available]
    if unknown:
        word = "keys" if len(unknown) > 1 else "key"
        text = f"Unknown {word} {format_options(unknown)} in {where}. Available: {format_options(available)}. {advice}"
        raise InvalidConfig(text.rstrip())


def _is_node_id(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


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
        for part in _named_by(key, found):
            placed[part] = placements[key]
    return placed


def _named_by(key: str, found: list[NamedPart]) -> list[NamedPart]:
    """Return the parts that a key names."""
    matching = [part for part in found if part.nodes and part.is_named_by(key)]
    whole = {part.source for part in matching if key in {part.name, part.instance_name, part.unique_name}}
    matching = [part for part in matching if not whole or part.source in whole]
    return [part for part in matching if not any(part.is_inside(other) for other in matching)]


def _check_caller_names(called: Mapping[str, Placement], found: list[NamedPart], workflow: Any, prompt: Mapping[str, Any]) -> None:
    """Raise for a placed name of the request that matches nothing. A name whose nodes are all muted is accepted."""
    for key in called:
        if not any(part.is_named_by(key) for part in found):
            existing = {part.name for part in [*found, *named_parts(workflow, prompt)]}
            error = unknown_name(
                "part", key, existing, f"It is named in {_WHERE}; a part is a subgraph or group by its title, or a list of 'nodes'."
            )
            raise error


def _disjoint(placed: Mapping[NamedPart, tuple[Placement, int]], prompt: Mapping[str, Any], hints: list[str]) -> Iterator[PlacedPart]:
    """Yield the placed parts without the nodes of placed parts inside them. A part inside another with equal placement is merged into
    it. Of parts that overlap partially, one has the shared nodes (`_has_shared`); ``hints`` receives a line about it.
    """
    parts = sorted((part for part in placed if part.nodes), key=lambda part: len(part.nodes))
    placement_of = {part: placement for part, (placement, _) in placed.items()}
    found: list[tuple[NamedPart, frozenset[str]]] = []
    for number, part in enumerate(parts):
        overlapping = [other for other in parts[:number] + parts[number + 1 :] if not part.nodes.isdisjoint(other.nodes)]
        partial = [other for other in overlapping if not part.is_inside(other) and not other.is_inside(part)]
        lost = [other.nodes for other in partial if not _has_shared(part, other, placed, parts, hints)]
        outer = [other for other in overlapping if part.is_inside(other)]
        parent = next((other for other in outer if all(other.is_inside(next_) for next_ in outer if next_ is not other)), None)
        if placement_of[part].is_local or (parent is not None and placement_of[parent] == placement_of[part]):
            continue
        inner = (other.nodes for other in overlapping if other.is_inside(part) and placement_of[other] != placement_of[part])
        nodes = part.nodes.difference(*inner, *lost)
        if nodes:
            found.append((part, nodes))
    names = _distinct_names([part for part, _ in found], Counter(part.name for part in parts))
    for (part, nodes), name in zip(found, names, strict=True):
        preferred = part.node_id if part.kind == SUBGRAPH and part.node_id not in prompt else None
        yield PlacedPart(Part(name, nodes, preferred), placement_of[part])


def _has_shared(
    part: NamedPart, other: NamedPart, placed: Mapping[NamedPart, tuple[Placement, int]], order: list[NamedPart], hints: list[str]
) -> bool:
    """Return whether ``part`` has the nodes that it shares with ``other``: the placement of higher precedence, else the smaller part.

    Raises:
        InvalidConfig: the request or the workflow's placements place both, at different endpoints.
    """
    (placement, source), (other_placement, other_source) = placed[part], placed[other]
    is_first = order.index(part) < order.index(other)
    if placement == other_placement:
        return is_first
    if source != other_source:
        return source > other_source
    shared = part.nodes & other.nodes
    if source in (_STORED, _REQUEST):
        raise InvalidConfig(
            f"{part} and {other} share nodes {format_options(shared)}, and neither lies inside the other. "
            "Place only one of them, or separate them.",
            nodes=sorted(shared),
        )
    if is_first:
        hints.append(f"{part} and {other} share nodes {format_options(shared)}, which run with {part}.")
    return is_first


def _distinct_names(parts: list[NamedPart], named: Counter[str]) -> list[str]:
    """Return the names of parts; those of a name that several parts have end with the instance, and with the group's id if necessary."""
    names = [part.name if named[part.name] == 1 else part.instance_name for part in parts]
    shared = Counter(names)
    names = [name if shared[name] == 1 else part.unique_name for name, part in zip(names, parts, strict=True)]
    taken = Counter[str]()
    for number, name in enumerate(names):
        taken[name] += 1
        if taken[name] > 1:
            names[number] = f"{name} {taken[name]}"
    return names
