"""How blocks read their own config: a value of the right kind in its range, or an error that names both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument, choices

__all__ = ["choice", "number"]


def number(config: Mapping[str, Any], name: str, default: float, low: float, high: float, block: str) -> float:
    """A number from the config within ``low..high``.

    Raises:
        InvalidArgument: it is something else.
    """
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidArgument(f"{block}: config {name!r} is {value!r}; it must be a number from {low:g} to {high:g}", key=name)
    return float(value)


def choice(config: Mapping[str, Any], name: str, default: str, options: Iterable[str], block: str) -> str:
    """One of ``options`` from the config.

    Raises:
        InvalidArgument: it is something else.
    """
    value = config.get(name, default)
    known = list(options)
    if value not in known:
        raise InvalidArgument(f"{block}: config {name!r} is {value!r}; it can be {choices(known)}", key=name)
    return str(value)
