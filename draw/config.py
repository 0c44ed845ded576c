"""Reader of configs for drawing: parts, edges, exposed ports and ids, and an error for what cannot be drawn.

It does not validate: the kinds check types, ports and contracts when a config is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options
from yggdrasill.foundation.kinds import Kind, detect_kind, find_kind, kinds

__all__ = [
    "Child",
    "Connection",
    "ExposedPort",
    "child_keys",
    "children",
    "condition_of",
    "connections",
    "entries",
    "exposures",
    "id_of",
    "level_of",
    "name_in",
    "nested",
    "part",
]

#: The nodes of a graph are listed like children, and have no kind.
_NODES = ("nodes", "node_id")


@dataclass(frozen=True)
class Child:
    """One part of a config: its ``config``, or the ``ref`` or ``endpoint`` where its config is."""

    id: str
    entry: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    ref: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class Connection:
    """An edge between two parts of a level."""

    source: str
    source_port: str
    target: str
    target_port: str


@dataclass(frozen=True)
class ExposedPort:
    """A port of a part that is an input or output of the whole; ``name`` is the external key."""

    name: str
    part: str
    port: str


def level_of(config: object) -> str | None:
    """Return the name of the kind that a mapping describes by a key or its ``kind``; None if it describes none, or an unknown kind.

    An id alone does not make a config drawable, and neither does the url of a part that is described at an endpoint.
    """
    try:
        kind = detect_kind(config)
    except InvalidConfig:
        return None
    return None if kind is None or not isinstance(config, Mapping) or not _is_described(config, kind) else kind.name


def _is_described(config: Mapping[str, Any], kind: Kind) -> bool:
    return kind.boundary is not None and (isinstance(config.get("kind"), str) or any(mark in config for mark in kind.marks))


def nested(config: object, what: str = "config") -> tuple[str, Mapping[str, Any]]:
    """Return the kind's name and the mapping.

    Raises:
        InvalidConfig: it is no drawable config; the message names the keys that a drawable config has.
    """
    level = level_of(config)
    if level is None or not isinstance(config, Mapping):
        if isinstance(config, Mapping):
            found = f"its keys are {format_options(str(key) for key in config)}"
        else:
            found = f"it is a {type(config).__name__}, not a mapping"
        hint = "read the file its 'ref' names and draw that" if isinstance(config, Mapping) and "ref" in config else "pass one of these"
        marks = [f"{' or '.join(map(repr, kind.marks))} (a {kind.name})" for kind in kinds() if kind.marks and kind.boundary is not None]
        raise InvalidConfig(f"{what} cannot be drawn: {found}; a drawable config has {', '.join(marks)}; {hint}")
    return level, config


def id_of(config: Mapping[str, Any], level: str) -> str:
    """Return the id in a config, or the name of its kind."""
    return find_kind(level).id_of(config)


def child_keys(level: str) -> tuple[str, str | None]:
    """Return the config key of a kind's parts, and the key of a part's id in its entry; ``("", None)`` for a kind without parts."""
    kind = find_kind(level)
    if kind.drawing == "nodes":
        return _NODES
    return ("", None) if kind.children is None else (kind.children.key, kind.children.id_key)


def children(config: Mapping[str, Any], level: str) -> list[Child]:
    """Return the nodes of a graph, graphs of a pipeline, pipelines of a stage; every part needs an id of its own."""
    key, id_key = child_keys(level)
    if id_key is None:
        return []
    found: dict[str, Child] = {}
    for index, entry in enumerate(entries(config, key)):
        name = name_in(entry, id_key, f"{key}[{index}]")
        if name in found:
            raise InvalidConfig(f"{key}[{index}] repeats the {id_key} {name!r}; ids in one {level} must differ: rename one")
        found[name] = _child(name, entry, level)
    return list(found.values())


def connections(config: Mapping[str, Any], level: str, known: Iterable[str]) -> list[Connection]:
    """Return the edges; both ends must be parts of the config."""
    parts = set(known)
    found = []
    for index, entry in enumerate(entries(config, "edges")):
        where = f"edges[{index}]"
        edge = Connection(*(name_in(entry, key, where) for key in ("source_node", "source_port", "target_node", "target_port")))
        for end in (edge.source, edge.target):
            if end not in parts:
                spelled = f"{edge.source}.{edge.source_port} -> {edge.target}.{edge.target_port}"
                raise InvalidConfig(
                    f"{where} ({spelled}) names {end!r}, which is not in this {level}. Available: {format_options(parts, near=end)}."
                )
        found.append(edge)
    return found


def exposures(config: Mapping[str, Any], level: str, key: str, known: Iterable[str]) -> list[ExposedPort]:
    """Return the entries of ``exposed_inputs`` or ``exposed_outputs`` (``key``), named by ``name`` or else ``part:port``."""
    parts = set(known)
    id_key = child_keys(level)[1] or "node_id"
    found = []
    for index, entry in enumerate(entries(config, key)):
        where = f"{key}[{index}]"
        part, port = name_in(entry, id_key, where), name_in(entry, "port_name", where)
        if part not in parts:
            raise InvalidConfig(f"{where} names {part!r}, which is not in this {level}. Available: {format_options(parts, near=part)}.")
        found.append(ExposedPort(str(entry.get("name") or f"{part}:{port}"), part, port))
    return found


def entries(config: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """Return the list of mappings under ``key``; empty if it is absent."""
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidConfig(f"{key} is a {type(value).__name__}; a drawable config has a list of mappings there")
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise InvalidConfig(f"{key}[{index}] is a {type(entry).__name__}; a drawable config has a mapping there")
    return value


def condition_of(part: Child) -> str:
    """Return ``if world_update`` or ``if 1, 2`` for a part with a condition; an empty string for a part without one."""
    condition = part.entry.get("condition")
    if not condition:
        return ""
    return f"if {', '.join(str(key) for key in condition) if isinstance(condition, list | tuple) else condition}"


def name_in(entry: Mapping[str, Any], key: str, where: str) -> str:
    """Return the non-empty name under ``key`` of an entry."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidConfig(
            f"{where} has no {key!r}; its keys are {format_options(str(name) for name in entry)}; give it a non-empty string"
        )
    return value


def _child(name: str, entry: Mapping[str, Any], level: str) -> Child:
    keys = find_kind(level).children
    if keys is None:
        return Child(name, entry)
    own = entry.get(keys.config_key)
    return part(name, own if isinstance(own, Mapping) else entry, entry)


def part(name: str, config: Mapping[str, Any], entry: Mapping[str, Any]) -> Child:
    """Return the part of an entry that is a nested config, ``{"ref": path}``, or has an ``endpoint_url``."""
    endpoint = config.get("endpoint_url") or entry.get("endpoint_url")
    ref = config.get("ref") or entry.get("ref")
    own = config if level_of(config) else None
    return Child(name, entry, own, str(ref) if ref and own is None else None, str(endpoint) if endpoint else None)
