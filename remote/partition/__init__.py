"""Cutting parts out of a ComfyUI prompt, so that they can run somewhere else: pure, without ComfyUI, files, clocks or chance."""

from yggdrasill.remote.partition.partitioning import partition_prompt
from yggdrasill.remote.partition.parts import (
    MOST_PORTS,
    PLACED_NODE,
    Part,
    PartCall,
    Partition,
    PlacedInput,
    PlacedOutput,
    Relink,
    describe,
    restore_prompt,
)
from yggdrasill.remote.partition.schemas import InputSchema, NodeSchema, NodeSchemas

__all__ = [
    "MOST_PORTS",
    "PLACED_NODE",
    "InputSchema",
    "NodeSchema",
    "NodeSchemas",
    "Part",
    "PartCall",
    "Partition",
    "PlacedInput",
    "PlacedOutput",
    "Relink",
    "describe",
    "partition_prompt",
    "restore_prompt",
]
