"""What every image block asks of its inputs and config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import InvalidArgument, choices

if TYPE_CHECKING:
    import torch

__all__ = ["as_image", "choice", "number"]


def as_image(value: Any, port: str, block: str) -> torch.Tensor:
    """The value as a float32 tensor [batch, height, width, channels]; a single image [height, width, channels] gets a batch of one.

    Raises:
        InvalidArgument: no tensor, another shape or dtype.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise InvalidArgument(
            f"{block}: port {port!r} got a {type(value).__name__}; an image is a float32 tensor [batch, height, width, channels]"
        )
    image = value.unsqueeze(0) if value.ndim == 3 else value
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or not image.is_floating_point() or 0 in image.shape:
        raise InvalidArgument(
            f"{block}: port {port!r} got shape {list(value.shape)} of {value.dtype}; "
            "an image is a float32 tensor [batch, height, width, channels] with 1, 3 or 4 channels"
        )
    return image.to(torch.float32)


def number(config: Mapping[str, Any], name: str, default: float, low: float, high: float, block: str) -> float:
    """A number from the config within ``low..high``.

    Raises:
        InvalidArgument: it is something else.
    """
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidArgument(f"{block}: config {name!r} is {value!r}; it must be a number from {low:g} to {high:g}", key=name)
    return float(value)


def choice(config: Mapping[str, Any], name: str, default: str, options: Iterable[str], block: str) -> str:
    """One of ``options`` from the config.

    Raises:
        InvalidArgument: it is something else.
    """
    value = config.get(name, default)
    known = list(options)
    if value not in known:
        raise InvalidArgument(f"{block}: config {name!r} is {value!r}; it can be {choices(known)}", key=name)
    return str(value)
