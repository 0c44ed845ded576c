"""A plugin that registers every sample block: recorders (`samples.recorders`) for blocks that compute, and gates unchanged."""

from __future__ import annotations

import samples.served_blocks
from samples.recorders import register_recorders
from yggdrasill.foundation import BlockRegistry

__all__ = ["REGISTRY"]

REGISTRY = register_recorders(BlockRegistry.global_registry())
assert samples.served_blocks.Gate.block_type in REGISTRY
