"""Connections as text, one per line: ``a.out -> b.in`` connects two children, ``name -> b.in`` and ``a.out -> name`` expose a port."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from yggdrasill.errors import InvalidArgument, format_options, unknown_message

__all__ = ["Wire", "read_lines", "read_wires"]

_ARROW = "->"


@dataclass(frozen=True, slots=True)
class Wire:
    """One connection. A side with an empty child (``""``) is the interface of the container, and its port the external name, which may be empty."""

    source: str
    source_port: str
    target: str
    target_port: str
    line: str


def read_lines(text: str) -> Iterator[str]:
    """Yield the lines that are not blank; ``#`` starts a comment."""
    for line in text.splitlines():
        content = line.split("#", 1)[0].strip()
        if content:
            yield content


def read_wires(text: str, children: Collection[str], word: str) -> list[Wire]:
    """Return the connections in ``text`` between ``children``, which messages call ``word``.

    Raises:
        InvalidArgument: a line is not a connection, or names an unknown child.
    """
    wires = []
    for line in read_lines(text):
        left, arrow, right = line.partition(_ARROW)
        if not arrow or _ARROW in right:
            raise InvalidArgument(
                f"{line!r} is not a connection. Write one per line, such as 'a.out -> b.in'. Available {word}s: {format_options(children)}."
            )
        (source, source_port), (target, target_port) = (_end(side.strip(), children, word, line) for side in (left, right))
        if not source and not target:
            raise InvalidArgument(f"{line!r} does not name a {word}. Available: {format_options(children)}.")
        wires.append(Wire(source, source_port, target, target_port, line))
    return wires


def _end(text: str, children: Collection[str], word: str, line: str) -> tuple[str, str]:
    matching = [child for child in children if text.startswith(child + ".")]
    if matching:
        child = max(matching, key=len)
        port = text[len(child) + 1 :].strip()
        if not port:
            raise InvalidArgument(f"{line!r}: the port of {word} {child!r} is missing. Write it as in '{child}.image'.")
        return child, port
    if "." in text:
        name = text.split(".", 1)[0]
        raise InvalidArgument(f"{line!r}: {unknown_message(word, name, children)}")
    return "", text
