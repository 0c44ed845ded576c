"""Configs that refer to files, made whole before they leave this machine: an endpoint reads no file that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yggdrasill.foundation.config import resolve_ref
from yggdrasill.foundation.kinds import kinds

__all__ = ["inline_refs"]


def inline_refs(config: Any, base_dir: str | Path | None, where: str) -> Any:
    """A graph, pipeline or stage config with every ``ref`` replaced by what it names.

    Raises:
        MissingFile, InvalidConfig
    """
    document, base = resolve_ref(config, base_dir, where)
    if not isinstance(document, Mapping):
        return document
    whole = dict(document)
    for keys in (kind.children for kind in kinds() if kind.children is not None):
        entries = whole.get(keys.key)
        if isinstance(entries, list):
            whole[keys.key] = [
                _entry(entry, keys.config_key, base, f"{where}, {keys.key}[{number}]") for number, entry in enumerate(entries)
            ]
    if isinstance(whole.get("nodes"), list):
        whole["nodes"] = [_node(node, base, f"{where}, nodes[{number}]") for number, node in enumerate(whole["nodes"])]
    return whole


def _entry(entry: Any, inner: str, base: Path | None, where: str) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    rest = {key: value for key, value in entry.items() if key not in ("ref", inner)}
    if isinstance(entry.get("ref"), str):
        return {**rest, inner: inline_refs({"ref": entry["ref"]}, base, where)}
    return {**rest, inner: inline_refs(entry[inner], base, where)} if entry.get(inner) is not None else entry


def _node(node: Any, base: Path | None, where: str) -> Any:
    if not isinstance(node, Mapping) or "config" not in node:
        return node
    return {**node, "config": resolve_ref(node["config"], base, f"{where}.config")[0]}
