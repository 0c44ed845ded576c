"""Makes every sample block known to an endpoint, as recorders where they compute (`samples.recorders`) and as they are where they wait."""

from __future__ import annotations

import samples.served_blocks
from samples.recorders import register_recorders
from yggdrasill.foundation import BlockRegistry

__all__ = ["REGISTRY"]

REGISTRY = register_recorders(BlockRegistry.global_registry())
assert samples.served_blocks.Gate.block_type in REGISTRY
