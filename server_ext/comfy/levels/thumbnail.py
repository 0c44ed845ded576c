"""A picture small enough to be shown while a run goes on."""

from __future__ import annotations

import io
from typing import Any

__all__ = ["jpeg_of"]


def jpeg_of(picture: Any, most: int = 512) -> bytes:
    """The first of the pictures [batch, height, width, channels] as a JPEG of at most ``most`` pixels on a side."""
    from PIL import Image

    pixels = (picture[0, ..., :3].clamp(0.0, 1.0) * 255.0).round().byte().cpu()
    grey = pixels.shape[-1] < 3
    image = Image.fromarray((pixels[..., 0] if grey else pixels).numpy())
    image.thumbnail((most, most))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()
