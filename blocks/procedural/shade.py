"""`procedural/shade`: the map as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from yggdrasill.blocks.procedural import palette
from yggdrasill.blocks.procedural.configuration import Terrain, read_terrain
from yggdrasill.blocks.procedural.fields import as_field, as_tensor, blur, smoothstep
from yggdrasill.blocks.procedural.noise import Field, unit_grid
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType

__all__ = ["Shade"]

#: Lights of the relief: azimuth and height in degrees, weight. The north-west is first, by the convention of maps.
_LIGHTS = ((315.0, 42.0, 0.62), (260.0, 50.0, 0.2), (10.0, 55.0, 0.18))


class Shade(AbstractBaseBlock):
    """Draws shaded relief: ground by climate, rock and snow by height, sea by depth, coasts, rivers and lakes;
    volcanoes are basalt, and the newest glows.

    In: ``elevation``, ``temperature``, ``rainfall``, ``discharge``, ``receiver``, ``rivers``, ``lakes`` (fields [H, W], outputs
    of the other terrain blocks) and ``configuration``. Out: ``image`` float32 [1, H, W, 3] in 0..1.
    Config: ``relief`` (default 1.0) strengthens the shadows, ``graticule`` and ``vignette`` (default true) can be switched off.
    """

    block_type = "procedural/shade"
    deterministic: ClassVar[bool] = True
    settings = (
        ConfigField("relief", "number", 1.0, 0.0, 10.0, meaning="strength of the shadows"),
        ConfigField("graticule", "boolean", True, meaning="thin lines of a map"),
        ConfigField("vignette", "boolean", True, meaning="darker corners"),
    )

    def declare_ports(self) -> Iterable[Port]:
        for name in ("elevation", "temperature", "rainfall", "discharge", "receiver", "rivers", "lakes"):
            yield Port(name, PortDirection.IN, PortType.TENSOR)
        yield Port("configuration", PortDirection.IN, PortType.DICT)
        yield Port("image", PortDirection.OUT, PortType.IMAGE)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        terrain = read_terrain(inputs["configuration"], self.block_type)
        names = [port.name for port in self.get_input_ports() if port.name != "configuration"]
        fields = {name: as_field(inputs[name], name, self.block_type) for name in names}
        shapes = {name: list(field.shape) for name, field in fields.items()}
        if len({field.shape for field in fields.values()}) > 1:
            raise InvalidArgument(f"{self.block_type}: the fields have shapes {shapes}; all must be fields of one map")
        relief = self.setting("relief")
        elevation, size = fields["elevation"], fields["elevation"].shape[0]
        land = elevation > 0.0
        slopes = _shading(elevation, terrain.pixel_km * terrain.size / size, relief)
        cover = smoothstep(0.2, 0.8, blur(land.astype(np.float64), 0.6 * size / 512, passes=1)) if size >= 256 else land.astype(np.float64)
        colour = _over(_sea(elevation, fields["temperature"], land, slopes), _ground(fields, slopes), cover)
        colour = _fire(colour, terrain, land)
        colour = _over(colour, palette.INK, 0.34 * 4.0 * cover * (1.0 - cover) + 0.16 * _rim(land))
        colour = _over(colour, palette.RIVER, _river_cover(fields))
        image = _finish(colour, graticule=self.setting("graticule"), vignette=self.setting("vignette"))
        return {"image": as_tensor(image[None].astype(np.float32))}


def _over(below: Field, above: Field | tuple[float, float, float], cover: Field) -> Field:
    mixed: Field = below + (np.asarray(above) - below) * cover[..., None]
    return mixed


def _shading(elevation: Field, pixel: float, relief: float) -> Field:
    """Return the light from several sides on the slopes, 1 on flat ground (Mark 1992, weighted lights)."""
    height = np.where(elevation > 0.0, elevation + 20.0, elevation * 0.16)
    height = blur(height, 0.5, passes=1)
    exaggeration = relief * 5.0 / (1000.0 * pixel) * (pixel / 2.34) ** 0.45
    down, right = np.gradient(height)
    down, right = down * exaggeration, right * exaggeration
    steep = 1.0 / np.sqrt(1.0 + right * right + down * down)
    total = np.zeros_like(height)
    for azimuth, tilt, weight in _LIGHTS:
        turn, rise = np.deg2rad(azimuth), np.deg2rad(tilt)
        towards_x, towards_y, towards_z = np.sin(turn) * np.cos(rise), -np.cos(turn) * np.cos(rise), np.sin(rise)
        lit = np.maximum(steep * (towards_z - right * towards_x - down * towards_y), 0.0)
        total += weight * lit / towards_z
    return total


def _ground(fields: dict[str, Field], light: Field) -> Field:
    elevation, temperature = fields["elevation"], fields["temperature"]
    colour = palette.ground_colour(temperature + 0.0025 * np.maximum(elevation, 0.0), fields["rainfall"])
    colour = _over(colour, palette.ROCK, 0.75 * smoothstep(1300.0, 3000.0, elevation))
    patches = temperature + 3.0 * (light - 1.0)
    colour = _over(colour, palette.SNOW, 0.95 * smoothstep(-2.0, -7.5, patches))
    shadow = np.clip(light, 0.0, 1.0)
    glow = np.clip(light - 1.0, 0.0, 1.0)
    tint = np.stack([0.28 + 0.72 * shadow, 0.31 + 0.69 * shadow, 0.42 + 0.58 * shadow], axis=-1)
    lit: Field = colour * tint + (255.0 - colour) * np.minimum(0.5 * glow, 0.42)[..., None] * np.array([1.0, 0.97, 0.86])
    return lit


def _fire(colour: Field, terrain: Terrain, land: NDArray[np.bool_]) -> Field:
    """Return the colours with dark basalt on the cones of volcanoes; the newest feature, if it is a volcano, glows at its summit."""
    x, y = unit_grid(colour.shape[0])
    for feature in terrain.features:
        if feature.kind == "volcano":
            far = np.sqrt((x - feature.x) ** 2 + (y - feature.y) ** 2) / feature.radius
            colour = _over(colour, palette.BASALT, 0.55 * smoothstep(0.6, 0.12, far) * land)
            if feature is terrain.features[-1]:
                colour = _over(
                    colour, palette.LAVA, (smoothstep(0.16, 0.05, far) + 0.35 * smoothstep(0.42, 0.05, far)).clip(0.0, 0.95) * land
                )
    return colour


def _sea(elevation: Field, temperature: Field, land: NDArray[np.bool_], light: Field) -> Field:
    size = elevation.shape[0]
    near = blur(land.astype(np.float64), size / 90.0)
    depth = np.minimum(elevation, -1.0)
    colour = palette.sea_colour(np.minimum(depth + 120.0 * near, 0.0))
    for stop, strength in ((0.40, 0.30), (0.24, 0.2), (0.11, 0.12)):
        line = np.exp(-(((near - stop) / 0.022) ** 2))
        colour = _over(colour, (226.0, 242.0, 240.0), strength * line)
    frozen = 0.9 * smoothstep(-3.6, -4.6, temperature)
    colour = _over(colour, palette.ICE, frozen)
    shaded: Field = colour * (0.9 + 0.1 * np.clip(light, 0.0, 1.4))[..., None]
    return shaded


def _rim(land: NDArray[np.bool_]) -> Field:
    """Return the land pixels that touch the sea."""
    rim = np.zeros_like(land)
    rim[1:] |= ~land[:-1]
    rim[:-1] |= ~land[1:]
    rim[:, 1:] |= ~land[:, :-1]
    rim[:, :-1] |= ~land[:, 1:]
    return (rim & land).astype(np.float64)


def _river_cover(fields: dict[str, Field]) -> Field:
    """Return the share of fresh water in each pixel: lakes, and rivers as soft lines through smoothed points."""
    discharge, rivers = fields["discharge"], fields["rivers"] > 0.0
    rows, columns = discharge.shape
    cells = np.flatnonzero(rivers)
    cover: Field = np.where(fields["lakes"] > 0.0, 0.85, 0.0)
    if cells.size == 0:
        return cover
    receiver = fields["receiver"].astype(np.int64).ravel()
    y, x = _smooth_course(cells, receiver, rows, columns)
    below = receiver[cells]
    flow = discharge.ravel()[cells]
    width = np.clip(np.sqrt(flow / max(float(flow.min()), 1e-9)) * 0.34, 0.4, 1.5) * max(columns / 512, 0.5)
    canvas = np.zeros((rows + 2) * (columns + 2))
    steps = 6
    for step in range(steps):
        t = (step + 0.5) / steps
        at_y, at_x = y[cells] * (1 - t) + y[below] * t + 1.0, x[cells] * (1 - t) + x[below] * t + 1.0
        top, left = np.floor(at_y).astype(np.int64), np.floor(at_x).astype(np.int64)
        v, u = at_y - top, at_x - left
        for dy, part_y in ((0, 1 - v), (1, v)):
            for dx, part_x in ((0, 1 - u), (1, u)):
                np.add.at(canvas, (top + dy) * (columns + 2) + left + dx, width * part_y * part_x / steps)
    drawn = np.clip(canvas.reshape(rows + 2, columns + 2)[1:-1, 1:-1] * 1.25, 0.0, 0.92)
    covered: Field = np.maximum(cover, drawn)
    return covered


def _smooth_course(cells: NDArray[np.int64], receiver: NDArray[np.int64], rows: int, columns: int) -> tuple[Field, Field]:
    """Return the positions of cells; river cells are moved towards their neighbours up and down the stream, so that D8 steps become bends."""
    y = np.repeat(np.arange(rows, dtype=np.float64), columns)
    x = np.tile(np.arange(columns, dtype=np.float64), rows)
    below = receiver[cells]
    for _ in range(3):
        for line in (y, x):
            count = np.bincount(below, minlength=line.size)
            above = np.bincount(below, weights=line[cells], minlength=line.size)
            upstream = np.where(count[cells] > 0, above[cells] / np.maximum(count[cells], 1), line[cells])
            line[cells] = 0.5 * line[cells] + 0.25 * line[below] + 0.25 * upstream
    return y, x


def _finish(colour: Field, *, graticule: bool, vignette: bool) -> Field:
    size = colour.shape[0]
    x, y = unit_grid(size)
    if graticule:
        gap = np.minimum(np.abs((x * 6.0) % 1.0 - 0.5), np.abs((y * 6.0) % 1.0 - 0.5)) * size / 6.0
        colour = _over(colour, palette.PAPER, 0.13 * np.clip(1.0 - gap, 0.0, 1.0))
    if vignette:
        far = np.sqrt((x - 0.5) ** 2 + (y - 0.5) ** 2)
        colour = colour * (1.0 - 0.2 * smoothstep(0.38, 0.75, far))[..., None]
    return np.clip(colour / 255.0, 0.0, 1.0)
