"""An endpoint without a socket: requests go to a function in this process. For tests of everything that needs no process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from yggdrasill.remote.foreign import translated
from yggdrasill.remote.transports.transport import Request, Response

__all__ = ["Answer", "Handler", "MemoryTransport"]


@dataclass(frozen=True)
class Answer:
    """What a handler gives: a status, headers, and a body as bytes or as a stream of them."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


#: Takes the request and its whole body.
Handler = Callable[[Request, bytes], Awaitable[Answer]]


class MemoryTransport:
    """Calls ``handler(request, body)`` for every request; whatever it raises is translated as a network's errors are."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def request(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """See `Transport.request`."""
        return self._exchange(request)

    @asynccontextmanager
    async def _exchange(self, request: Request) -> AsyncIterator[Response]:
        body = request.body if isinstance(request.body, bytes) else b""
        if callable(request.body):
            body = b"".join([bytes(chunk) async for chunk in request.body()])
        with translated(request.url):
            answer = await self._handler(request, body)
        yield _MemoryResponse(answer, request.url)


class _MemoryResponse:
    def __init__(self, answer: Answer, url: str) -> None:
        self._answer, self._url = answer, url
        self.status = answer.status
        self.headers = answer.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        if isinstance(self._answer.body, bytes):
            yield self._answer.body
            return
        with translated(self._url):
            async for chunk in self._answer.body:
                yield chunk
