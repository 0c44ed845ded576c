"""`image/resize`: an image at another size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from yggdrasill.blocks.image.checks import as_image
from yggdrasill.blocks.settings import choice, number
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, Port, PortDirection, PortType

__all__ = ["Resize"]

_MOST_PIXELS = 16384


class Resize(AbstractBaseBlock):
    """Resizes an image; shrinking is smoothed.

    In and out: ``image`` to ``resized``, [B, H, W, C]. Config: ``width`` and ``height`` in pixels (1..16384), one alone keeps
    the proportions; or ``scale`` (0.01..16). ``method``: nearest, bilinear (default) or bicubic.
    """

    block_type = "image/resize"
    deterministic: ClassVar[bool] = True

    def declare_ports(self) -> Iterable[Port]:
        yield Port("image", PortDirection.IN, PortType.IMAGE)
        yield Port("resized", PortDirection.OUT, PortType.IMAGE)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        from torch.nn.functional import interpolate

        image = as_image(inputs["image"], "image", self.block_type)
        method = choice(self.config, "method", "bilinear", ("nearest", "bilinear", "bicubic"), self.block_type)
        height, width = self._size(image.shape[1], image.shape[2])
        if (height, width) == tuple(image.shape[1:3]):
            return {"resized": image.clone()}
        planes = image.permute(0, 3, 1, 2)
        if method == "nearest":
            resized = interpolate(planes, size=(height, width), mode="nearest-exact")
        else:
            resized = interpolate(planes, size=(height, width), mode=method, align_corners=False, antialias=True).clamp(0.0, 1.0)
        return {"resized": resized.permute(0, 2, 3, 1).contiguous()}

    def _size(self, height: int, width: int) -> tuple[int, int]:
        config = {name: value for name, value in self.config.items() if value is not None}
        if "width" not in config and "height" not in config:
            if "scale" not in config:
                raise InvalidArgument(f"{self.block_type}: config names no size; give 'width', 'height' or 'scale'")
            scale = number(config, "scale", 1.0, 0.01, 16.0, self.block_type)
            new_height, new_width = height * scale, width * scale
        else:
            if "width" in config:
                new_width = number(config, "width", 1, 1, _MOST_PIXELS, self.block_type)
                new_height = height * new_width / width
            if "height" in config:
                new_height = number(config, "height", 1, 1, _MOST_PIXELS, self.block_type)
                new_width = new_width if "width" in config else width * new_height / height
        return max(round(new_height), 1), max(round(new_width), 1)
