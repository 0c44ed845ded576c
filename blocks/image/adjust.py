"""`image/adjust`: brightness, contrast, saturation, gamma."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from yggdrasill.blocks.image.checks import as_image
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType

__all__ = ["Adjust"]


class Adjust(AbstractBaseBlock):
    """Adjusts the colours of an image; an alpha channel is unchanged.

    In: ``image`` [B, H, W, C]. Out: ``adjusted``.

    Config, applied in this order: ``gamma`` (0.1..10, default 1; above 1 is lighter), ``contrast`` (0..4, default 1, around
    0.5), ``brightness`` (-1..1, default 0, added), ``saturation`` (0..4, default 1; 0 is grey by the luma of Rec. 709).
    """

    block_type = "image/adjust"
    deterministic: ClassVar[bool] = True
    settings = (
        ConfigField("gamma", "number", 1.0, 0.1, 10.0, meaning="above 1 lightens the middle tones"),
        ConfigField("contrast", "number", 1.0, 0.0, 4.0, meaning="distance from middle grey"),
        ConfigField("brightness", "number", 0.0, -1.0, 1.0, meaning="added to every colour"),
        ConfigField("saturation", "number", 1.0, 0.0, 4.0, meaning="0 is grey, 1 leaves the colours"),
    )

    def declare_ports(self) -> Iterable[Port]:
        yield Port("image", PortDirection.IN, PortType.IMAGE)
        yield Port("adjusted", PortDirection.OUT, PortType.IMAGE)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        image = as_image(inputs["image"], "image", self.block_type)
        gamma = self.setting("gamma")
        contrast = self.setting("contrast")
        brightness = self.setting("brightness")
        saturation = self.setting("saturation")
        colours = slice(0, 1) if image.shape[-1] == 1 else slice(0, 3)
        colour = image[..., colours].clamp(0.0, 1.0) ** (1.0 / gamma)
        colour = (colour - 0.5) * contrast + 0.5 + brightness
        if colour.shape[-1] == 3:
            luma = (0.2126 * colour[..., 0] + 0.7152 * colour[..., 1] + 0.0722 * colour[..., 2]).unsqueeze(-1)
            colour = luma + (colour - luma) * saturation
        adjusted = image.clone()
        adjusted[..., colours] = colour.clamp(0.0, 1.0)
        return {"adjusted": adjusted}
