"""Pictures that a node shows of what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.v0_0_2 import ui

__all__ = ["preview_of"]

_MOST_SHOWN = 16


def preview_of(pictures: Sequence[Any], cls: Any) -> dict[str, Any] | None:
    """What ``ui`` says so that the newest pictures [batch, height, width, channels] are shown; None without any."""
    shown: list[Any] = []
    for picture in pictures[-_MOST_SHOWN:]:
        coloured = picture.expand(*picture.shape[:3], 3) if picture.shape[-1] == 1 else picture
        shown += ui.PreviewImage(coloured, cls=cls).as_dict()["images"]
    return {"images": shown[-_MOST_SHOWN:]} if shown else None
