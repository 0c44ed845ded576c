"""The colours of a terrain map, sRGB 0..255, with interpolation between their stops."""

from __future__ import annotations

import numpy as np

from yggdrasill.blocks.procedural.noise import Field

__all__ = ["BASALT", "ICE", "INK", "LAVA", "PAPER", "RIVER", "ROCK", "SNOW", "ground_colour", "sea_colour"]

SNOW = (246.0, 248.0, 250.0)
ICE = (226.0, 236.0, 240.0)
ROCK = (146.0, 132.0, 120.0)
BASALT = (88.0, 74.0, 72.0)
LAVA = (238.0, 118.0, 52.0)
RIVER = (54.0, 108.0, 152.0)
INK = (52.0, 58.0, 66.0)
PAPER = (250.0, 244.0, 230.0)

_DEPTHS = np.array([-5500.0, -3500.0, -2000.0, -900.0, -250.0, -80.0, 0.0])
_SEA = np.array(
    [(34, 66, 104), (45, 84, 125), (60, 108, 149), (84, 138, 172), (116, 170, 192), (144, 193, 204), (176, 213, 214)], dtype=float
)

_WARMTH = np.array([-12.0, -4.0, 3.0, 10.0, 18.0, 26.0])
_RAIN = np.array([0.0, 300.0, 650.0, 1100.0, 1800.0])
#: One row per `_WARMTH`, one column per `_RAIN`.
_GROUND = np.array(
    [
        [(236, 238, 238), (238, 241, 242), (240, 243, 245), (242, 245, 247), (244, 247, 249)],
        [(198, 192, 176), (190, 188, 170), (182, 186, 166), (176, 186, 168), (178, 190, 176)],
        [(196, 184, 150), (172, 172, 132), (136, 154, 114), (108, 138, 104), (98, 130, 104)],
        [(216, 198, 152), (194, 188, 134), (150, 170, 108), (112, 148, 92), (92, 134, 88)],
        [(231, 205, 152), (216, 198, 138), (172, 180, 108), (118, 154, 86), (84, 136, 80)],
        [(236, 204, 146), (228, 200, 136), (192, 184, 104), (126, 156, 78), (70, 124, 70)],
    ],
    dtype=float,
)


def sea_colour(depth: Field) -> Field:
    """Return the colours [..., 3] of the sea at ``depth`` (metres, negative)."""
    return np.stack([np.interp(depth, _DEPTHS, _SEA[:, channel]) for channel in range(3)], axis=-1)


def ground_colour(temperature: Field, rainfall: Field) -> Field:
    """Return the colours [..., 3] of land by degrees C and mm per year, bilinear between the chart's entries."""
    row, down = _place(temperature, _WARMTH)
    column, across = _place(rainfall, _RAIN)
    down, across = down[..., None], across[..., None]
    upper = _GROUND[row, column] * (1 - across) + _GROUND[row, column + 1] * across
    lower = _GROUND[row + 1, column] * (1 - across) + _GROUND[row + 1, column + 1] * across
    colour: Field = upper * (1 - down) + lower * down
    return colour


def _place(values: Field, stops: Field) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], Field]:
    at = np.interp(values, stops, np.arange(len(stops), dtype=float))
    index = np.minimum(at.astype(np.int64), len(stops) - 2)
    return index, at - index
