"""The input check of all image blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yggdrasill.errors import InvalidArgument

if TYPE_CHECKING:
    import torch

__all__ = ["as_image"]


def as_image(value: Any, port: str, block: str) -> torch.Tensor:
    """Return ``value`` as a float32 tensor [batch, height, width, channels]; a single image [height, width, channels] gets a batch of one.

    Raises:
        InvalidArgument: not a tensor, or a different shape or dtype.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise InvalidArgument(
            f"{block}: port {port!r} got a {type(value).__name__}; expected an image, a float32 tensor [batch, height, width, channels]"
        )
    image = value.unsqueeze(0) if value.ndim == 3 else value
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or not image.is_floating_point() or 0 in image.shape:
        raise InvalidArgument(
            f"{block}: port {port!r} got shape {list(value.shape)} of {value.dtype}; "
            "expected an image, a float32 tensor [batch, height, width, channels] with 1, 3 or 4 channels"
        )
    return image.to(torch.float32)
