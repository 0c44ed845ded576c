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
from yggdrasill.remote.partition.traits import HostFacts, NodeTraits

__all__ = [
    "MOST_PORTS",
    "PLACED_NODE",
    "HostFacts",
    "InputSchema",
    "NodeSchema",
    "NodeSchemas",
    "NodeTraits",
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
