"""`procedural/erosion`: valleys cut by rivers, and slopes that slide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from yggdrasill.blocks.procedural.configuration import Terrain, read_terrain
from yggdrasill.blocks.procedural.drainage import accumulate, carve, fill_depressions, receivers
from yggdrasill.blocks.procedural.fields import as_field, as_tensor, resample
from yggdrasill.blocks.procedural.noise import Field
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType, current_run

__all__ = ["Erosion", "erode"]


class Erosion(AbstractBaseBlock):
    """Ages the ground: the older (``erosion`` 0..1), the deeper and wider its valleys.

    In: ``ground`` tensor [H, W] in metres, ``configuration`` dict. Out: ``elevation`` float64 tensor [H, W].
    Fluvial erosion is implicit stream power (Braun and Willett 2013) on a coarse grid first, then on finer ones, so that
    large valleys are cut before small ones; thermal erosion (Musgrave, Kolb and Mace 1989) moves ground that is steeper than
    the angle of repose.
    """

    block_type = "procedural/erosion"
    deterministic: ClassVar[bool] = True
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("ground", PortDirection.IN, PortType.TENSOR)
        yield Port("configuration", PortDirection.IN, PortType.DICT)
        yield Port("elevation", PortDirection.OUT, PortType.TENSOR)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        terrain = read_terrain(inputs["configuration"], self.block_type)
        return {"elevation": as_tensor(erode(as_field(inputs["ground"], "ground", self.block_type), terrain))}


def erode(height: Field, terrain: Terrain) -> Field:
    """Return the square field after its age of erosion, in metres; the sea floor is unchanged."""
    size = height.shape[0]
    levels = [level for level in (96, 192) if level < size] if size > 128 else []
    for level, steps in [*((level, 5) for level in levels), (size, 1 if levels else 5)]:
        current_run().check_cancelled()
        coarse = resample(height, level)
        worn = coarse
        for _ in range(steps):
            worn = _rain(worn, terrain, terrain.width_km / level, 1.0 / steps)
        change = worn - coarse
        floor = np.minimum(height, 3.0)
        height = np.where(height > 0.0, np.maximum(height + (change if level == size else resample(change, size)), floor), height)
    return _slide(height, terrain.width_km / size)


def _rain(height: Field, terrain: Terrain, pixel: float, share: float) -> Field:
    filled = fill_depressions(height)
    receiver = receivers(filled)
    area = accumulate(filled, receiver, np.full_like(height, pixel * pixel))
    strength = 3.0 * share * terrain.erosion * np.sqrt(area / 250.0) * (10.0 / pixel) ** 0.5
    worn = carve(filled * 0.5 + height * 0.5, filled, receiver, strength)
    land = height > 0.0
    return np.where(land, np.maximum(worn, 0.5), height)


def _slide(height: Field, pixel: float, steps: int = 6) -> Field:
    """Move ground that is steeper than the angle of repose to the lower neighbours, along rows and columns."""
    repose = 260.0 * pixel
    land = height > 0.0
    for _ in range(steps):
        moved = np.zeros_like(height)
        for axis in (0, 1):
            step = np.diff(height, axis=axis)
            slip = 0.2 * (np.maximum(step - repose, 0.0) - np.maximum(-step - repose, 0.0))
            if axis == 0:
                moved[:-1] += slip
                moved[1:] -= slip
            else:
                moved[:, :-1] += slip
                moved[:, 1:] -= slip
        height = height + moved
    return np.where(land, np.maximum(height, 0.5), np.minimum(height, 0.0))
