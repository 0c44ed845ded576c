"""The connections of an endpoint: a limit below that of file descriptors, an end for those that send no request, and their callers.

The caller of a request behind reverse proxies has an address, and a scheme and host that it used. ``X-Forwarded-For``, ``X-Forwarded-Proto`` and
``X-Forwarded-Host`` are read only if the connection comes from a trusted proxy. A trusted proxy must set them or append to them. Of several values
the last counts, because the trusted proxy wrote it; of ``X-Forwarded-For``, the last address that is not itself a trusted proxy. ``Forwarded`` is
not read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.tls import Handshake

__all__ = ["Caller", "ConnectionLimiter", "Forwarding", "connection_limit", "is_reportable", "log_failures_sparsely"]

_LOG = logging.getLogger("yggdrasill.server")
_REQUEST_SECONDS = 30.0
_IDLE_SECONDS = 300.0
_SWEEP_SECONDS = 1.0
_LOG_SECONDS = 60.0
_MAX_CONNECTIONS = 16_384
#: Connections accepted in one turn of the event loop, beside the limit.
_ACCEPT_AT_ONCE = 16
_BACKLOG = 512
_DESCRIPTORS_WITHOUT_LIMIT = 65_536

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def connection_limit() -> int:
    """Raise this process's limit of open files to the highest allowed, and return the number of connections that fits beside its files."""
    if sys.platform == "win32":
        return _MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = _DESCRIPTORS_WITHOUT_LIMIT if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < highest:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            soft = highest
        except (OSError, ValueError) as error:
            _LOG.warning("The limit of %d open files cannot be raised (%s); the endpoint serves fewer connections", soft, error)
    if soft == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(_ACCEPT_AT_ONCE, min(_MAX_CONNECTIONS, soft * 3 // 4 - 64))


class ConnectionLimiter:
    """Keeps at most ``limit`` connections: a new one replaces an idle one, or is closed if all others have a request in progress.

    A connection is closed after 30 seconds without its first request, and after 300 seconds without another one. `track` must be a
    middleware of the application.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: Counter[asyncio.BaseProtocol] = Counter()
        self._idle_since: dict[asyncio.BaseProtocol, float] = {}
        self._served: set[asyncio.BaseProtocol] = set()
        self._closing: set[asyncio.BaseProtocol] = set()
        self._next_log = 0.0
        self._listening: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        #: The connections that have not completed TLS, oldest first.
        self._handshakes: dict[Handshake, None] = {}

    @web.middleware
    async def track(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Count the request of a connection while it is handled."""
        protocol = request.protocol
        self._busy[protocol] += 1
        self._served.add(protocol)
        try:
            return await handler(request)
        finally:
            self._busy[protocol] -= 1
            if not self._busy[protocol]:
                del self._busy[protocol]
            self._idle_since[protocol] = asyncio.get_running_loop().time()

    async def listen(self, server: web.Server, host: str, port: int, context: ssl.SSLContext | None = None) -> int:
        """Accept connections for ``server``, with TLS if there is a ``context``, and return the port. Raises OSError."""
        accept = partial(self._accept, server, context)
        self._listening = await asyncio.get_running_loop().create_server(accept, host, port, backlog=_ACCEPT_AT_ONCE)
        for listening in self._listening.sockets:
            # asyncio accepts as many connections at once as may wait; more may wait.
            with socket.fromfd(listening.fileno(), listening.family, listening.type) as alias:
                alias.listen(_BACKLOG)
        self._sweeping = asyncio.create_task(self._sweep(server))
        return int(self._listening.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Accept no more connections."""
        if self._listening is not None:
            self._listening.close()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _accept(self, server: web.Server, context: ssl.SSLContext | None) -> asyncio.BaseProtocol:
        connections: list[Any] = [one for one in server.connections if one not in self._closing]
        # a handshake uses two descriptors
        if len(connections) + 2 * len(self._handshakes) < self._limit:
            return self._connect(server, context)
        self._log_limit()
        if self._handshakes:
            next(iter(self._handshakes)).abort()
            return self._connect(server, context)
        idle = [one for one in connections if one not in self._busy]
        if not idle:
            return _Refusal()
        self._end(next((one for one in idle if one not in self._served), idle[0]))
        return self._connect(server, context)

    def _connect(self, server: web.Server, context: ssl.SSLContext | None) -> asyncio.BaseProtocol:
        if context is None:
            return server()
        handshake = Handshake(context, server, lambda ended: self._handshakes.pop(ended, None))
        self._handshakes[handshake] = None
        return handshake

    def _end(self, connection: Any) -> None:
        self._closing.add(connection)
        connection.force_close()

    async def _sweep(self, server: web.Server) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            connections: set[Any] = set(server.connections)
            self._served &= connections
            self._closing &= connections
            self._idle_since = {one: self._idle_since.get(one, now) for one in connections if one not in self._busy}
            for one, since in self._idle_since.items():
                if now - since > (_IDLE_SECONDS if one in self._served else _REQUEST_SECONDS):
                    self._end(one)

    def _log_limit(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._next_log:
            self._next_log = now + _LOG_SECONDS
            _LOG.warning("The endpoint has %d connections, its limit. New ones replace idle ones.", self._limit)


class _Refusal(asyncio.Protocol):
    """A connection that is closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


def log_failures_sparsely(loop: asyncio.AbstractEventLoop) -> None:
    """Log connections that the system refuses once a minute, because asyncio reports every attempt."""
    next_log = 0.0

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal next_log
        if not str(context.get("message", "")).startswith("socket.accept() out of system resource"):
            loop.default_exception_handler(context)
        elif loop.time() >= next_log:
            next_log = loop.time() + _LOG_SECONDS
            _LOG.error("No connection can be accepted: %s. Raise the limit of open files.", context.get("exception"))

    loop.set_exception_handler(report)


def is_reportable(record: logging.LogRecord) -> bool:
    """Return False for errors that any client can cause by invalid HTTP or by closing the connection."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("aiohttp") and isinstance(error, (HttpProcessingError, ConnectionError)))


# -- callers ----------------------------------------------------------------------------------------------------------

#: Headers that a proxy adds to requests. A request with one of them does not come from a program on this machine.
_PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")
_MAX_HOPS = 32


@dataclass(frozen=True)
class Caller:
    """The caller of a request. ``address`` is its IP address if known; ``host`` the host and port that it sent; ``scheme`` http or https."""

    address: str | None
    scheme: str
    host: str
    on_this_machine: bool

    @property
    def url(self) -> str:
        """The url at which the caller reached this endpoint, without a path."""
        return f"{self.scheme}://{self.host}"


class Forwarding:
    """Finds the caller of requests. ``trusted`` are addresses or networks of proxies whose headers are believed, as ``10.0.0.0/8``.

    Raises:
        InvalidArgument: one of them is neither an address nor a network.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = []
        for text in trusted:
            try:
                self._trusted.append(ip_network(text.strip(), strict=False))
            except ValueError as error:
                raise InvalidArgument(
                    f"{text[:100]!r} is neither an IP address nor a network. Pass the address from which the proxy connects, such as 127.0.0.1 or "
                    "10.0.0.0/8."
                ) from error

    def caller(self, request: web.Request) -> Caller:
        """Return the caller of a request."""
        address, host = request.remote, request.headers.get("Host", "")
        scheme = "https" if request.secure else "http"
        local = _ends_are_equal(request) and not any(name in request.headers for name in _PROXY_HEADERS)
        if not self._trusts(address):
            return Caller(address, scheme, host, local)
        given = _values(request, "X-Forwarded-Proto")
        if given and given[-1].lower() in ("http", "https"):
            scheme = given[-1].lower()
        host = (_values(request, "X-Forwarded-Host") or [host])[-1]
        return Caller(self._first_untrusted(address, _values(request, "X-Forwarded-For")), scheme, host, local)

    def _first_untrusted(self, address: str | None, hops: list[str]) -> str | None:
        """Return the nearest address that is not a trusted proxy. A value that is not an address ends the search."""
        for hop in hops[: -_MAX_HOPS - 1 : -1]:
            found = _address(hop)
            if found is None:
                return address
            address = str(found)
            if not self._trusts(address):
                return address
        return address

    def _trusts(self, address: str | None) -> bool:
        if not self._trusted:
            return False
        found = _address(address or "")
        return found is not None and any(found.version == network.version and found in network for network in self._trusted)


def _values(request: web.Request, name: str) -> list[str]:
    return [value.strip() for line in request.headers.getall(name, []) for value in line.split(",") if value.strip()]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in a value, which may have a port or brackets."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _ends_are_equal(request: web.Request) -> bool:
    if request.transport is None:
        return False
    ends = [request.transport.get_extra_info(name) for name in ("peername", "sockname")]
    return all(isinstance(end, tuple) for end in ends) and ends[0][0] == ends[1][0]
