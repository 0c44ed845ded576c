"""Lenient access to the world's texts: blocks 1, 4 and 5 may be dicts or plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = ["episode_of", "last_episode", "measures_of", "require_mapping", "text_of"]


def text_of(block: Any) -> str:
    """Return the text of a block: the value itself, or its entry ``text``."""
    if isinstance(block, Mapping):
        return str(block.get("text") or "")
    return "" if block is None else str(block)


def measures_of(description: Any) -> Mapping[str, Any]:
    """Return the measures of a description (block 4); empty if it is only text."""
    measures = description.get("measures") if isinstance(description, Mapping) else None
    return measures if isinstance(measures, Mapping) else {}


def last_episode(world: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the newest entry of the world's chronicle; empty without entries."""
    chronicle = world.get("chronicle")
    entry = chronicle[-1] if isinstance(chronicle, list | tuple) and chronicle else None
    return entry if isinstance(entry, Mapping) else {}


def episode_of(happening: Any, world: Mapping[str, Any]) -> int:
    """Return the number of the episode that ``happening`` starts; from the chronicle if ``happening`` has no number."""
    number = happening.get("episode") if isinstance(happening, Mapping) else None
    return number if isinstance(number, int) else int(last_episode(world).get("episode", 0)) + 1


def require_mapping(value: Any, port: str, block: str) -> Mapping[str, Any]:
    """Return ``value`` as a mapping, empty for None.

    Raises:
        InvalidArgument: ``value`` is not a mapping.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{block}: port {port!r} got a {type(value).__name__}; expected a dict")
    return value
