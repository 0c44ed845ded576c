"""Reading a config: the children, edges, exposed ports and state contracts that a picture shows.

Errors name the entry that cannot be drawn. Types, ports and contracts are not validated here; the levels do that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options, unknown_message
from yggdrasill.foundation.kinds import Kind, detect_kind, find_kind, kinds

__all__ = [
    "BLOCK_HUES",
    "BLOCK_NAMES",
    "Child",
    "Connection",
    "Contract",
    "ExposedPort",
    "block_name",
    "child_keys",
    "child_of",
    "children",
    "condition_of",
    "connections",
    "contract_exposures",
    "entries",
    "exposures",
    "id_of",
    "level_of",
    "name_in",
    "nested",
    "read_contract",
]

BLOCK_NAMES: dict[str, str] = {
    "1": "what should happen",
    "2": "configuration",
    "3": "artifacts",
    "4": "description",
    "5": "what really happened",
}
"""Short descriptions of the five blocks of the canonical state."""
BLOCK_HUES: dict[str, str] = {"1": "blue", "2": "violet", "3": "teal", "4": "amber", "5": "rose"}
"""The hue of each canonical block."""
_NODES = ("nodes", "node_id")
"""Nodes of a graph are listed like children, and have no kind."""


@dataclass(frozen=True)
class Child:
    """A child of a level: its ``config``, or the ``ref`` or ``endpoint`` in place of a config."""

    id: str
    entry: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    ref: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class Connection:
    """An edge between two children of a level."""

    source: str
    source_port: str
    target: str
    target_port: str


@dataclass(frozen=True)
class ExposedPort:
    """A port of a child that is an input or output of the level; ``name`` is the external name."""

    name: str
    part: str
    port: str


@dataclass(frozen=True)
class Contract:
    """Blocks and fields that a stage reads and writes, as text (``"1"``, ``"glossary"``), and the ports they are mapped to."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: tuple[ExposedPort, ...]
    outputs: tuple[ExposedPort, ...]


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
    """Return the level and the mapping; raise `InvalidConfig` if ``config`` is not the config of a level."""
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
    """Return the config key of a kind's children and the key of a child's id; ``("", None)`` for a kind without children."""
    kind = find_kind(level)
    if kind.drawing == "nodes":
        return _NODES
    return ("", None) if kind.children is None else (kind.children.key, kind.children.id_key)


def children(config: Mapping[str, Any], level: str) -> list[Child]:
    """Return the nodes of a graph, graphs of a pipeline or pipelines of a stage; raise `InvalidConfig` for missing or duplicate ids."""
    key, id_key = child_keys(level)
    if id_key is None:
        return []
    found: dict[str, Child] = {}
    for index, entry in enumerate(entries(config, key)):
        name = name_in(entry, id_key, f"{key}[{index}]")
        if name in found:
            raise InvalidConfig(f"{key}[{index}] repeats the {id_key} {name!r}; ids must be unique within one {level}; rename one")
        found[name] = _child(name, entry, level)
    return list(found.values())


def connections(config: Mapping[str, Any], level: str, known: Iterable[str]) -> list[Connection]:
    """Return the edges; raise `InvalidConfig` for an edge to an unknown child."""
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
    """Return the entries of ``exposed_inputs`` or ``exposed_outputs`` (``key``), named by ``name`` or else ``child:port``."""
    parts = set(known)
    id_key = child_keys(level)[1] or "node_id"
    found = []
    for index, entry in enumerate(entries(config, key)):
        where = f"{key}[{index}]"
        part, port = name_in(entry, id_key, where), name_in(entry, "port_name", where)
        if part not in parts:
            raise InvalidConfig(f"{where}: {unknown_message('child', part, parts)}")
        found.append(ExposedPort(str(entry.get("name") or f"{part}:{port}"), part, port))
    return found


