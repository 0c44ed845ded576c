"""Connections in words, one in a line: ``a.out -> b.in`` links two parts, ``name -> b.in`` and ``a.out -> name`` open the whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from yggdrasill.errors import InvalidArgument, format_options

__all__ = ["Wire", "read_lines", "read_wires"]

_ARROW = "->"


@dataclass(frozen=True, slots=True)
class Wire:
    """One connection. A side without a part (``""``) is the outside, its port then the name there, perhaps none."""

    source: str
    source_port: str
    target: str
    target_port: str
    line: str


def read_lines(text: str) -> Iterator[str]:
    """The lines that say something; ``#`` begins a remark."""
    for line in text.splitlines():
        said = line.split("#", 1)[0].strip()
        if said:
            yield said


def read_wires(text: str, parts: Collection[str], word: str) -> list[Wire]:
    """The connections in ``text`` between ``parts``, which are called ``word`` in messages.

    Raises:
        InvalidArgument: a line that is no connection, or names a part that is not there.
    """
    wires = []
    for line in read_lines(text):
        left, arrow, right = line.partition(_ARROW)
        if not arrow or _ARROW in right:
            raise InvalidArgument(
                f"{line!r} is no connection; write one in a line, such as 'a.out -> b.in' ({word}s: {format_options(parts)})"
            )
        (source, source_port), (target, target_port) = (_end(side.strip(), parts, word, line) for side in (left, right))
        if not source and not target:
            raise InvalidArgument(f"{line!r} names no {word}; there is {format_options(parts)}")
        wires.append(Wire(source, source_port, target, target_port, line))
    return wires


def _end(text: str, parts: Collection[str], word: str, line: str) -> tuple[str, str]:
    fitting = [part for part in parts if text.startswith(part + ".")]
    if fitting:
        part = max(fitting, key=len)
        port = text[len(part) + 1 :].strip()
        if not port:
            raise InvalidArgument(f"{line!r}: name a port of {word} {part!r}, such as {part}.image")
        return part, port
    if "." in text:
        name = text.split(".", 1)[0]
        raise InvalidArgument(f"{line!r}: there is no {word} {name!r}; there is {format_options(parts, near=name)}")
    return "", text
