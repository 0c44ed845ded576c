"""Transports that send requests to endpoints (HTTP, and memory for tests), and the conversion of network exceptions."""

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
    """Sends requests. Foreign exceptions do not leave it: see `yggdrasill.remote.transports`."""

    def request(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """Send, and give the answer for as long as the context is open.

        Raises:
            EndpointUnreachable, AccessDenied, ProtocolMismatch: see `yggdrasill.remote.transports.translate`.
        """
        ...


CONNECT_SECONDS = 5.0
READ_BUFFER = 1 << 20


class HttpTransport:
    """Keeps connections open between requests. ``ca`` is a PEM file of the authority that signed the endpoint's certificate.

    Redirects are not followed: a token goes to the url it belongs to and nowhere else.
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
        """Close every connection; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Exchange:
    """One request and its answer."""

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
    """What a handler gives: a status, headers, and a body as bytes or as a stream of them."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


#: Takes the request and its whole body.
Handler = Callable[[Request, bytes], Awaitable[HandlerResponse]]


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


#: What `translated` catches; aiohttp's errors are added when it is loaded, and all derive from its ClientError.
FOREIGN: tuple[type[Exception], ...] = (OSError, asyncio.TimeoutError, TimeoutError, EOFError, asyncio.InvalidStateError)


def translate(error: Exception, url: str) -> YggdrasillError:
    """Our error for a foreign one that a request to ``url`` raised."""
    import aiohttp

    if isinstance(error, aiohttp.InvalidURL):
        return InvalidArgument(f"{url!r} is no url of an endpoint; give one such as 'http://127.0.0.1:8400'", url=url)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError, aiohttp.ServerFingerprintMismatch)):
        return AccessDenied(
            f"the endpoint at {url} has no certificate this machine trusts ({_describe_error(error)}); name its authority with 'ca' in endpoints.yaml",
            url=url,
        )
    if isinstance(error, (aiohttp.ContentTypeError, aiohttp.TooManyRedirects, aiohttp.WSServerHandshakeError)):
        return ProtocolMismatch(
            f"what answers at {url} is no Yggdrasill endpoint ({_describe_error(error)}); check the url and the port", url=url
        )
    if isinstance(error, aiohttp.ClientResponseError):
        return ProtocolMismatch(
            f"what answers at {url} speaks another HTTP ({_describe_error(error)}); check the url and the port", url=url
        )
    if isinstance(error, (aiohttp.ClientConnectorError, ConnectionRefusedError)):
        return EndpointUnreachable(f"nothing answers at {url} ({_describe_error(error)}); start the endpoint or correct its url", url=url)
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return EndpointUnreachable(f"the endpoint at {url} is silent for too long; check that it is alive", url=url, broken=True)
    return EndpointUnreachable(f"the connection to {url} broke ({_describe_error(error)})", url=url, broken=True)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn every foreign exception raised inside into ours, with the original as its cause."""
    import aiohttp

    try:
        yield
    except Exception as error:
        if isinstance(error, YggdrasillError) or not isinstance(error, (aiohttp.ClientError, *FOREIGN)):
            raise
        raise translate(error, url) from error


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
