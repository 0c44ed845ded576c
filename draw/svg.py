"""Writes SVG: elements, escaped text, and pictures that can be placed inside others.

Knows nothing of graphs. Everything is a string that is already markup (`Markup`), so text that has not been escaped
cannot slip in without the type checker noticing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType

__all__ = ["Markup", "Picture", "document", "escaped", "join", "number", "tag", "text", "tooltip"]

Markup = NewType("Markup", str)
"""A piece of SVG, safe to put into a document."""

# What XML 1.0 cannot hold even as a character reference: most control characters, lone surrogates, two non-characters.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\t": " ", "\n": " ", "\r": " "}
_TOOLTIP_LENGTH = 300


@dataclass(frozen=True)
class Picture:
    """A drawn thing of known size (px) whose upper left corner is at 0, 0."""

    width: float
    height: float
    body: Markup

    def placed(self, x: float, y: float, scale: float = 1.0) -> Markup:
        """The picture as a group moved to ``x``, ``y`` and scaled."""
        move = f"translate({number(x)} {number(y)})"
        return tag("g", self.body, transform=move if scale == 1.0 else f"{move} scale({number(scale, 4)})")


def number(value: float, digits: int = 1) -> str:
    """``12.50`` as ``12.5``: rounded, so that equal pictures are equal bytes on every machine."""
    shown = f"{value:.{digits}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return "0" if shown == "-0" else shown


def escaped(value: object) -> Markup:
    """Any text as markup: the five XML characters as entities, line breaks as spaces, what XML cannot hold as U+FFFD."""
    clean = _FORBIDDEN.sub("\ufffd", str(value))
    return Markup("".join(_ENTITIES.get(char, char) for char in clean))


def join(pieces: Iterable[Markup]) -> Markup:
    """Several pieces one after another."""
    return Markup("".join(pieces))


def tag(name: str, *children: Markup, **attributes: str | float | None) -> Markup:
    """An element; ``class_`` means ``class``, ``stroke_width`` means ``stroke-width``, None leaves an attribute out."""
    written = []
    for key, value in attributes.items():
        if value is None:
            continue
        shown = escaped(value) if isinstance(value, str) else number(value)
        written.append(f' {key.rstrip("_").replace("_", "-")}="{shown}"')
    opening = f"<{name}{''.join(written)}"
    return Markup(f"{opening}>{''.join(children)}</{name}>" if children else f"{opening}/>")


def text(x: float, y: float, words: str, class_: str, anchor: str | None = None) -> Markup:
    """A line of text with its baseline at ``y``; ``anchor`` is ``middle`` or ``end`` where ``x`` is not its left end."""
    return tag("text", escaped(words), class_=class_, x=x, y=y, text_anchor=anchor)


def tooltip(words: str) -> Markup:
    """What a viewer shows when the pointer rests on the enclosing element."""
    shown = words if len(words) <= _TOOLTIP_LENGTH else words[: _TOOLTIP_LENGTH - 1] + "…"
    return tag("title", escaped(shown))


def document(picture: Picture, *, name: str, style: str) -> str:
    """A whole SVG file: no scripts, no fonts or files from elsewhere, no ids that could clash when embedded in a page."""
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
