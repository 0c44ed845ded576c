"""Cutting parts out of a ComfyUI prompt, so that they can run somewhere else: pure, without ComfyUI, files, clocks or chance."""

from yggdrasill.remote.carve.carving import carve
from yggdrasill.remote.carve.description import describe
from yggdrasill.remote.carve.parts import MOST_PORTS, PLACED_NODE, CarvedCall, Carving, Part, PlacedInput, PlacedOutput, Relink
from yggdrasill.remote.carve.plugging import plug
from yggdrasill.remote.carve.schemas import InputSchema, NodeSchema, NodeSchemas

__all__ = [
    "MOST_PORTS",
    "PLACED_NODE",
    "CarvedCall",
    "Carving",
    "InputSchema",
    "NodeSchema",
    "NodeSchemas",
    "Part",
    "PlacedInput",
    "PlacedOutput",
    "Relink",
    "carve",
    "describe",
    "plug",
]
