"""`procedural/measure`: measures of a map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from yggdrasill.blocks.procedural.climate import BIOMES
from yggdrasill.blocks.procedural.fields import as_field
from yggdrasill.blocks.procedural.noise import Field
from yggdrasill.errors import InvalidArgument, format_options
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType

__all__ = ["Measure", "compass", "label_bodies"]

_FIELDS = ("elevation", "temperature", "rainfall", "discharge", "receiver", "rivers", "lakes", "biomes")


class Measure(AbstractBaseBlock):
    """Measures the artifacts, independently of the configuration they were made from.

    In: ``artifacts`` dict, the output of `procedural/atlas`. Out: ``measures`` dict of plain values: ``land_share`` (0..1),
    ``land_km2``, ``lands`` (bodies of land larger than 0.05 % of the map), ``largest_land_share`` (of the land),
    ``mean_height_m``, ``deepest_m``, ``mean_temperature`` (degrees C) and ``mean_rainfall`` (mm per year) on land,
    ``peaks`` (highest first, at least a ninth of the map apart), ``rivers``, ``lakes``, ``biomes`` (share of the land by
    name). Places have ``x`` and ``y`` in 0..1 and ``where``, the part of the map in words.
    Config: ``peaks`` (default 5), how many to list.
    """

    block_type = "procedural/measure"
    deterministic: ClassVar[bool] = True
    settings = (ConfigField("peaks", "integer", 5, 0, 50, meaning="number of peaks in the list"),)

    def declare_ports(self) -> Iterable[Port]:
        yield Port("artifacts", PortDirection.IN, PortType.DICT)
        yield Port("measures", PortDirection.OUT, PortType.DICT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        artifacts = inputs["artifacts"]
        missing = [name for name in (*_FIELDS, "width_km") if name not in artifacts] if isinstance(artifacts, Mapping) else list(_FIELDS)
        if missing:
            raise InvalidArgument(f"{self.block_type}: the artifacts lack {format_options(missing)}; pass the output of procedural/atlas")
        fields = {name: as_field(artifacts[name], name, self.block_type) for name in _FIELDS}
        elevation = fields["elevation"]
        pixel = float(artifacts["width_km"]) / elevation.shape[1]
        land = elevation > 0.0
        count = int(land.sum())
        bodies = _bodies(land)
        over = elevation[land] if count else np.zeros(1)
        measures = {
            "land_share": round(count / land.size, 4),
            "land_km2": round(count * pixel * pixel),
            "lands": bodies[0],
            "largest_land_share": bodies[1],
            "mean_height_m": round(float(over.mean())),
            "deepest_m": round(-float(min(elevation.min(), 0.0))),
            "mean_temperature": round(float(fields["temperature"][land].mean()), 1) if count else 0.0,
            "mean_rainfall": round(float(fields["rainfall"][land].mean())) if count else 0,
            "peaks": _peaks(elevation, self.setting("peaks")),
            "rivers": _rivers(fields, pixel),
            "lakes": _lakes(fields["lakes"] > 0.0, pixel),
            "biomes": _biomes(fields["biomes"].astype(np.int64)[land]),
        }
        return {"measures": measures}


def compass(x: float, y: float) -> str:
    """Return the part of the map in words: ``the north-east``, ``the middle``."""
    row = "north" if y < 0.37 else "south" if y > 0.63 else ""
    column = "west" if x < 0.37 else "east" if x > 0.63 else ""
    return f"the {'-'.join(part for part in (row, column) if part) or 'middle'}"


def label_bodies(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return a label per cell, equal within each 4-connected body of ``mask``: the body's first flat index; -1 outside.

    Minimum labels spread to the neighbours and jump along their own pointers until nothing changes.
    """
    rows, columns = mask.shape
    none = rows * columns
    label = np.where(mask, np.arange(none).reshape(rows, columns), none)
    while True:
        before = label
        label = label.copy()
        for there, here in (
            ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
            ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
            ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
            ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ):
            label[here] = np.where(mask[here], np.minimum(label[here], label[there]), none)
        for _ in range(4):
            label = np.append(label.ravel(), none)[label]
        if np.array_equal(label, before):
            return np.where(mask, label, -1)


