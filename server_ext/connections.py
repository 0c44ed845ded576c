"""The connections of an endpoint: a limit below that of file descriptors, and an end for those that send no request."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from yggdrasill.server_ext.tls import Handshake

__all__ = ["ConnectionLimiter", "connection_limit", "is_reportable", "log_failures_sparsely"]

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
