"""How an input port joins the values of several edges (`PortAggregation`), in the order in which the edges were added."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.executor.program import AggregatedInput, InputBinding, Key
from yggdrasill.foundation.ports import Port, PortAggregation

__all__ = ["input_rule"]

Join = Callable[[Sequence[Key], Sequence[Any]], Any]


def input_rule(port: Port, sources: Sequence[Key], own: Key, default: Any) -> InputBinding | AggregatedInput:
    """What the executor does for ``port``: take the first present source, or join all of them; else the value given
    from outside under ``own``; else ``default``."""
    join = _JOINS.get(port.aggregation)
    if join is None:
        return InputBinding(port.name, (*sources, own), default)
    return AggregatedInput(port.name, tuple(sources), join, own, default)


def _concat(sources: Sequence[Key], values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, (list, str, tuple, bytes)):
        if any(type(value) is not type(first) for value in values):
            raise _cannot("concatenate", sources, values)
        return reduce(add, values)
    for module, join in (("torch", "cat"), ("numpy", "concatenate")):
        library = sys.modules.get(module)
        kind = getattr(library, "Tensor" if module == "torch" else "ndarray", None)
        if kind is not None and all(isinstance(value, kind) for value in values):
            return getattr(library, join)(tuple(values))
    raise _cannot("concatenate", sources, values)


def _sum(sources: Sequence[Key], values: Sequence[Any]) -> Any:
    try:
        return reduce(add, values)
    except TypeError:
        raise _cannot("add", sources, values) from None


def _dict(sources: Sequence[Key], values: Sequence[Any]) -> dict[str, Any]:
    return {f"{node}:{port}": value for (node, port), value in zip(sources, values, strict=True)}


def _cannot(verb: str, sources: Sequence[Key], values: Sequence[Any]) -> InvalidArgument:
    parts = ", ".join(f"{type(value).__name__} from {node}.{port}" for (node, port), value in zip(sources, values, strict=True))
    return InvalidArgument(f"cannot {verb} {parts}; the values of one port must be of one kind (lists, tuples, strings, tensors)")


_JOINS: dict[PortAggregation, Join] = {PortAggregation.CONCAT: _concat, PortAggregation.SUM: _sum, PortAggregation.DICT: _dict}
