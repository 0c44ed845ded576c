"""Connections without requests, more of them than the endpoint has file descriptors."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from samples.endpoints import EndpointProcess
from samples.http_client import Http

resource = pytest.importorskip("resource")
DESCRIPTORS = 256


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Http]:
    """Return an endpoint that may open 256 files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS // 2, DESCRIPTORS))

    monkeypatch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, preexec_fn=limit))
    process = EndpointProcess("narrow", tmp_path, plugins=["samples.served_blocks"]).start()
    yield Http(process)
    process.stop()


def connect(http: Http, stack: contextlib.ExitStack, count: int, text: bytes = b"") -> None:
    address, port = http.process.url.removeprefix("http://").split(":")
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection((address, int(port)), 5))
        # The endpoint may have closed it already.
        with contextlib.suppress(OSError):
            connection.sendall(text)


@pytest.mark.parametrize(
    "text", [b"", b"GET / HTTP/1.1\r\nHost: a", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["silent", "half a head", "no token"]
)
def test_an_endpoint_answers_beside_more_connections_than_it_has_descriptors(narrow: Http, text: bytes) -> None:
    with contextlib.ExitStack() as stack:
        connect(narrow, stack, 400, text)
        for _ in range(3):
            started = time.perf_counter()
            assert narrow.get("/health").status_code == 200
            assert time.perf_counter() - started < 8.0
            narrow.session.close()
        if Path("/proc/self/fd").exists():
            assert len(os.listdir(f"/proc/{narrow.process.pid}/fd")) < DESCRIPTORS  # noqa: PTH208
    log = narrow.process.log()
    assert len(log) < 5000
    assert log.count("connections, its limit") == 1


def test_the_limit_of_open_files_is_raised(narrow: Http) -> None:
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs a system that shows the limits of another process")
    assert resource.prlimit(narrow.process.pid, resource.RLIMIT_NOFILE) == (DESCRIPTORS, DESCRIPTORS)


def test_a_connection_without_a_request_is_closed_after_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from aiohttp import web

    from yggdrasill.server_ext import connections

    monkeypatch.setattr(connections, "_REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(connections, "_SWEEP_SECONDS", 0.05)

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.6)
        return web.Response(text="done")

    async def serve() -> list[bytes]:
        limiter = connections.ConnectionLimiter(10)
        app = web.Application(middlewares=[limiter.track])
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        assert runner.server is not None
        port = await limiter.listen(runner.server, "127.0.0.1", 0)
        found = []
        for text in (b"", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text)
            found.append(await asyncio.wait_for(reader.read(), 5))
            writer.close()
        limiter.close()
        await runner.cleanup()
        return found

    silent, partial, complete = asyncio.run(serve())
    assert silent == partial == b""
    assert complete.endswith(b"done")
