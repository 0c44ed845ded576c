"""A plugin that registers the sample blocks and those of the sample world on an endpoint."""

from __future__ import annotations

from samples.blocks import register_samples
from samples.worlds import WORLD_BLOCKS
from yggdrasill.foundation import BlockRegistry

__all__ = ["REGISTRY"]

REGISTRY = BlockRegistry.global_registry()
register_samples(REGISTRY)
for block in WORLD_BLOCKS:
    REGISTRY.register(block.block_type, block)
