"""`procedural/heightfield`: continents, mountain ranges and detail from noise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from yggdrasill.blocks.procedural.configuration import Feature, Terrain, read_terrain
from yggdrasill.blocks.procedural.fields import as_tensor, smoothstep
from yggdrasill.blocks.procedural.noise import Field, fractal, ridged, unit_grid
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType

__all__ = ["Heightfield"]


class Heightfield(AbstractBaseBlock):
    """Generates the ground of a world before erosion.

    In: ``configuration`` dict (`procedural.configuration.KEYS`). Out: ``elevation`` float64 tensor [size, size], metres
    above the present sea. Continents are ellipses scattered by the seed, bent by domain warping and broken by fractal
    noise; ranges are ridged noise along belts; ``features`` (volcanoes, ranges, basins, craters) are laid on top, lower on
    high ground and higher out of the deep. The first sea leaves the share ``land`` dry, then rises by
    ``sea_level``, so that the same seed is always the same world.
    """

    block_type = "procedural/heightfield"
    deterministic: ClassVar[bool] = True
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("configuration", PortDirection.IN, PortType.DICT)
        yield Port("elevation", PortDirection.OUT, PortType.TENSOR)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        terrain = read_terrain(inputs["configuration"], self.block_type)
        x, y = unit_grid(terrain.size)
        coast = _coast(terrain, x, y)
        height = _relief(terrain, x, y, coast)
        for feature in terrain.features:
            change = _feature(terrain, feature, x, y)
            height += np.where(change > 0.0, change * np.clip(1.0 - height / 4500.0, 0.2, 1.7), change)
        return {"elevation": as_tensor(height - terrain.sea_level)}


def _coast(terrain: Terrain, x: Field, y: Field) -> Field:
    """Return how far inland (above 0) or out at sea (below 0) each point is, about -1..1."""
    seed, reach = terrain.seed, 0.04 + 0.14 * terrain.warp
    bend_x = x + reach * fractal(x, y, seed + 11, frequency=2.1, octaves=4)
    bend_y = y + reach * fractal(x, y, seed + 12, frequency=2.1, octaves=4)
    shape = 0.62 * _scatter(terrain, bend_x, bend_y)
    broad = 1.4 + 0.8 * terrain.continents**0.5
    shape += (0.6 + 0.4 * terrain.roughness) * fractal(bend_x, bend_y, seed + 13, frequency=broad, octaves=min(terrain.octaves, 4))
    shape += (0.1 + 0.5 * terrain.roughness) * fractal(x, y, seed + 14, frequency=8.0, octaves=min(terrain.octaves, 7), gain=0.58)
    rim = (np.abs(2.0 * x - 1.0 + 1.2 * (bend_x - x)) ** 2.5 + np.abs(2.0 * y - 1.0 + 1.2 * (bend_y - y)) ** 2.5) ** 0.4
    shape -= 1.5 * smoothstep(0.6, 1.15, rim)
    rank = int((1.0 - terrain.land) * (shape.size - 1))
    return np.asarray(shape - np.partition(shape.ravel(), rank)[rank])


def _scatter(terrain: Terrain, x: Field, y: Field) -> Field:
    """Return soft ellipses around scattered points, from -1 far away to about 0.8 in their centres."""
    rng = np.random.Generator(np.random.PCG64(terrain.seed))
    places: list[tuple[float, float]] = []
    for _ in range(terrain.continents):
        tries = rng.uniform(0.2, 0.8, size=(10, 2))
        gaps = [min(((a - u) ** 2 + (b - v) ** 2 for u, v in places), default=1.0) for a, b in tries]
        a, b = tries[int(np.argmax(gaps))]
        places.append((float(a), float(b)))
    shape = np.full_like(x, -1.0)
    for a, b in places:
        size = rng.uniform(0.7, 1.3) * 0.36 / terrain.continents**0.5
        turn, stretch = rng.uniform(0.0, np.pi), rng.uniform(1.0, 1.8)
        u = ((x - a) * np.cos(turn) + (y - b) * np.sin(turn)) / (size * stretch)
        v = ((y - b) * np.cos(turn) - (x - a) * np.sin(turn)) / size * stretch**0.5
        shape = np.maximum(shape, 1.8 * np.exp(-0.6 * (u * u + v * v)) - 1.0)
    return shape


def _relief(terrain: Terrain, x: Field, y: Field, coast: Field) -> Field:
    """Return the height in metres above the first sea."""
    seed = terrain.seed
    fine = fractal(x, y, seed + 31, frequency=9.0, octaves=terrain.octaves, gain=0.42 + 0.16 * terrain.roughness)
    inland = smoothstep(0.0, 0.55, coast)
    hills = (0.05 + 0.06 * terrain.roughness) * terrain.relief * inland * np.maximum(1.0 + 1.3 * fine, 0.0)
    plains = 40.0 * smoothstep(0.0, 0.08, coast) + 420.0 * np.maximum(coast, 0.0) + hills
    belt = 1.0 - np.abs(fractal(x, y, seed + 21, frequency=1.9, octaves=3)) * 2.1
    cover = smoothstep(0.95 - 0.9 * terrain.mountains, 1.05 - 0.35 * terrain.mountains, belt)
    crest = ridged(x, y, seed + 22, frequency=5.5, octaves=min(terrain.octaves, 6), gain=0.48)
    ranges = terrain.relief * cover * smoothstep(0.02, 0.4, coast) * (0.25 + 1.05 * crest + 0.1 * fine)
    shelf = -130.0 * smoothstep(0.0, -0.12, coast) - 3600.0 * smoothstep(-0.1, -0.85, coast) ** 0.8
    floor = shelf * (1.0 + 0.22 * fine) - 20.0 * smoothstep(0.0, -0.04, coast)
    return np.where(coast > 0.0, plains + ranges + 2.0, floor)


def _feature(terrain: Terrain, feature: Feature, x: Field, y: Field) -> Field:
    """Return the metres that one feature adds; its outline is roughened by separate noise."""
    noise_seed = terrain.seed + 1000 + int(feature.x * 4096) * 4099 + int(feature.y * 4096)
    rough = fractal(x, y, noise_seed, frequency=0.9 / feature.radius, octaves=4)
    dx, dy = x - feature.x, y - feature.y
    if feature.kind == "range":
        turn = np.deg2rad(feature.angle)
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        far = np.sqrt((along / 2.2) ** 2 + (across * 2.0) ** 2) / feature.radius
        crest = ridged(x, y, noise_seed + 5, frequency=1.6 / feature.radius, octaves=5)
        return feature.height * smoothstep(1.0, 0.0, far + 0.25 * rough) * (0.35 + 0.9 * crest)
    far = np.sqrt(dx * dx + dy * dy) / feature.radius + 0.22 * rough
    if feature.kind == "basin":
        return -feature.height * smoothstep(1.0, 0.15, far)
    if feature.kind == "crater":
        return feature.height * (0.45 * np.exp(-(((far - 0.75) / 0.16) ** 2)) - smoothstep(0.8, 0.35, far))
    cone = np.clip(1.0 - far, 0.0, None) ** 1.6
    return feature.height * np.where(far < 0.1, 0.72, 1.25 * cone) + 0.08 * feature.height * smoothstep(1.3, 0.6, far)