def _bodies(land: NDArray[np.bool_]) -> tuple[int, float]:
    sizes = np.bincount(label_bodies(land)[land]) if land.any() else np.zeros(1, dtype=np.int64)
    return int((sizes > 0.0005 * land.size).sum()), round(float(sizes.max() / max(int(sizes.sum()), 1)), 4)


def _place(cell: int, columns: int, rows: int) -> dict[str, Any]:
    x, y = (cell % columns + 0.5) / columns, (cell // columns + 0.5) / rows
    return {"x": round(x, 4), "y": round(y, 4), "where": compass(x, y)}


def _peaks(elevation: Field, most: int) -> list[dict[str, Any]]:
    rows, columns = elevation.shape
    left = elevation.copy()
    y, x = np.mgrid[0:rows, 0:columns]
    found: list[dict[str, Any]] = []
    while len(found) < most:
        cell = int(left.argmax())
        if left.ravel()[cell] <= 0.0:
            break
        found.append({"height_m": round(float(left.ravel()[cell])), **_place(cell, columns, rows)})
        left[(y - cell // columns) ** 2 + (x - cell % columns) ** 2 < (columns / 9.0) ** 2] = -np.inf
    return found


def _rivers(fields: dict[str, Field], pixel: float) -> dict[str, Any]:
    """Return the longest river with its course, the total length, and the number of rivers of at least a twentieth of the map; km and m3/s."""
    rows, columns = fields["elevation"].shape
    rivers = (fields["rivers"] > 0.0).ravel()
    receiver = fields["receiver"].astype(np.int64).ravel()
    wet = (rivers | (fields["lakes"] > 0.0).ravel()) & (receiver != np.arange(receiver.size))
    cells = np.flatnonzero(wet)
    if cells.size == 0:
        return {"count": 0, "total_km": 0, "longest_km": 0}
    straight = (np.abs(receiver - np.arange(receiver.size)) % columns == 0) | (np.abs(receiver - np.arange(receiver.size)) == 1)
    step = np.where(straight, pixel, pixel * 2.0**0.5)
    discharge = fields["discharge"].ravel()
    length = np.zeros(receiver.size)
    source = np.arange(receiver.size)
    waiting = np.bincount(receiver[cells], minlength=receiver.size)
    ready = cells[waiting[cells] == 0].tolist()
    while ready:
        cell = ready.pop()
        below = int(receiver[cell])
        reach = length[cell] + step[cell]
        if reach > length[below]:
            length[below], source[below] = reach, source[cell]
        waiting[below] -= 1
        if waiting[below] == 0 and wet[below]:
            ready.append(below)
    ends = np.unique(receiver[cells][~wet[receiver[cells]]])
    mouth = int(ends[np.argmax(length[ends])])
    return {
        "count": int((length[ends] >= 0.05 * pixel * columns).sum()),
        "total_km": round(float(step[rivers & wet].sum())),
        "longest_km": round(float(length[mouth])),
        "discharge_m3s": round(float(discharge[cells].max())),
        "source": _place(int(source[mouth]), columns, rows),
        "mouth": _place(mouth, columns, rows),
    }


def _lakes(lakes: NDArray[np.bool_], pixel: float) -> dict[str, Any]:
    label = label_bodies(lakes)
    if not lakes.any():
        return {"count": 0, "km2": 0}
    sizes = np.bincount(label[lakes])
    largest = int(sizes.argmax())
    cells = np.flatnonzero(label.ravel() == largest)
    rows, columns = lakes.shape
    return {
        "count": int((sizes >= 3).sum()),
        "km2": round(int(lakes.sum()) * pixel * pixel),
        "largest_km2": round(int(sizes[largest]) * pixel * pixel),
        "largest": _place(int(cells[cells.size // 2]), columns, rows),
    }


def _biomes(land: NDArray[np.int64]) -> dict[str, float]:
    counts = np.bincount(land, minlength=len(BIOMES))[1 : len(BIOMES)]
    shares = {name: round(float(count) / max(land.size, 1), 4) for name, count in zip(BIOMES[1:], counts, strict=True) if count}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
