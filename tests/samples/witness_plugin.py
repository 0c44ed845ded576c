"""Makes every sample block known to an endpoint, as witnesses where they compute (`samples.witnesses`) and as they are where they wait."""

from __future__ import annotations

import samples.served_blocks
from samples.witnesses import register_witnesses
from yggdrasill.foundation import BlockRegistry

__all__ = ["REGISTRY"]

REGISTRY = register_witnesses(BlockRegistry.global_registry())
assert samples.served_blocks.Gate.block_type in REGISTRY
