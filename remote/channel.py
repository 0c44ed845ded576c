"""The channel to one endpoint: its HTTP connections, the state that all clients of the endpoint share, and the conversion of responses and
network exceptions to results and errors.

All exceptions of aiohttp, sockets and timeouts are converted by `translate`; no foreign exception leaves this module.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import (
    AccessDenied,
    EndpointFailed,
    EndpointUnreachable,
    InvalidArgument,
    LimitExceeded,
    MissingFile,
    ProtocolMismatch,
    QueueFull,
    YggdrasillError,
    error_from_dict,
)
from yggdrasill.protocol.streams import read_chunk
from yggdrasill.protocol.version import BASE_PATH, OLDEST_PROTOCOL, PROTOCOL, PROTOCOL_HEADER
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Breaker, InFlight, RetryBudget

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "CONNECT_SECONDS",
    "FOREIGN",
    "MAX_RETRY_AFTER",
    "Body",
    "Channel",
    "Chunk",
    "Response",
    "StreamEvent",
    "channel_of",
    "open_session",
    "read_events",
    "translate",
    "translated",
]

Chunk = bytes | memoryview
#: Bytes, or a function that opens the stream from its beginning, so that a request can be repeated.
Body = bytes | Callable[[], AsyncIterator[Chunk]] | None
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 5.0
MAX_EVENT_BYTES = 1 << 20
READ_BUFFER = 1 << 20
MAX_ANSWER_BYTES = 64 << 20
MAX_RETRY_AFTER = 60.0
MAX_BACKGROUND = 256
#: Exceptions that `translated` converts; aiohttp's errors, all subclasses of ClientError, are added when aiohttp is imported.
FOREIGN: tuple[type[Exception], ...] = (OSError, asyncio.TimeoutError, TimeoutError, EOFError, asyncio.InvalidStateError)


class Channel:
    """The state of one endpoint in this process, shared by all clients with its URL and certificate authority (``ca``, a PEM file).

    A channel belongs to the loop thread's loop. Redirects are not followed: a token is sent only to the URL it belongs to.
    """

    def __init__(self, url: str, ca: str | None = None) -> None:
        self.url = url
        self.in_flight = InFlight()
        self.budget = RetryBudget()
        self.breaker = Breaker()
        #: The protocol version of requests: the newest of this package, or an older one that the endpoint requested.
        self.protocol = PROTOCOL
        #: Calls that this process is executing at the endpoint.
        self.calls = 0
        #: The health response to the last request for the load by token, with its time and the number of calls when it was requested.
        self.loads: dict[str | None, tuple[float, int, dict[str, Any]]] = {}
        self.load_requests: dict[str | None, asyncio.Task[None]] = {}
        self._ca = ca
        self._session: aiohttp.ClientSession | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body = None, timeout: float | None = 30.0, *, probe: bool = False
    ) -> Response:
        """Send a request and return its response, which the caller closes or releases. ``timeout`` bounds the seconds without a received
        byte.

        While the breaker is open, only requests with ``probe`` are sent. When its time is over, one request begins with a health request.

        Raises:
            EndpointUnreachable, AccessDenied, ProtocolMismatch, InvalidArgument: see `translate`.
        """
        if self.breaker.is_open and not probe:
            if not self.breaker.may_probe():
                raise self.breaker.refusal()
            # without the length of the body, which follows with the request itself
            own = {name: value for name, value in headers.items() if name in (PROTOCOL_HEADER, "Authorization")}
            health = await self.send("GET", f"{self.url}{BASE_PATH}/health", own, timeout=PROBE_SECONDS, probe=True)
            health.close()
            if self.breaker.is_open:
                raise self.breaker.refusal()
        try:
            with translated(url):
                response = await self._request(method, url, headers, body, timeout)
        except EndpointUnreachable as error:
            self._lost(error)
            raise
        except BaseException:
            self.breaker.abandoned()
            raise
        if response.status in (502, 503, 504):
            self.breaker.abandoned()
        else:
            self.breaker.succeeded()
        return Response(response, url)

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body, timeout: float | None
    ) -> aiohttp.ClientResponse:
        import aiohttp

        if self._session is None:
            self._session = open_session(self._ca)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout)
        data: Any = body() if callable(body) else body
        return await self._session.request(method, url, headers=headers, data=data, timeout=limits, allow_redirects=False)

    def _lost(self, error: EndpointUnreachable) -> None:
        """Record a connection failure. The endpoint that answers next may be of another version."""
        self.breaker.failed(error)
        self.protocol = PROTOCOL

    def negotiate(self, error: ProtocolMismatch, name: str, sent: int) -> None:
        """Speak the newest common version after the refusal of version ``sent``.

        Raises:
            ProtocolMismatch: no common version; the message names both ranges.
        """
        newest, oldest = error.details.get("protocol"), error.details.get("oldest")
        if not isinstance(newest, int):
            raise error
        oldest = oldest if isinstance(oldest, int) else newest
        common = min(newest, PROTOCOL)
        if common >= max(oldest, OLDEST_PROTOCOL) and common != sent:
            self.protocol = common
            return
        side = "on the caller's side" if oldest > PROTOCOL else "at the endpoint"
        raise ProtocolMismatch(
            f"endpoint {name!r} at {self.url} speaks protocol {_range(oldest, newest)}, this client {_range(OLDEST_PROTOCOL, PROTOCOL)}; "
            f"update yggdrasill {side}",
            endpoint=name,
            oldest=oldest,
            protocol=newest,
        )

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a bounded cleanup after its caller has ended. It ends with the loop thread at the latest."""
        if len(self._background) >= MAX_BACKGROUND:
            coroutine.close()
            return
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def aclose(self) -> None:
        """Close every connection. A later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def channel_of(url: str, ca: str | None = None) -> Channel:
    """Return the channel of an endpoint, shared in this process until its loop thread is closed."""
    return loop_thread().shared(f"channel {ca} {url}", lambda: Channel(url, ca))


def _range(oldest: int, newest: int) -> str:
    return f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"


def open_session(ca: str | None) -> aiohttp.ClientSession:
    """Open a session for one server, without cookies and proxies of the environment. Raise `MissingFile` if the authority cannot be read."""
    import aiohttp

    context: Any = True
    if ca is not None:
        try:
            context = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            raise MissingFile(f"the certificate authority {ca!r} cannot be read: {error}; correct 'ca' in endpoints.yaml") from error
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    return aiohttp.ClientSession(
        connector=connector, auto_decompress=False, read_bufsize=READ_BUFFER, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    )


class Response:
    """A response whose body is read once, as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self._response, self._url = response, url

    def release(self) -> None:
        """Return the connection for the next request once the body is read."""
        self._response.release()

    def close(self) -> None:
        """Close the connection, with the rest of the body."""
        self._response.close()

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the header fields; lookup ignores case."""
        return self._response.headers

    @property
    def retry_after(self) -> float:
        """Return the seconds in the Retry-After header, at most 60; 0 without the header or for a date."""
        given = self.headers.get("Retry-After", "0").strip()
        return min(float(given), MAX_RETRY_AFTER) if given.isascii() and given.isdigit() else 0.0

    @property
    def is_event_stream(self) -> bool:
        """Return whether the body is a stream of server-sent events."""
        return self._response.content_type == "text/event-stream"

    async def chunks(self, silence: float | None = None) -> AsyncIterator[bytes]:
        """Yield the body in chunks. ``silence`` bounds the seconds without a byte, in addition to the timeout of the request.

        Raises:
            EndpointUnreachable: the connection broke.
        """
        loop, content = asyncio.get_running_loop(), self._response.content
        while True:
            # A timer that fails the stream, because before Python 3.12 `asyncio.wait_for` loses a cancellation that meets an arriving chunk.
            timer = None if silence is None else loop.call_later(silence, content.set_exception, asyncio.TimeoutError())
            try:
                with translated(self._url):
                    chunk = await read_chunk(content)
            finally:
                if timer is not None:
                    timer.cancel()
            if not chunk:
                return
            yield chunk

    async def read(self, limit: int = MAX_ANSWER_BYTES) -> bytes:
        """Return the whole body. Raise `LimitExceeded` if it is too large."""
        data = bytearray()
        async for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise LimitExceeded(
                    f"the response of an endpoint is larger than {limit} bytes; tensors must be sent as artifacts, not in responses",
                    bound=limit,
                )
        return bytes(data)

    async def json(self, name: str, url: str) -> dict[str, Any]:
        """Return the JSON object in the body, empty for an empty body.

        Raises:
            ProtocolMismatch: the body is not a JSON object.
            LimitExceeded, EndpointUnreachable
        """
        text = await self.read()
        if not text:
            return {}
        document = _parse(text)
        if document is None:
            raise ProtocolMismatch(
                f"the response of endpoint {name!r} at {url} (HTTP {self.status}) is not a JSON object; check the url and the port",
                endpoint=name,
            )
        return document

    def check_protocol(self, name: str, url: str) -> None:
        """Raise `ProtocolMismatch` if the response has a protocol version older than those of this package, or none."""
        spoken = self.headers.get(PROTOCOL_HEADER)
        if spoken is None or not spoken.isdigit() or int(spoken) < OLDEST_PROTOCOL:
            version = "no Yggdrasill protocol" if spoken is None else f"protocol version {spoken}"
            raise ProtocolMismatch(
                f"endpoint {name!r} at {url} speaks {version}, this client versions {OLDEST_PROTOCOL} to {PROTOCOL}; "
                + ("check the url and the port" if spoken is None else "update yggdrasill at the endpoint"),
                endpoint=name,
            )

    async def error(self, name: str, url: str) -> YggdrasillError:
        """Return the error that a response with an error status carries."""
        document = _parse(await self.read())
        if document is None or not isinstance(document.get("error"), dict):
            if self.status in (502, 503, 504):
                found: YggdrasillError = EndpointUnreachable(f"endpoint {name!r} at {url} is not up (HTTP {self.status})", endpoint=name)
            else:
                self.check_protocol(name, url)
                found = EndpointFailed(
                    f"endpoint {name!r} at {url} answered HTTP {self.status} without an error description", endpoint=name
                )
        else:
            found = error_from_dict(document["error"])
            if isinstance(found, AccessDenied) and "endpoint" not in found.details:
                return AccessDenied(f"endpoint {name!r} at {url}: {found.message}", **found.details, endpoint=name)
            found.details.setdefault("endpoint", name)
        found.details.pop("retry_after", None)
        if isinstance(found, (EndpointUnreachable, QueueFull)) and self.retry_after > 0:
            found.details["retry_after"] = self.retry_after
        return found


def _parse(text: bytes) -> dict[str, Any] | None:
    """Return a JSON object, or None for any other text."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


@dataclass(frozen=True)
class StreamEvent:
    """A job's event. ``kind``: ``status``, ``progress``, ``log``, ``output``, ``blocked`` or ``comfy``; ``job`` (row) and ``result`` around those
    that follow a submission. A new connection resumes after ``seq``.
    """

    kind: str
    data: dict[str, Any]
    seq: str | None = None


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[StreamEvent]:
    """Parse a stream of server-sent events (WHATWG HTML, 9.2). Comments and events without JSON are skipped."""
    rest = b""
    fields: dict[str, str] = {}
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise LimitExceeded(f"a line of an event stream is longer than {MAX_EVENT_BYTES} bytes", bound=MAX_EVENT_BYTES)
        for line in lines:
            text = line.rstrip(b"\r").decode("utf-8", "replace")
            if text:
                name, _, value = text.partition(":")
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            elif fields:
                event = _event(fields)
                fields = {}
                if event is not None:
                    yield event


def _event(fields: dict[str, str]) -> StreamEvent | None:
    try:
        data = json.loads(fields.get("data", ""))
    except ValueError:
        return None
    return StreamEvent(fields.get("event", "message"), data, fields.get("id")) if isinstance(data, dict) else None


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
