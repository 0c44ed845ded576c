"""Which node classes the packs suite runs alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from samples.packs.filling import Prompt, Unfillable, Workbench

__all__ = ["prompt_alone"]

#: Words in the names of classes that ask the network, download a model, or wait for a camera, a screen, a sound device or a person.
_OUTSIDE = {
    "network": r"url|api\b|API|unsplash|deepl|chatgpt|translat|huggingface|civitai|postshot|bilibili|nsfw",
    "download": r"download|rembg|clipseg|whisper|segmentation|interrogator|superprompt|briaai|birefnet|inspyrenet|joycaption|diarization",
    "device": r"webcam|screencap|screen ?share|grab|krita|playsound|notification",
    "person": r"chooser|pause|await|editor|crop.?selector",
}


def prompt_alone(class_type: str, bench: Workbench) -> tuple[Prompt | None, str]:
    """Return a prompt for the class, or None and the reason why it is not run alone."""
    facts: Mapping[str, Any] = bench.info[class_type]
    words = f"{class_type} {facts.get('display_name') or ''}"
    for reason, pattern in _OUTSIDE.items():
        if re.search(pattern, words, re.IGNORECASE):
            return None, f"needs: {reason}"
    try:
        return bench.alone(class_type), ""
    except Unfillable as error:
        return None, f"no value for {error}"
