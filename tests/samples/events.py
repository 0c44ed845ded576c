"""A callback that records the calls of hooks."""

from __future__ import annotations

from typing import Any

__all__ = ["Events"]


class Events:
    """Records (id, phase) and the details of every call."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.facts: list[dict[str, Any]] = []

    def __call__(self, name: str, phase: str, **facts: Any) -> None:
        self.seen.append((name, phase))
        self.facts.append(facts)

    def of(self, phase: str) -> list[str]:
        """Return the ids of the calls of one phase, in order."""
        return [name for name, seen in self.seen if seen == phase]
