"""Connections as they are outside a test: slow links, proxies that buffer, and machines that vanish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from aiohttp import web

__all__ = ["SlowLink", "VanishingMachine", "buffering_proxy", "slow_link", "vanishing_machine"]

PIECE_BYTES = 16 << 10
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"}


class SlowLink:
    """A relay to ``port`` that accepts everything at once, and forwards at most ``up`` and ``down`` bytes per second; None is unlimited.

    ``to_server`` and ``to_client`` count the bytes that were forwarded.
    """

    def __init__(self, port: int, *, up: float | None = None, down: float | None = None) -> None:
        self.to_server = 0
        self.to_client = 0
        self._port, self._up, self._down = port, up, down
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._closing = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the relay and its connections."""
        self._closing = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._server.getsockname()[1]), 1).close()
        self._thread.join(5)
        self._server.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            if self._closing:
                near.close()
                return
            far = socket.create_connection(("127.0.0.1", self._port), 5)
            far.settimeout(None)  # the limit above is for the connection; answers may take longer
            with self._lock:
                self._open += [near, far]
            self._relay(near, far, self._up, upward=True)
            self._relay(far, near, self._down, upward=False)

    def _relay(self, source: socket.socket, sink: socket.socket, rate: float | None, *, upward: bool) -> None:
        """Start one thread that reads at once, and one that forwards slowly."""
        pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def read() -> None:
            data = b"open"
            while data:
                try:
                    data = source.recv(1 << 18)
                except OSError:
                    data = b""
                for start in range(0, len(data), PIECE_BYTES):
                    pieces.put(data[start : start + PIECE_BYTES])
            pieces.put(b"")

        def write() -> None:
            with contextlib.suppress(OSError):
                while piece := pieces.get():
                    time.sleep(0.0 if rate is None else len(piece) / rate)
                    with self._lock:
                        self.to_server += len(piece) if upward else 0
                        self.to_client += 0 if upward else len(piece)
                    sink.sendall(piece)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

        for act in (read, write):
            threading.Thread(target=act, daemon=True).start()


@contextmanager
def slow_link(url: str, *, up: float | None = None, down: float | None = None) -> Iterator[SlowLink]:
    """Open a `SlowLink` to an endpoint."""
    link = SlowLink(int(url.rsplit(":", 1)[1]), up=up, down=down)
    try:
        yield link
    finally:
        link.close()


@contextmanager
def buffering_proxy(url: str) -> Iterator[str]:
    """Run a reverse proxy that forwards a request or an answer, event streams included, when it has all of it; return its url."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[web.AppRunner, aiohttp.ClientSession]:
        # the path is forwarded as it was received, and bodies are not decoded
        session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))

        async def forward(request: web.Request) -> web.Response:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
            body = await request.read()
            async with session.request(request.method, url + request.raw_path, data=body, headers=headers) as answer:
                found = await answer.read()
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_HEADERS}
                return web.Response(body=found, status=answer.status, headers=kept)

        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, session

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    runner, session = wait_for(start())
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        wait_for(runner.cleanup())
        wait_for(session.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


_CALLER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
connection.sendall(sys.stdin.buffer.read())
print(connection.recv(64).split(b"\\r\\n")[0].decode() if sys.argv[3] == "answer" else "sent", flush=True)
connection.recv(1 << 20) and connection.recv(1 << 20)
while connection.recv(1 << 16):
    pass
"""


class VanishingMachine:
    """A machine of its own, as a network namespace of Linux, that can vanish: it then answers no packet and sends none."""

    def __init__(self) -> None:
        number = os.getpid() % 250 + 1
        self.name = f"ygg{os.getpid()}"
        #: The address of this machine as the other one sees it.
        self.here = f"10.231.{number}.1"
        self._there = f"10.231.{number}.2"
        self._near, self._far = f"{self.name}a"[:15], f"{self.name}b"[:15]
        self._processes: list[subprocess.Popen[str]] = []

    def connect(self) -> None:
        """Set up the namespace and a link to it. Raises CalledProcessError without the right to do so."""
        inside = ["netns", "exec", self.name, "ip"]
        for arguments in (
            ["netns", "add", self.name],
            ["link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name],
            ["addr", "add", f"{self.here}/24", "dev", self._near],
            ["link", "set", self._near, "up"],
            [*inside, "addr", "add", f"{self._there}/24", "dev", self._far],
            [*inside, "link", "set", self._far, "up"],
        ):
            _ip(*arguments)

    def send(self, port: int, request: bytes, *, answered: bool) -> None:
        """Send a request from that machine and keep the connection. With ``answered`` wait for a successful answer to begin."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", _CALLER, self.here, str(port), "answer" if answered else "no"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request.decode())
        process.stdin.close()
        line = process.stdout.readline()
        assert line.strip() == "sent" or " 200 " in line, line

    def vanish(self) -> None:
        """Take the machine's address away: its connections stay open on this side."""
        _ip("netns", "exec", self.name, "ip", "addr", "flush", "dev", self._far)

    def close(self) -> None:
        """Remove the machine."""
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for arguments in (["link", "del", self._near], ["netns", "del", self.name]):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def vanishing_machine() -> Iterator[VanishingMachine | None]:
    """Connect a `VanishingMachine`, or return None where this process may not make one."""
    if shutil.which("ip") is None:
        yield None
        return
    machine = VanishingMachine()
    try:
        try:
            machine.connect()
        except subprocess.CalledProcessError:
            yield None
        else:
            yield machine
    finally:
        machine.close()
