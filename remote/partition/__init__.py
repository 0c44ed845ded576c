"""Partition of ComfyUI prompts: split a prompt into local nodes and calls. Pure: no ComfyUI, files, clocks or random numbers."""

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
