"""What the tests of worlds share."""

from __future__ import annotations

from pathlib import Path

import pytest

from samples.events import Events
from samples.worlds import canonical_world
from yggdrasill.world import World


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
