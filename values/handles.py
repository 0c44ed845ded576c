"""Handles: a value's description in place of the value, so that data can stay where it was made until somebody needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["Handle", "load_handles"]


@runtime_checkable
class Handle(Protocol):
    """A reference that may stand on an edge for a tensor; immutable, named by its content."""

    @property
    def dtype(self) -> str:
        """The tensor's dtype as torch spells it, such as ``float32``."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        ...

    @property
    def hash(self) -> str:
        """The name of the bytes."""
        ...

    def load(self) -> Any:
        """The value itself; fetched once, however often it is asked for."""
        ...


def load_handles(value: Any) -> Any:
    """``value`` with every handle in it, at any depth of lists, tuples and dicts, replaced by what it stands for.

    A container without handles comes back as the same object.
    """
    if isinstance(value, (str, bytes, int, float, type(None))):
        return value
    if isinstance(value, Mapping) and type(value) is dict:
        loaded = {key: load_handles(item) for key, item in value.items()}
        return value if all(loaded[key] is value[key] for key in value) else loaded
    if type(value) in (list, tuple):
        items = [load_handles(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    return value.load() if isinstance(value, Handle) else value
