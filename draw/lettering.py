"""How wide text will be and how it is shortened, without asking any font: a picture must come out the same everywhere."""

from __future__ import annotations

import unicodedata

__all__ = ["shortened", "width_of"]

_NARROW = frozenset("iljtfrI.,:;'|!()[]{}/\\` ")
_BROAD = frozenset("mwMW@%&—…")
_MONOSPACE = 0.61


def width_of(words: str, size: float, *, mono: bool = False, bold: bool = False) -> float:
    """A generous estimate in px of ``words`` set at ``size`` px in a common sans-serif (or monospace) face."""
    return size * sum(_advance(char, mono) for char in words) * (1.06 if bold else 1.0)


def shortened(words: str, length: int, *, keep_end: bool = False) -> str:
    """``words`` in at most ``length`` characters, an ellipsis in place of the middle, or of the start with ``keep_end``."""
    flat = " ".join(words.split())
    if len(flat) <= length:
        return flat
    tail = length - 1 if keep_end else length // 3
    return flat[: length - 1 - tail] + "…" + flat[len(flat) - tail :]


def _advance(char: str, mono: bool) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return 1.05
    if mono:
        return _MONOSPACE
    if char in _NARROW:
        return 0.33
    if char in _BROAD:
        return 0.92
    return 0.70 if char.isupper() else 0.56
