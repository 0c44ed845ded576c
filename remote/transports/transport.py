"""What a client needs from the way to its endpoint: one method, and the two things that go through it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Body", "Chunk", "Request", "Response", "Transport"]

Chunk = bytes | memoryview
#: Bytes, or a function that starts the stream anew, so that a request can be sent again.
Body = bytes | Callable[[], AsyncIterator[Chunk]] | None


@dataclass(frozen=True)
class Request:
    """One request. ``length`` is the byte count of a streamed body; ``timeout`` the seconds without a byte before giving up."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Body = field(default=None, repr=False)
    length: int | None = None
    timeout: float = 30.0


class Response(Protocol):
    """An answer whose body is read once, as it arrives."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields; names are looked up without regard to case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces.

        Raises:
            EndpointUnreachable: the connection broke.
        """
        ...


class Transport(Protocol):
    """Sends requests. Foreign exceptions do not leave it: see `yggdrasill.remote.foreign`."""

    def request(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """Send, and give the answer for as long as the context is open.

        Raises:
            EndpointUnreachable, AccessDenied, ProtocolMismatch: see `yggdrasill.remote.foreign.translate`.
        """
        ...
