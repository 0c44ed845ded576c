"""Every exception of the network is converted by one map, and the map is total."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import client_exceptions
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, ProtocolMismatch, UnknownGraph, YggdrasillError
from yggdrasill.remote.channel import FOREIGN, Response, translate, translated

KEY = ConnectionKey("h", 1, True, True, None, None, None)
REQUEST = aiohttp.RequestInfo(URL("http://h"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://h"))


def below(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for child in cls.__subclasses__():
        yield from below(child)


def made(cls: type[Exception]) -> Exception:
    """Create an instance, whatever its constructor requires."""
    error = cls.__new__(cls)
    if isinstance(error, aiohttp.ClientResponseError):
        aiohttp.ClientResponseError.__init__(error, REQUEST, ())
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        aiohttp.ClientConnectorCertificateError.__init__(error, KEY, ssl.SSLCertVerificationError("x"))
    elif isinstance(error, client_exceptions.UnixClientConnectorError):
        client_exceptions.UnixClientConnectorError.__init__(error, "/socket", KEY, OSError(111, "refused"))
    elif isinstance(error, aiohttp.ClientConnectorError):
        aiohttp.ClientConnectorError.__init__(error, KEY, OSError(111, "refused"))
    elif isinstance(error, aiohttp.ServerFingerprintMismatch):
        aiohttp.ServerFingerprintMismatch.__init__(error, b"a", b"b", "h", 1)
    elif isinstance(error, aiohttp.InvalidURL):
        aiohttp.InvalidURL.__init__(error, "h")
    return error


RAISED_BY_THE_NETWORK = {"aiohttp", "asyncio", "builtins", "concurrent", "socket", "ssl"}
ROOTS: tuple[type[Exception], ...] = (aiohttp.ClientError, *FOREIGN)
FOREIGN_CLASSES = sorted(
    {cls for root in ROOTS for cls in below(root) if cls.__module__.partition(".")[0] in RAISED_BY_THE_NETWORK},
    key=lambda cls: cls.__qualname__,
)


@pytest.mark.parametrize("cls", FOREIGN_CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_error_of_aiohttp_sockets_and_timeouts_becomes_one_of_ours(cls: type[Exception]) -> None:
    found = translate(made(cls), "http://127.0.0.1:1")
    assert isinstance(found, (EndpointUnreachable, AccessDenied, ProtocolMismatch, InvalidArgument))
    assert "http://127.0.0.1:1" in found.message


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (ConnectionRefusedError(111, "refused"), EndpointUnreachable, "nothing answers"),
        (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), EndpointUnreachable, "nothing answers"),
        (ConnectionResetError(104, "reset"), EndpointUnreachable, "broke"),
        (aiohttp.ServerDisconnectedError(), EndpointUnreachable, "broke"),
        (aiohttp.ServerTimeoutError(), EndpointUnreachable, "sent no data for too long"),
        (asyncio.TimeoutError(), EndpointUnreachable, "sent no data for too long"),
        (socket.gaierror(-2, "unknown"), EndpointUnreachable, "broke"),
        (aiohttp.ClientPayloadError("cut"), EndpointUnreachable, "broke"),
        (ssl.SSLCertVerificationError("self-signed"), AccessDenied, "'ca'"),
        (aiohttp.ClientResponseError(REQUEST, ()), ProtocolMismatch, "invalid HTTP"),
        (aiohttp.InvalidURL("h"), InvalidArgument, "not a URL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_says_what_to_do(error: Exception, kind: type[YggdrasillError], said: str) -> None:
    with pytest.raises(kind) as caught, translated("http://h:1"):
        raise error
    assert said in caught.value.message
    assert caught.value.__cause__ is error


def test_our_own_errors_and_those_of_programs_pass_unchanged() -> None:
    for error in (UnknownGraph("x"), EndpointUnreachable("y"), ZeroDivisionError(), asyncio.CancelledError()):
        with pytest.raises(type(error)) as caught, translated("http://h:1"):
            raise error
        assert caught.value is error


def response_of() -> tuple[Response, StreamReader]:
    """Return a response whose body is fed by the test."""
    protocol = BaseProtocol(asyncio.get_running_loop())
    protocol.connection_made(asyncio.Transport())
    stream = StreamReader(protocol, 2**16)
    response: Any = SimpleNamespace(content=stream)
    return Response(response, "http://h"), stream


@pytest.mark.parametrize("silence", [None, 5.0])
async def test_a_cancellation_that_meets_an_arriving_chunk_is_not_lost(silence: float | None) -> None:
    response, stream = response_of()

    async def read() -> None:
        async for _ in response.chunks(silence):
            pass

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    stream.feed_data(b"event")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, 2)


async def test_a_silent_body_is_a_broken_connection() -> None:
    response, stream = response_of()
    chunks = response.chunks(0.05)
    stream.feed_data(b"event")
    assert await chunks.__anext__() == b"event"
    with pytest.raises(EndpointUnreachable):
        await asyncio.wait_for(chunks.__anext__(), 5)
