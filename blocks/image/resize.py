"""`image/resize`: a different size for an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from yggdrasill.blocks.image.checks import as_image
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType

__all__ = ["Resize"]

_MOST_PIXELS = 16384


class Resize(AbstractBaseBlock):
    """Resizes an image, with antialiasing when it shrinks.

    In and out: ``image`` to ``resized``, [B, H, W, C]. Config: ``width`` and ``height`` in pixels (1..16384), one of them alone keeps
    the aspect ratio; or ``scale`` (0.01..16). ``method``: nearest, bilinear (default) or bicubic.
    """

    block_type = "image/resize"
    deterministic: ClassVar[bool] = True
    settings = (
        ConfigField("width", "number", None, 1, _MOST_PIXELS, meaning="pixels; alone it keeps the aspect ratio"),
        ConfigField("height", "number", None, 1, _MOST_PIXELS, meaning="pixels; alone it keeps the aspect ratio"),
        ConfigField("scale", "number", None, 0.01, 16.0, meaning="scale factor, used without width and height"),
        ConfigField("method", "choice", "bilinear", options=("nearest", "bilinear", "bicubic"), meaning="interpolation method"),
    )

    def declare_ports(self) -> Iterable[Port]:
        yield Port("image", PortDirection.IN, PortType.IMAGE)
        yield Port("resized", PortDirection.OUT, PortType.IMAGE)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        from torch.nn.functional import interpolate

        image = as_image(inputs["image"], "image", self.block_type)
        method = self.setting("method")
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
        wanted_width, wanted_height, scale = (self.setting(name) for name in ("width", "height", "scale"))
        if wanted_width is None and wanted_height is None:
            if scale is None:
                raise InvalidArgument(f"{self.block_type}: config has no size; set 'width', 'height' or 'scale'")
            new_height, new_width = height * scale, width * scale
        else:
            new_width = width * wanted_height / height if wanted_width is None else wanted_width
            new_height = height * wanted_width / width if wanted_height is None else wanted_height
        return max(round(new_height), 1), max(round(new_width), 1)
