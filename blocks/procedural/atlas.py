"""`procedural/atlas`: one container for all generated artifacts (state block 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from yggdrasill.blocks.procedural.configuration import read_terrain
from yggdrasill.blocks.procedural.fields import as_field, as_tensor
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType

__all__ = ["FIELDS", "Atlas"]

#: Fields of the container and their dtypes.
FIELDS = {
    "elevation": np.float32,
    "temperature": np.float32,
    "rainfall": np.float32,
    "discharge": np.float32,
    "receiver": np.int32,
    "rivers": np.bool_,
    "lakes": np.bool_,
    "biomes": np.uint8,
}


class Atlas(AbstractBaseBlock):
    """Collects the picture and fields as the artifacts of an episode.

    In: ``image`` [1, H, W, 3], the fields [H, W] of the terrain blocks, ``configuration``. Out: ``artifacts``, a dict of
    ``images`` (list with the image), each field as a tensor (dtypes as in `FIELDS`, units as documented by its
    block), and ``width_km``, the width of the map.
    """

    block_type = "procedural/atlas"
    deterministic: ClassVar[bool] = True
    settings = ()

    def declare_ports(self) -> Iterable[Port]:
        yield Port("image", PortDirection.IN, PortType.IMAGE)
        for name in FIELDS:
            yield Port(name, PortDirection.IN, PortType.TENSOR)
        yield Port("configuration", PortDirection.IN, PortType.DICT)
        yield Port("artifacts", PortDirection.OUT, PortType.DICT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        terrain = read_terrain(inputs["configuration"], self.block_type)
        artifacts: dict[str, Any] = {"images": [inputs["image"].clone()], "width_km": terrain.width_km}
        for name, dtype in FIELDS.items():
            artifacts[name] = as_tensor(as_field(inputs[name], name, self.block_type).astype(dtype))
        return {"artifacts": artifacts}
