"""Table of facts about node classes and socket types of node packs: shipped with the package, extended by packs and by users.

A table is a YAML document ``{nodes: {CLASS: {stays, saves, reads_files, keep_together, with_outputs}}, types: {TYPE: transferable}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options
from yggdrasill.foundation.config import read_document
from yggdrasill.remote.partition.traits import HostFacts, NodeTraits

__all__ = ["TraitsTable", "read_traits", "shipped_traits"]

_SHIPPED = Path(__file__).with_name("node_traits.yaml")
_TEXTS = frozenset({"stays", "keep_together"})
_NAMES = tuple(each.name for each in fields(NodeTraits))
_TYPE_WORDS = {"transferable": True, "not transferable": False}


@dataclass(frozen=True)
class TraitsTable:
    """Traits by class, and by socket type whether its values are transferable. ``a | b`` merges two tables; ``b`` has precedence."""

    nodes: Mapping[str, NodeTraits] = field(default_factory=dict)
    types: Mapping[str, bool] = field(default_factory=dict)

    def __or__(self, other: TraitsTable) -> TraitsTable:
        return TraitsTable({**self.nodes, **other.nodes}, {**self.types, **other.types})

    def facts(self) -> HostFacts:
        """Return the facts of a server without files."""
        return HostFacts(self.nodes, self.types)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str) -> TraitsTable:
        """Build a table from a document. ``where`` names its source in messages.

        Raises:
            InvalidConfig
        """
        unknown = sorted(set(map(str, document)) - {"nodes", "types"})
        nodes, types = document.get("nodes") or {}, document.get("types") or {}
        if unknown or not isinstance(nodes, Mapping) or not isinstance(types, Mapping):
            raise InvalidConfig(
                f"{where}: a table of node traits must be {{nodes: {{...}}, types: {{...}}}}, got the keys {sorted(document)}."
            )
        for kind, word in types.items():
            if word not in _TYPE_WORDS:
                raise InvalidConfig(f"{where}: type {kind!r} is {word!r}. Available: {format_options(_TYPE_WORDS)}.")
        return cls(
            {str(name): _traits(str(name), entry, where) for name, entry in nodes.items()},
            {str(kind): _TYPE_WORDS[word] for kind, word in types.items()},
        )


def _traits(name: str, entry: Any, where: str) -> NodeTraits:
    if not isinstance(entry, Mapping) or not set(map(str, entry)) <= set(_NAMES):
        raise InvalidConfig(f"{where}: node class {name!r} has {entry!r}. Available keys: {format_options(_NAMES)}.")
    for key, value in entry.items():
        if not isinstance(value, str if key in _TEXTS else bool) or value == "":
            raise InvalidConfig(
                f"{where}: {key!r} of node class {name!r} must be {'a text' if key in _TEXTS else 'true or false'}, got {value!r}."
            )
    return replace(NodeTraits(), **dict(entry))


def read_traits(file: Path) -> TraitsTable:
    """Read a table from a YAML or JSON file.

    Raises:
        InvalidConfig: the file cannot be read, or is not a table.
    """
    return TraitsTable.from_dict(read_document(file), str(file))


@lru_cache(maxsize=1)
def shipped_traits() -> TraitsTable:
    """Return the table that is shipped with the package."""
    return read_traits(_SHIPPED)
