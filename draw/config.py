"""Reads what a picture needs out of a config mapping, and says what is wrong with one that cannot be drawn.

Not a validator: types, ports and contracts are the business of the levels themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options, unknown_message

__all__ = [
    "Child",
    "Connection",
    "ExposedPort",
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

_DRAWABLE = "a drawable config has 'nodes' (a graph), 'graphs' (a pipeline), 'pipelines' (a stage), or 'cycle' and 'stages' (a world)"
_LEVEL_KEYS = (("cycle", "world"), ("stages", "world"), ("pipelines", "stage"), ("graphs", "pipeline"), ("nodes", "graph"))
_CHILDREN = {"graph": ("nodes", "node_id"), "pipeline": ("graphs", "pipeline_node_id"), "stage": ("pipelines", "stage_node_id")}
_IDS = {"graph": "graph_id", "pipeline": "pipeline_id", "stage": "stage_id", "world": "world_id"}


@dataclass(frozen=True)
class Child:
    """One part of a level: its own ``config``, or the ``ref`` or ``endpoint`` that stands for it."""

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
    """``graph``, ``pipeline``, ``stage`` or ``world`` by the keys of the mapping; None if it is none of them."""
    if not isinstance(config, Mapping):
        return None
    return next((level for key, level in _LEVEL_KEYS if key in config), None)


def nested(config: object, what: str = "config") -> tuple[str, Mapping[str, Any]]:
    """The level and the mapping; `InvalidConfig` tells what a drawable config looks like."""
    level = level_of(config)
    if level is None or not isinstance(config, Mapping):
        if isinstance(config, Mapping):
            found = f"its keys are {format_options(str(key) for key in config)}"
        else:
            found = f"it is a {type(config).__name__}, not a mapping"
        hint = "read the file its 'ref' names and draw that" if isinstance(config, Mapping) and "ref" in config else "pass one of these"
        raise InvalidConfig(f"{what} cannot be drawn: {found}; {_DRAWABLE}; {hint}")
    return level, config


def id_of(config: Mapping[str, Any], level: str) -> str:
    """The id a config gives itself, or the name of its level."""
    return str(config.get(_IDS[level]) or level)


def children(config: Mapping[str, Any], level: str) -> list[Child]:
    """The nodes of a graph, graphs of a pipeline, pipelines of a stage; ids must be there and differ."""
    key, id_key = _CHILDREN[level]
    found: dict[str, Child] = {}
    for index, entry in enumerate(entries(config, key)):
        name = name_in(entry, id_key, f"{key}[{index}]")
        if name in found:
            raise InvalidConfig(f"{key}[{index}] repeats the {id_key} {name!r}; ids in one {level} differ: rename one")
        found[name] = _child(name, entry, level)
    return list(found.values())


def connections(config: Mapping[str, Any], level: str, known: Iterable[str]) -> list[Connection]:
    """The edges, each between parts that exist."""
    parts = set(known)
    found = []
    for index, entry in enumerate(entries(config, "edges")):
        where = f"edges[{index}]"
        edge = Connection(*(name_in(entry, key, where) for key in ("source_node", "source_port", "target_node", "target_port")))
        for end in (edge.source, edge.target):
            if end not in parts:
                spelled = f"{edge.source}.{edge.source_port} -> {edge.target}.{edge.target_port}"
                raise InvalidConfig(f"{where} ({spelled}): {unknown_message('child', end, parts)}")
        found.append(edge)
    return found


def exposures(config: Mapping[str, Any], level: str, key: str, known: Iterable[str]) -> list[ExposedPort]:
    """The entries of ``exposed_inputs`` or ``exposed_outputs`` (``key``), named by ``name`` or else ``part:port``."""
    parts = set(known)
    id_key = _CHILDREN[level][1]
    found = []
    for index, entry in enumerate(entries(config, key)):
        where = f"{key}[{index}]"
        part, port = name_in(entry, id_key, where), name_in(entry, "port_name", where)
        if part not in parts:
            raise InvalidConfig(f"{where}: {unknown_message('child', part, parts)}")
        found.append(ExposedPort(str(entry.get("name") or f"{part}:{port}"), part, port))
    return found


def entries(config: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """The list of mappings under ``key``; empty if it is absent."""
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
    """``if world_update`` or ``if 1, 2`` for a part that only runs on a condition; empty if it always runs."""
    condition = part.entry.get("condition")
    if not condition:
        return ""
    return f"if {', '.join(str(key) for key in condition) if isinstance(condition, list | tuple) else condition}"


def name_in(entry: Mapping[str, Any], key: str, where: str) -> str:
    """The non-empty name under ``key`` of an entry."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidConfig(
            f"{where} has no {key!r}; its keys are {format_options(str(name) for name in entry)}; give it a non-empty string"
        )
    return value


def _child(name: str, entry: Mapping[str, Any], level: str) -> Child:
    if level == "graph":
        return Child(name, entry)
    own = entry.get("graph_config" if level == "pipeline" else "pipeline_config")
    return part(name, own if isinstance(own, Mapping) else entry, entry)


def part(name: str, config: Mapping[str, Any], entry: Mapping[str, Any]) -> Child:
    """A part given as a nested config, as ``{"ref": path}`` or with an ``endpoint_url``."""
    endpoint = config.get("endpoint_url") or entry.get("endpoint_url")
    ref = config.get("ref") or entry.get("ref")
    own = config if level_of(config) else None
    return Child(name, entry, own, str(ref) if ref and own is None else None, str(endpoint) if endpoint else None)
