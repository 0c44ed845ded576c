"""The pairing line: one line of text that lets one machine know another, its address and its token in it.

It is the command that a terminal understands, ``yggdrasill endpoints add NAME URL --token TOKEN``, so it can be pasted there
as well as into an editor. Whoever has the line may use the endpoint.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from yggdrasill.errors import InvalidArgument

__all__ = ["Pairing", "pairing_line", "read_pairing"]

_COMMAND = "yggdrasill endpoints add"
_OPEN_NAME = "NAME"
_OPEN_TOKEN = "-"  # noqa: S105 - where a token would stand
_LONGEST = 4000


@dataclass(frozen=True)
class Pairing:
    """An endpoint that somebody was told of; ``name`` and ``token`` are None where the line leaves them open."""

    url: str
    name: str | None = None
    token: str | None = field(default=None, repr=False)


def pairing_line(url: str, token: str, name: str | None = None) -> str:
    """The line for an endpoint."""
    return f"{_COMMAND} {shlex.join([name or _OPEN_NAME, url, '--token', token])}"


def read_pairing(line: str) -> Pairing:
    """A pairing line, whatever stands before the command; or a url with or without a token behind it.

    Raises:
        InvalidArgument: it is neither; the message does not repeat the line.
    """
    _, found, rest = line[:_LONGEST].partition(_COMMAND)
    try:
        words = shlex.split(rest if found else line[:_LONGEST])
    except ValueError:
        raise _unreadable() from None
    token = None
    if "--token" in words[:-1]:
        at = words.index("--token")
        token = words[at + 1]
        words = words[:at]
    named = words[: 2 if found else 0]
    if len(named) == 2 and _is_url(named[1]):
        return Pairing(named[1], None if named[0] == _OPEN_NAME else named[0], None if token == _OPEN_TOKEN else token)
    if found or not words or len(words) > 2 or not _is_url(words[0]):
        raise _unreadable()
    return Pairing(words[0], None, words[1] if len(words) == 2 else token)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _unreadable() -> InvalidArgument:
    return InvalidArgument(
        "this is no pairing line; it reads 'yggdrasill endpoints add NAME URL --token TOKEN', and an address such as "
        "http://192.168.1.20:8188 will do as well. The other machine's editor copies its own"
    )
