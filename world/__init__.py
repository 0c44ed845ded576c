"""Worlds: a ring of stages, its content, and its snapshots."""

from yggdrasill.stage.state import State
from yggdrasill.world.storage import Progress, WorldStorage
from yggdrasill.world.world import CANONICAL_CYCLE, World

__all__ = ["CANONICAL_CYCLE", "Progress", "State", "World", "WorldStorage"]
