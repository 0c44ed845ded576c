"""TLS of an endpoint by a certificate of its own, read again when its files change."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from yggdrasill.errors import InvalidArgument

__all__ = ["Certificate", "Handshake"]

_LOG = logging.getLogger("yggdrasill.server")
_HANDSHAKE_SECONDS = 10.0
_CHECK_SECONDS = 2.0
_PLAIN_ANSWER = (
    b'{"error":{"type":"ProtocolMismatch","message":"This endpoint serves https and received plain http. Use a url that begins with https://.",'
    b'"details":{}}}'
)
_PLAIN_RESPONSE = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_PLAIN_ANSWER),
    _PLAIN_ANSWER,
)


class Certificate:
    """The certificate chain and key in two PEM files. ``context`` uses the newest valid ones.

    Raises:
        InvalidArgument: they cannot be read or do not belong together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._stamp = self._read_stamp()
        self.context = self._load(_new_context())

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        certificate, key = self._files
        try:
            # without a password: a key that needs one would ask for it on the terminal
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror if isinstance(error, OSError) else str(error)
            raise InvalidArgument(
                f"Cannot use the certificate {str(certificate)!r} with the key {str(key)!r}: {reason or type(error).__name__}. Both must be PEM "
                "files, the key without a password and that of the certificate."
            ) from error
        return context

    def reload(self) -> None:
        """Read the files again if they changed. Files that cannot be used are logged, and the earlier certificate stays in use."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            # first into another context, so that a key without its certificate changes nothing
            self._load(_new_context())
            self._load(self.context)
        except InvalidArgument as error:
            _LOG.warning("The new certificate is not used; the earlier one stays in use: %s", error)
        else:
            _LOG.info("The certificate was read again.")

    async def watch(self) -> None:
        """Call `reload` regularly until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await asyncio.to_thread(self.reload)

    def _read_stamp(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                status = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return found


def _new_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Handshake(asyncio.Protocol):
    """A new connection until its TLS handshake is complete. Then ``connect()`` returns the protocol that serves it.

    A connection that does not complete it within 10 seconds is closed. Plain http is answered with an error. ``ended`` receives this object
    when the handshake has succeeded or failed.
    """

    def __init__(self, context: ssl.SSLContext, connect: Callable[[], asyncio.BaseProtocol], ended: Callable[[Handshake], object]) -> None:
        self._context, self._connect, self._ended = context, connect, ended
        self._received = bytearray()
        self._lost = False
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """Close the connection."""
        self._ended(self)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a TCP server passes
        self._transport = transport
        transport.pause_reading()
        self._task = asyncio.get_running_loop().create_task(self._run(transport))

    def data_received(self, data: bytes) -> None:
        """Keep what arrives between the handshake and the change of protocols."""
        self._received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True

    async def _run(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        # the transport closes its descriptor when the handshake fails, before an answer can be sent
        plain = socket.socket(fileno=socket.dup(transport.get_extra_info("socket").fileno()))
        try:
            secured = await loop.start_tls(transport, self, self._context, server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS)
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                await _answer_plain(plain)
        except (OSError, asyncio.TimeoutError):
            pass
        else:
            if secured is not None and not self._lost:
                protocol = self._connect()
                secured.set_protocol(protocol)
                protocol.connection_made(secured)
                if self._received and isinstance(protocol, asyncio.Protocol):
                    protocol.data_received(bytes(self._received))
        finally:
            plain.close()
            self._ended(self)


async def _answer_plain(connection: socket.socket) -> None:
    try:
        connection.setblocking(False)
        connection.send(_PLAIN_RESPONSE)
        connection.shutdown(socket.SHUT_WR)
        # what the client still sends must be read: closing before it would reset the connection and lose the answer
        await asyncio.wait_for(_read_to_end(connection), 1.0)
    except (OSError, asyncio.TimeoutError):
        return


async def _read_to_end(connection: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(connection, 1 << 16):
        pass
