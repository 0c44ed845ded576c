"""A depth-first walk over nested values on a stack of its own, so that depth is a limit and never Python's recursion."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import GeneratorType
from typing import Any

from yggdrasill.values.limits import Limits

__all__ = ["Visit", "Walk"]

Visit = Generator[tuple[Any, Any], Any, Any]
"""What visiting a container is: it yields ``(step, part)``, is sent what became of the part, and returns the whole."""


class Walk:
    """One walk; ``steps`` are the indices and keys that lead from the root to the part being visited."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.steps: list[Any] = []
        self._items = 0

    def run(self, visit: Callable[[Any], Any], root: Any) -> Any:
        """What ``visit(root)`` returns, or, if that is a `Visit`, what it returns once all its parts are visited."""
        visits: list[Visit] = []
        part = root
        while True:
            result = visit(part)
            if isinstance(result, GeneratorType):
                self.limits.check("max_depth", len(visits) + 1)
                visits.append(result)
                self.steps.append(None)
                result = None
            while visits:
                try:
                    self.steps[-1], part = visits[-1].send(result)
                    break
                except StopIteration as finished:
                    visits.pop()
                    self.steps.pop()
                    result = finished.value
            else:
                return result

    def count(self, items: int) -> None:
        """Count ``items`` against ``max_items``."""
        self._items += items
        self.limits.check("max_items", self._items)
