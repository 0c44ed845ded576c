"""Who asks from the machine that this endpoint runs on."""

from __future__ import annotations

from aiohttp import web

__all__ = ["is_from_this_machine"]

_PASSED_ON = ("Forwarded", "X-Forwarded-For", "Via")


def is_from_this_machine(request: web.Request) -> bool:
    """Whether both ends of the connection have one address, and nobody says to have passed the request on for another."""
    if request.transport is None or any(name in request.headers for name in _PASSED_ON):
        return False
    ends = [request.transport.get_extra_info(name) for name in ("peername", "sockname")]
    return all(isinstance(end, tuple) for end in ends) and ends[0][0] == ends[1][0]
