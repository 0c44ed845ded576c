"""`procedural/rivers`: rivers and lakes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from yggdrasill.blocks.procedural.configuration import read_terrain
from yggdrasill.blocks.procedural.drainage import accumulate, fill_depressions, receivers
from yggdrasill.blocks.procedural.fields import as_field, as_tensor
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType

__all__ = ["Rivers"]

_SECONDS = 365.25 * 86400.0
#: The share of the rain that reaches a river, and the rain that evaporates first, in mm per year.
_RUNOFF, _EVAPORATION = 0.55, 180.0


class Rivers(AbstractBaseBlock):
    """Computes rivers and lakes from rainfall and elevation.

    In: ``elevation`` tensor [H, W] in metres, ``rainfall`` tensor [H, W] in mm per year, ``configuration`` dict. Out:
    ``filled`` float64 [H, W], the surface without depressions in metres (priority-flood, Barnes et al. 2014);
    ``receiver`` int64 [H, W], the flat index each cell drains to, itself for outlets (D8); ``discharge`` float64 [H, W]
    in cubic metres per second; ``rivers`` and ``lakes`` bool [H, W].
    Config: ``source`` (default 6.0), the minimum discharge of a river in m3/s on a map 1,200 km wide; it grows with the
    square of the width.
    """

    block_type = "procedural/rivers"
    deterministic: ClassVar[bool] = True
    settings = (ConfigField("source", "number", 6.0, 0.01, 10000.0, meaning="minimum discharge of a river in m3/s on a map 1,200 km wide"),)

    def declare_ports(self) -> Iterable[Port]:
        yield Port("elevation", PortDirection.IN, PortType.TENSOR)
        yield Port("rainfall", PortDirection.IN, PortType.TENSOR)
        yield Port("configuration", PortDirection.IN, PortType.DICT)
        for name in ("filled", "receiver", "discharge", "rivers", "lakes"):
            yield Port(name, PortDirection.OUT, PortType.TENSOR)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        elevation = as_field(inputs["elevation"], "elevation", self.block_type)
        rainfall = as_field(inputs["rainfall"], "rainfall", self.block_type)
        terrain = read_terrain(inputs["configuration"], self.block_type)
        if rainfall.shape != elevation.shape:
            raise InvalidArgument(
                f"{self.block_type}: rainfall is {list(rainfall.shape)}, elevation {list(elevation.shape)}; both must be fields of one map"
            )
        source = self.setting("source") * (terrain.width_km / 1200.0) ** 2
        pixel = terrain.width_km / elevation.shape[1]
        filled = fill_depressions(elevation)
        receiver = receivers(filled)
        runoff = _RUNOFF * np.maximum(rainfall - _EVAPORATION, 0.0) * 1e-3 * (pixel * 1e3) ** 2 / _SECONDS
        discharge = accumulate(filled, receiver, np.where(elevation > 0.0, runoff, 0.0))
        land = elevation > 0.0
        deep = land & (filled - elevation > 4.0)
        lakes = deep & (_box_count(deep) >= 4)
        rivers = land & ~lakes & (discharge >= source)
        return {
            "filled": as_tensor(filled),
            "receiver": as_tensor(receiver.reshape(elevation.shape)),
            "discharge": as_tensor(discharge),
            "rivers": as_tensor(rivers),
            "lakes": as_tensor(lakes),
        }


def _box_count(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many of the nine cells around each cell are set; fewer than four are not a lake."""
    padded = np.pad(mask.astype(np.int64), 1)
    rows, columns = mask.shape
    total = np.zeros(mask.shape, dtype=np.int64)
    for dy in range(3):
        for dx in range(3):
            total += padded[dy : dy + rows, dx : dx + columns]
    return total
