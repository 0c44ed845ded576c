"""`procedural/climate`: temperature, rainfall and biomes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from yggdrasill.blocks.procedural.configuration import Terrain, read_terrain
from yggdrasill.blocks.procedural.fields import as_field, as_tensor, blur
from yggdrasill.blocks.procedural.noise import Field, fractal, unit_grid
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType

__all__ = ["BIOMES", "Climate"]

#: Names by index of the ``biomes`` map; 0 is water, the rest is land.
BIOMES = ("water", "ice", "tundra", "boreal forest", "steppe", "temperate forest", "desert", "savanna", "rainforest", "bare mountains")


class Climate(AbstractBaseBlock):
    """Computes temperature by latitude and height, rain by wind and slopes, biomes by both.

    In: ``elevation`` tensor [H, W] in metres, ``configuration`` dict. Out: ``temperature`` (degrees C, mean of the year)
    and ``rainfall`` (mm per year), float64 [H, W]; ``biomes`` uint8 [H, W], an index into `BIOMES`.
    The air cools 6.5 degrees per 1,000 m. Moist air is carried along the wind, takes up water over the sea and loses it
    over land, more where the ground rises, so there are rain shadows. Biomes follow a Whittaker diagram.
    """

    block_type = "procedural/climate"
    deterministic: ClassVar[bool] = True
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("elevation", PortDirection.IN, PortType.TENSOR)
        yield Port("configuration", PortDirection.IN, PortType.DICT)
        yield Port("temperature", PortDirection.OUT, PortType.TENSOR)
        yield Port("rainfall", PortDirection.OUT, PortType.TENSOR)
        yield Port("biomes", PortDirection.OUT, PortType.TENSOR)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        elevation = as_field(inputs["elevation"], "elevation", self.block_type)
        terrain = read_terrain(inputs["configuration"], self.block_type)
        temperature = _temperature(elevation, terrain)
        rainfall = _rainfall(elevation, terrain)
        biomes = _biomes(elevation, temperature, rainfall)
        return {"temperature": as_tensor(temperature), "rainfall": as_tensor(rainfall), "biomes": as_tensor(biomes)}


def _temperature(elevation: Field, terrain: Terrain) -> Field:
    x, y = unit_grid(elevation.shape[0])
    wobble = 3.2 * fractal(x, y, terrain.seed + 41, frequency=2.7, octaves=6, gain=0.55)
    return terrain.temperature + (y - 0.5) * terrain.latitudes * 0.62 + wobble - 0.0065 * np.maximum(elevation, 0.0)


def _rainfall(elevation: Field, terrain: Terrain) -> Field:
    """Return the rainfall of air that crosses the map in the wind's direction, one step per row or column, sheared by the wind's slope."""
    angle = np.deg2rad(terrain.wind)
    blow_x, blow_y = -np.sin(angle), np.cos(angle)
    flipped = abs(blow_y) > abs(blow_x)
    ground = elevation.T if flipped else elevation
    ahead, aside = (blow_y, blow_x) if flipped else (blow_x, blow_y)
    if ahead < 0:
        ground = ground[:, ::-1]
    rain = _march(np.maximum(ground, 0.0), ground > 0.0, aside / abs(ahead), terrain.width_km / ground.shape[1])
    if ahead < 0:
        rain = rain[:, ::-1]
    rain = blur(np.ascontiguousarray(rain.T if flipped else rain), elevation.shape[0] / 110.0)
    x, y = unit_grid(elevation.shape[0])
    rain = rain * (1.0 + 0.4 * fractal(x, y, terrain.seed + 43, frequency=3.7, octaves=4))
    return np.clip(terrain.rainfall * rain / 0.36, 0.0, None)


def _march(ground: Field, land: NDArray[np.bool_], slant: float, pixel: float) -> Field:
    rows, columns = ground.shape
    rain = np.empty_like(ground)
    at = np.arange(rows, dtype=np.float64) - slant
    low = np.floor(at).astype(np.int64)
    part = at - low
    first, second = np.clip(low, 0, rows - 1), np.clip(low + 1, 0, rows - 1)
    moist = np.full(rows, 0.8)
    before = ground[:, 0]
    gain, loss = 1.0 - np.exp(-pixel / 90.0), 1.0 - np.exp(-pixel / 420.0)
    for column in range(columns):
        moist = moist[first] * (1.0 - part) + moist[second] * part
        before = before[first] * (1.0 - part) + before[second] * part
        here = ground[:, column]
        climb = np.maximum(here - before, 0.0)
        wet = np.where(land[:, column], moist * np.minimum(loss + climb / 3800.0, 0.6), 0.0)
        rain[:, column] = np.where(land[:, column], moist * (0.36 + np.minimum(climb / pixel / 60.0, 0.8)), 0.5 * moist)
        moist = np.where(land[:, column], moist - 0.8 * wet, moist + (1.0 - moist) * gain)
        before = here
    return rain


def _biomes(elevation: Field, temperature: Field, rainfall: Field) -> NDArray[np.uint8]:
    need = 14.0 * np.clip(temperature, 0.0, 30.0)
    dry, moist = rainfall < 130.0 + need, rainfall > 330.0 + 1.6 * need
    cases = [
        (elevation <= 0.0, 0),
        (temperature < -9.0, 1),
        ((elevation > 2400.0) & (temperature < 3.0), 9),
        (temperature < -1.5, 2),
        (temperature < 5.5, 3),
        ((temperature < 19.0) & dry, 4),
        (temperature < 19.0, 5),
        (dry, 6),
        (moist & (rainfall > 1150.0), 8),
    ]
    desert = dry & (rainfall < 60.0 + 9.0 * np.clip(temperature, 0.0, 30.0)) & (temperature > 9.0)
    chosen = np.select(
        [test for test, _ in cases], [np.full(elevation.shape, index, dtype=np.uint8) for _, index in cases], default=np.uint8(7)
    )
    return np.where(desert & (elevation > 0.0) & (chosen != 9), np.uint8(6), chosen).astype(np.uint8)