def entries(config: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """Return the list of mappings under ``key``; empty if it is absent."""
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidConfig(f"{key} is a {type(value).__name__}; expected a list of mappings")
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise InvalidConfig(f"{key}[{index}] is a {type(entry).__name__}; expected a mapping")
    return value


def condition_of(part: Child) -> str:
    """Return ``if world_update`` or ``if 1, 2`` for a child with a condition; empty if it always runs."""
    condition = part.entry.get("condition")
    if not condition:
        return ""
    return f"if {', '.join(str(key) for key in condition) if isinstance(condition, list | tuple) else condition}"


def name_in(entry: Mapping[str, Any], key: str, where: str) -> str:
    """Return the non-empty string under ``key`` of an entry; raise `InvalidConfig` if it is missing."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidConfig(
            f"{where} has no {key!r}; its keys are {format_options(str(name) for name in entry)}; give it a non-empty string"
        )
    return value


def child_of(name: str, config: Mapping[str, Any], entry: Mapping[str, Any]) -> Child:
    """Return a child given as a nested config, as ``{"ref": path}`` or with an ``endpoint_url``."""
    endpoint = config.get("endpoint_url") or entry.get("endpoint_url")
    ref = config.get("ref") or entry.get("ref")
    inner = config if level_of(config) else None
    return Child(name, entry, inner, str(ref) if ref and inner is None else None, str(endpoint) if endpoint else None)


def block_name(key: str) -> str:
    """Return ``1 what should happen`` for a canonical block, the key itself for any other."""
    return f"{key} {BLOCK_NAMES[key]}" if key in BLOCK_NAMES else key


def read_contract(stage: Mapping[str, Any]) -> Contract:
    """Return the ``state_contract`` of a stage config; empty if it is absent."""
    contract = stage.get("state_contract")
    if contract is None:
        return Contract((), (), (), ())
    if not isinstance(contract, Mapping):
        raise InvalidConfig(f"state_contract is a {type(contract).__name__}; expected a mapping with input_blocks and output_blocks")
    inputs, outputs = _mapping(contract, "mapping_input"), _mapping(contract, "mapping_output")
    reads = dict.fromkeys([*_keys(contract, "input_blocks"), *(entry.name for entry in inputs)])
    writes = dict.fromkeys([*_keys(contract, "output_blocks"), *(entry.name for entry in outputs)])
    return Contract(tuple(reads), tuple(writes), inputs, outputs)


def contract_exposures(
    contract: Contract, parts: Sequence[Child], links: Sequence[Connection]
) -> tuple[list[ExposedPort], list[ExposedPort]]:
    """Return the external inputs and outputs of a stage.

    A mapped port is used as it is. A block without a mapping connects to the port of its name (``2``, ``block_2``), else to the
    first or last children.
    """
    ids = {part.id for part in parts}
    for entry in (*contract.inputs, *contract.outputs):
        if entry.part not in ids:
            raise InvalidConfig(f"state_contract, {entry.name!r}: {unknown_message('pipeline', entry.part, ids)}")
    fed, leading = {link.target for link in links}, {link.source for link in links}
    first = [part for part in parts if part.id not in fed]
    last = [part for part in parts if part.id not in leading]
    inputs = _complete(contract.reads, contract.inputs, parts, first, "exposed_inputs")
    outputs = _complete(contract.writes, contract.outputs, parts, last, "exposed_outputs")
    return inputs, outputs


def _child(name: str, entry: Mapping[str, Any], level: str) -> Child:
    keys = find_kind(level).children
    if keys is None:
        return Child(name, entry)
    inner = entry.get(keys.config_key)
    return child_of(name, inner if isinstance(inner, Mapping) else entry, entry)


def _complete(
    keys: Sequence[str], mapped: Sequence[ExposedPort], parts: Sequence[Child], interface: Sequence[Child], exposed: str
) -> list[ExposedPort]:
    found = []
    for key in keys:
        explicit = [entry for entry in mapped if entry.name == key]
        named = explicit or [
            ExposedPort(key, part.id, port) for part in parts for port in (key, f"block_{key}") if port in _external(part, exposed)
        ]
        found += named or [ExposedPort(key, part.id, "") for part in interface]
    return [ExposedPort(block_name(entry.name), entry.part, entry.port) for entry in found]


def _external(part: Child, exposed: str) -> set[str]:
    """Return the external names in one list of exposed ports of a child's config."""
    listed = part.config.get(exposed) if part.config else None
    return {str(entry.get("name")) for entry in listed if isinstance(entry, Mapping)} if isinstance(listed, list | tuple) else set()


def _keys(contract: Mapping[str, Any], key: str) -> list[str]:
    value = contract.get(key) or []
    if not isinstance(value, list | tuple):
        raise InvalidConfig(f"state_contract.{key} is a {type(value).__name__}; expected a list of blocks and fields, such as [1, 2, 3]")
    return [str(block) for block in value]


def _mapping(contract: Mapping[str, Any], key: str) -> tuple[ExposedPort, ...]:
    """Return the entries of a mapping: each has block, stage_node_id and port, by name or as a list of the three."""
    value = contract.get(key) or []
    found = []
    for index, entry in enumerate(value if isinstance(value, list | tuple) else [value]):
        triple = [entry.get(name) for name in ("block", "stage_node_id", "port")] if isinstance(entry, Mapping) else entry
        if not isinstance(triple, list | tuple) or len(triple) != 3 or None in triple:
            raise InvalidConfig(
                f"state_contract.{key}[{index}] is not a triple of block, stage_node_id and port; write [1, 'pipeline', 'port']"
            )
        found.append(ExposedPort(*(str(item) for item in triple)))
    return tuple(found)
