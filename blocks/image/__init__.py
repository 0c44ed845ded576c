"""Operations on images: float32 tensors [batch, height, width, channels] in 0..1."""

from __future__ import annotations

__all__: list[str] = []
