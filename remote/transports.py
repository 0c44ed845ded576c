"""Transports that send requests to endpoints (HTTP, and memory for tests), and the conversion of network exceptions.

All exceptions of aiohttp, sockets and timeouts are converted by `translate`; no foreign exception leaves a transport.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, MissingFile, ProtocolMismatch, YggdrasillError

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "FOREIGN",
    "Body",
    "Chunk",
    "Handler",
    "HandlerResponse",
    "HttpTransport",
    "MemoryTransport",
    "Request",
    "Response",
    "Transport",
    "translate",
    "translated",
]

Chunk = bytes | memoryview
#: Bytes, or a function that opens the stream from its beginning, so that a request can be repeated.
Body = bytes | Callable[[], AsyncIterator[Chunk]] | None
CONNECT_SECONDS = 5.0
READ_BUFFER = 1 << 20
#: Exceptions that `translated` converts; aiohttp's errors, all subclasses of ClientError, are added when aiohttp is imported.
FOREIGN: tuple[type[Exception], ...] = (OSError, asyncio.TimeoutError, TimeoutError, EOFError, asyncio.InvalidStateError)


@dataclass(frozen=True)
class Request:
    """One request. ``length`` is the byte count of a streamed body; ``timeout`` the maximum seconds without a received byte."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Body = field(default=None, repr=False)
    length: int | None = None
    timeout: float = 30.0


class Response(Protocol):
    """A response whose body is read once, as it arrives."""

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the header fields; lookup ignores case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks.

        Raises:
            EndpointUnreachable: the connection broke.
        """
        ...


class Transport(Protocol):
    """Sends requests. It raises no foreign exceptions; see `translate`."""

    def request(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """Send a request; the response is open for the duration of the context.

        Raises:
            EndpointUnreachable, AccessDenied, ProtocolMismatch: see `translate`.
        """
        ...


class HttpTransport:
    """HTTP with aiohttp and persistent connections. ``ca`` is a PEM file of the authority that signed the endpoint's certificate.

    A transport belongs to the event loop of its first request and must be closed there. Redirects are not followed: a token is sent only to
    the URL it belongs to.
    """

    def __init__(self, *, ca: str | None = None) -> None:
        self._ca = ca
        self._session: aiohttp.ClientSession | None = None

    def request(self, request: Request) -> _Exchange:
        """See `Transport.request`."""
        if self._session is None:
            self._session = self._open()
        return _Exchange(self._session, request)

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        context: Any = True
        if self._ca is not None:
            try:
                context = ssl.create_default_context(cafile=self._ca)
            except (OSError, ssl.SSLError) as error:
                raise MissingFile(
                    f"the certificate authority {self._ca!r} cannot be read: {error}; correct 'ca' in endpoints.yaml"
                ) from error
        connector = aiohttp.TCPConnector(limit=0, ssl=context)
        return aiohttp.ClientSession(
            connector=connector, auto_decompress=False, read_bufsize=READ_BUFFER, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def aclose(self) -> None:
        """Close every connection. A later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Exchange:
    """One request and its response."""

    def __init__(self, session: aiohttp.ClientSession, request: Request) -> None:
        self._session, self._request = session, request
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> _HttpResponse:
        import aiohttp

        request = self._request
        headers = dict(request.headers)
        if request.length is not None:
            headers["Content-Length"] = str(request.length)
        body: Any = request.body() if callable(request.body) else request.body
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=request.timeout)
        with translated(request.url):
            self._response = await self._session.request(
                request.method, request.url, headers=headers, data=body, timeout=timeout, allow_redirects=False
            )
        return _HttpResponse(self._response, request.url)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._response is not None:
            self._response.release() if kind is None else self._response.close()


class _HttpResponse:
    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self._response, self._url = response, url

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        stream = self._response.content.iter_any().__aiter__()
        while True:
            with translated(self._url):
                try:
                    chunk = await stream.__anext__()
                except StopAsyncIteration:
                    return
            yield chunk


@dataclass(frozen=True)
class HandlerResponse:
    """A handler's response: status, headers, and a body as bytes or as a stream of them."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


#: Receives the request and its whole body.
Handler = Callable[[Request, bytes], Awaitable[HandlerResponse]]


class MemoryTransport:
    """Calls ``handler(request, body)`` for every request, without a socket. Its exceptions are translated like network errors."""

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
    def __init__(self, answer: HandlerResponse, url: str) -> None:
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


def translate(error: Exception, url: str) -> YggdrasillError:
    """Return our error for a foreign exception of a request to ``url``."""
    import aiohttp

    if isinstance(error, aiohttp.InvalidURL):
        return InvalidArgument(f"{url!r} is not a URL of an endpoint; give one such as 'http://127.0.0.1:8400'", url=url)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError, aiohttp.ServerFingerprintMismatch)):
        return AccessDenied(
            f"the endpoint at {url} has no certificate that this machine trusts ({_describe_error(error)}); name its authority with 'ca' in endpoints.yaml",
            url=url,
        )
    if isinstance(error, (aiohttp.ContentTypeError, aiohttp.TooManyRedirects, aiohttp.WSServerHandshakeError)):
        return ProtocolMismatch(
            f"the server at {url} is not a Yggdrasill endpoint ({_describe_error(error)}); check the url and the port", url=url
        )
    if isinstance(error, aiohttp.ClientResponseError):
        return ProtocolMismatch(f"the server at {url} sent invalid HTTP ({_describe_error(error)}); check the url and the port", url=url)
    if isinstance(error, (aiohttp.ClientConnectorError, ConnectionRefusedError)):
        return EndpointUnreachable(f"nothing answers at {url} ({_describe_error(error)}); start the endpoint or correct its url", url=url)
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return EndpointUnreachable(f"the endpoint at {url} sent no data for too long; check that it is running", url=url, broken=True)
    return EndpointUnreachable(f"the connection to {url} broke ({_describe_error(error)})", url=url, broken=True)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Convert foreign exceptions raised inside, with the original as cause."""
    import aiohttp

    try:
        yield
    except Exception as error:
        if isinstance(error, YggdrasillError) or not isinstance(error, (aiohttp.ClientError, *FOREIGN)):
            raise
        raise translate(error, url) from error


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
