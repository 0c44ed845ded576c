"""The shapes that the world's words travel in, read leniently: block 1, 4 and 5 may be dicts or plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = ["episode_of", "last_episode", "measures_of", "require_mapping", "text_of"]


def text_of(block: Any) -> str:
    """The words of a block: the text itself, or what is under ``text``."""
    if isinstance(block, Mapping):
        return str(block.get("text") or "")
    return "" if block is None else str(block)


def measures_of(description: Any) -> Mapping[str, Any]:
    """The measures of a description (block 4); empty if it is only text."""
    measures = description.get("measures") if isinstance(description, Mapping) else None
    return measures if isinstance(measures, Mapping) else {}


def last_episode(world: Mapping[str, Any]) -> Mapping[str, Any]:
    """The newest entry of the world's chronicle; empty if there is none."""
    chronicle = world.get("chronicle")
    entry = chronicle[-1] if isinstance(chronicle, list | tuple) and chronicle else None
    return entry if isinstance(entry, Mapping) else {}


def episode_of(happening: Any, world: Mapping[str, Any]) -> int:
    """The number of the episode that ``happening`` opens; from the chronicle if it does not say."""
    number = happening.get("episode") if isinstance(happening, Mapping) else None
    return number if isinstance(number, int) else int(last_episode(world).get("episode", 0)) + 1


def require_mapping(value: Any, port: str, block: str) -> Mapping[str, Any]:
    """``value`` as a mapping, empty if it is None.

    Raises:
        InvalidArgument: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{block}: port {port!r} got a {type(value).__name__}; it takes a dict")
    return value
