"""Baselines of remote calls: the same bytes through a raw socket pair and through a plain aiohttp server.

As a program, ``python -m benchmarks.baselines socket|http`` is the peer process; its first line is ``port N``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.processes import spawn

__all__ = ["HttpPeer", "SocketPeer"]

LENGTH = struct.Struct("<Q")
MAX_BYTES = 1 << 31


class SocketPeer:
    """A peer process that receives a message into new memory and sends it back."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[SocketPeer]:
        """Start the process and connect."""
        with spawn(["-m", "benchmarks.baselines", "socket"], "port ") as port:
            peer = cls(int(port))
            try:
                yield peer
            finally:
                peer._socket.close()

    def out_and_back(self, data: memoryview) -> bytearray:
        """Send the bytes and receive the same number into new memory."""
        self._socket.sendall(LENGTH.pack(data.nbytes))
        self._socket.sendall(data)
        back = bytearray(data.nbytes)
        _receive(self._socket, back)
        return back


def _receive(connection: socket.socket, into: bytearray) -> None:
    view, done = memoryview(into), 0
    while done < len(into):
        got = connection.recv_into(view[done:])
        if not got:
            raise ConnectionError("the peer process closed the connection")
        done += got


def _serve_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print("port", server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            head = bytearray(LENGTH.size)
            with contextlib.suppress(ConnectionError):
                while True:
                    _receive(connection, head)
                    kept = bytearray(LENGTH.unpack(head)[0])
                    _receive(connection, kept)
                    connection.sendall(kept)


class HttpPeer:
    """A process with a plain aiohttp server: PUT stores a body, GET returns it, POST echoes JSON."""

    def __init__(self, port: int) -> None:
        import aiohttp

        self._loop = asyncio.new_event_loop()
        #: Where a body is stored, and a POST is echoed.
        self.url = f"http://127.0.0.1:{port}/body"

        async def connect() -> aiohttp.ClientSession:
            return aiohttp.ClientSession()

        self._session = self._loop.run_until_complete(connect())

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[HttpPeer]:
        """Start the process and connect."""
        with spawn(["-m", "benchmarks.baselines", "http"], "port ") as port:
            peer = cls(int(port))
            try:
                yield peer
            finally:
                peer._loop.run_until_complete(peer._session.close())
                peer._loop.close()

    def out_and_back(self, data: memoryview) -> bytes:
        """PUT the bytes and GET them."""
        return self._loop.run_until_complete(self._out_and_back(data))

    async def _out_and_back(self, data: memoryview) -> bytes:
        async with self._session.put(self.url, data=data) as answer:
            answer.raise_for_status()
        async with self._session.get(self.url) as answer:
            answer.raise_for_status()
            return await answer.read()

    def echo(self, value: Mapping[str, Any]) -> Any:
        """POST a JSON value and read it back."""
        return self._loop.run_until_complete(self._echo(value))

    async def _echo(self, value: Mapping[str, Any]) -> Any:
        async with self._session.post(self.url, json=value) as answer:
            return await answer.json()


def _serve_http() -> None:
    from aiohttp import web

    kept = {"body": b""}

    async def put(request: web.Request) -> web.Response:
        kept["body"] = await request.read()
        return web.Response(status=204)

    async def get(request: web.Request) -> web.Response:
        return web.Response(body=kept["body"], content_type="application/octet-stream")

    async def echo(request: web.Request) -> web.Response:
        return web.json_response(await request.json())

    async def serve() -> None:
        app = web.Application(client_max_size=MAX_BYTES)
        app.add_routes([web.put("/body", put), web.get("/body", get), web.post("/body", echo)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print("port", runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    {"socket": _serve_socket, "http": _serve_http}[sys.argv[1]]()
