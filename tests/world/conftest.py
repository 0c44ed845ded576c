"""What the tests of worlds share: a record of what the hooks said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samples.worlds import canonical_world
from yggdrasill.world import World


class Events:
    """A callback that keeps (id, phase) and the facts of every call."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.facts: list[dict[str, Any]] = []

    def __call__(self, name: str, phase: str, **facts: Any) -> None:
        self.seen.append((name, phase))
        self.facts.append(facts)

    def of(self, phase: str) -> list[str]:
        return [name for name, seen in self.seen if seen == phase]

    def clear(self) -> None:
        self.seen.clear()
        self.facts.clear()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def world() -> World:
    return canonical_world()


@pytest.fixture
def stored(tmp_path: Path) -> World:
    world = canonical_world()
    world.set_storage(tmp_path / "snapshots")
    return world
