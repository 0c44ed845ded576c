"""`image/grid`: several images side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from yggdrasill.blocks.image.checks import as_image
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortAggregation, PortDirection, PortType

__all__ = ["Grid"]

_MOST_IMAGES = 400


class Grid(AbstractBaseBlock):
    """Arranges images in rows, in the order of the edges, each in the middle of a cell of the largest size.

    In: ``images``, any number of edges, each an image [B, H, W, C] or a list of images; the images of a batch get one cell each.
    Out: ``image`` [1, height, width, C]. Config: ``columns`` (default: as square as possible), ``gap`` in pixels around
    and between (default 8), ``background`` 0..1 (default 1, white).
    """

    block_type = "image/grid"
    deterministic: ClassVar[bool] = True
    settings = (
        ConfigField("columns", "integer", None, 1, _MOST_IMAGES, meaning="images in a row; without it the sheet is about square"),
        ConfigField("gap", "integer", 8, 0, 512, meaning="pixels between images"),
        ConfigField("background", "number", 1.0, 0.0, 1.0, meaning="grey of the gaps, 1 is white"),
    )

    def declare_ports(self) -> Iterable[Port]:
        yield Port("images", PortDirection.IN, PortType.ANY, aggregation=PortAggregation.DICT)
        yield Port("image", PortDirection.OUT, PortType.IMAGE)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        images = [single for image in _flatten(inputs["images"]) for single in as_image(image, "images", self.block_type)]
        channels = {image.shape[-1] for image in images}
        if not images or len(images) > _MOST_IMAGES or len(channels) > 1:
            raise InvalidArgument(
                f"{self.block_type}: got {len(images)} images with {sorted(channels)} channels; expected 1 to {_MOST_IMAGES} images with equal channels"
            )
        columns = self.setting("columns") or math.ceil(len(images) ** 0.5)
        columns = min(columns, len(images))
        gap = self.setting("gap")
        background = self.setting("background")
        height, width = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
        rows = math.ceil(len(images) / columns)
        sheet = torch.full((1, rows * (height + gap) + gap, columns * (width + gap) + gap, channels.pop()), background)
        for index, image in enumerate(images):
            top = gap + index // columns * (height + gap) + (height - image.shape[0]) // 2
            left = gap + index % columns * (width + gap) + (width - image.shape[1]) // 2
            sheet[0, top : top + image.shape[0], left : left + image.shape[1]] = image
        return {"image": sheet}


def _flatten(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flatten(part)
    else:
        yield value
