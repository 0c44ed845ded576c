"""SVG text: elements, escaped text, estimated text widths, and pictures that can be placed inside others.

Markup is a distinct type (`Markup`), so that the type checker rejects text that was not escaped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType

__all__ = ["Markup", "Picture", "document", "escape", "join", "number", "plural", "shorten", "tag", "text", "text_width", "tooltip"]

Markup = NewType("Markup", str)
"""A piece of SVG, safe to put into a document."""
# Forbidden in XML 1.0, even as a character reference: most control characters, lone surrogates, two non-characters.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\t": " ", "\n": " ", "\r": " "}
_TOOLTIP_LENGTH = 300
_NARROW = frozenset("iljtfrI.,:;'|!()[]{}/\\` ")
_BROAD = frozenset("mwMW@%&—…")
_MONOSPACE = 0.61


@dataclass(frozen=True)
class Picture:
    """A drawing of known size in px, with its upper left corner at 0, 0."""

    width: float
    height: float
    body: Markup

    def placed(self, x: float, y: float, scale: float = 1.0) -> Markup:
        """Return the picture as a group moved to ``x``, ``y`` and scaled."""
        move = f"translate({number(x)} {number(y)})"
        return tag("g", self.body, transform=move if scale == 1.0 else f"{move} scale({number(scale, 4)})")


def document(picture: Picture, *, name: str, style: str) -> str:
    """Return a complete SVG file: without scripts, external fonts or files, and without ids, which could clash when embedded in a page."""
    width, height = number(picture.width), number(picture.height)
    root = tag(
        "svg",
        tooltip(name),
        Markup(f"<style>{style}</style>"),
        picture.body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=name,
    )
    return root + "\n"


def tag(name: str, *children: Markup, **attributes: str | float | None) -> Markup:
    """Return an element; ``class_`` is written ``class``, ``stroke_width`` is written ``stroke-width``, None omits an attribute."""
    written = []
    for key, value in attributes.items():
        if value is None:
            continue
        shown = escape(value) if isinstance(value, str) else number(value)
        written.append(f' {key.rstrip("_").replace("_", "-")}="{shown}"')
    opening = f"<{name}{''.join(written)}"
    return Markup(f"{opening}>{''.join(children)}</{name}>" if children else f"{opening}/>")


def text(x: float, y: float, words: str, class_: str, anchor: str | None = None) -> Markup:
    """Return a line of text with its baseline at ``y``; ``x`` is its left end, or with ``anchor`` its ``middle`` or ``end``."""
    return tag("text", escape(words), class_=class_, x=x, y=y, text_anchor=anchor)


def tooltip(words: str) -> Markup:
    """Return the tooltip of the enclosing element."""
    shown = words if len(words) <= _TOOLTIP_LENGTH else words[: _TOOLTIP_LENGTH - 1] + "…"
    return tag("title", escape(shown))


def join(pieces: Iterable[Markup]) -> Markup:
    """Return the pieces as one."""
    return Markup("".join(pieces))


def escape(value: object) -> Markup:
    """Return any text as markup: XML characters as entities, line breaks as spaces, characters that XML forbids as U+FFFD."""
    clean = _FORBIDDEN.sub("\ufffd", str(value))
    return Markup("".join(_ENTITIES.get(char, char) for char in clean))


def number(value: float, digits: int = 1) -> str:
    """Return ``value`` rounded and without trailing zeros, so that equal pictures are equal bytes on every machine."""
    shown = f"{value:.{digits}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return "0" if shown == "-0" else shown


def text_width(words: str, size: float, *, mono: bool = False, bold: bool = False) -> float:
    """Return a generous estimate of the width in px of ``words`` at ``size`` px in a common sans-serif (or monospace) font.

    No font is measured, so that a picture is the same on every machine.
    """
    return size * sum(_advance(char, mono) for char in words) * (1.06 if bold else 1.0)


def shorten(words: str, length: int, *, keep_end: bool = False) -> str:
    """Return ``words`` in at most ``length`` characters, with an ellipsis for the middle, or with ``keep_end`` for the start."""
    flat = " ".join(words.split())
    if len(flat) <= length:
        return flat
    tail = length - 1 if keep_end else length // 3
    return flat[: length - 1 - tail] + "…" + flat[len(flat) - tail :]


def plural(count: int, noun: str) -> str:
    """Return ``noun``, with an ``s`` unless ``count`` is 1."""
    return noun if count == 1 else f"{noun}s"


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
