"""`image/blend`: one image over another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.blocks.image.checks import as_image
from yggdrasill.errors import InvalidArgument
from yggdrasill.foundation import AbstractBaseBlock, ConfigField, Port, PortDirection, PortType

if TYPE_CHECKING:
    import torch

__all__ = ["Blend"]

#: Mode -> colour from (below, above); formulas of W3C Compositing and Blending.
_MODES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "normal": lambda below, above: above,
    "multiply": lambda below, above: below * above,
    "screen": lambda below, above: below + above - below * above,
    "overlay": lambda below, above: (2 * below * above).where(below <= 0.5, 1 - 2 * (1 - below) * (1 - above)),
    "darken": lambda below, above: below.minimum(above),
    "lighten": lambda below, above: below.maximum(above),
    "difference": lambda below, above: (below - above).abs(),
}


class Blend(AbstractBaseBlock):
    """Blends ``above`` over ``below``.

    In: ``below`` and ``above``, images [B, H, W, C] of equal size (a batch of one fits any batch); ``mask`` tensor
    [H, W] or [B, H, W] in 0..1, optional. Out: ``image``. Config: ``mode`` (normal, multiply, screen, overlay, darken,
    lighten, difference), ``opacity`` 0..1 (default 1).
    """

    block_type = "image/blend"
    deterministic: ClassVar[bool] = True
    settings = (
        ConfigField("mode", "choice", "normal", options=tuple(_MODES), meaning="how the colours of both are joined"),
        ConfigField("opacity", "number", 1.0, 0.0, 1.0, meaning="how much of the upper image shows"),
    )

    def declare_ports(self) -> Iterable[Port]:
        yield Port("below", PortDirection.IN, PortType.IMAGE)
        yield Port("above", PortDirection.IN, PortType.IMAGE)
        yield Port("mask", PortDirection.IN, PortType.TENSOR, optional=True)
        yield Port("image", PortDirection.OUT, PortType.IMAGE)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        below = as_image(inputs["below"], "below", self.block_type)
        above = as_image(inputs["above"], "above", self.block_type)
        if below.shape[1:] != above.shape[1:] or len({below.shape[0], above.shape[0]} - {1}) > 1:
            raise InvalidArgument(
                f"{self.block_type}: below is {list(below.shape)}, above {list(above.shape)}; make the sizes equal with image/resize"
            )
        mode = self.setting("mode")
        cover: Any = self.setting("opacity")
        mask = inputs.get("mask")
        if mask is not None:
            mask = torch.as_tensor(mask, dtype=torch.float32)
            if (
                mask.ndim not in (2, 3)
                or mask.shape[-2:] != below.shape[1:3]
                or (mask.ndim == 3 and mask.shape[0] not in (1, below.shape[0], above.shape[0]))
            ):
                raise InvalidArgument(
                    f"{self.block_type}: mask is {list(mask.shape)}; expected [height, width] = {list(below.shape[1:3])}, or one per image"
                )
            cover = cover * mask.clamp(0.0, 1.0).unsqueeze(-1)
        image = below + (_MODES[mode](below, above) - below) * cover
        return {"image": image.clamp(0.0, 1.0)}
