"""Uploads of large artifacts: pieces, resumed at the byte, over slow links and to endpoints without upload sessions."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from aiohttp import web

from samples.endpoints import EndpointProcess, cutter
from yggdrasill.remote import EndpointClient, RetryPolicy, uploads
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Retry

MIB = 1 << 20


@pytest.fixture(scope="module")
def harbor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointProcess]:
    """An endpoint that does not share its folder."""
    process = EndpointProcess("harbor", tmp_path_factory.mktemp("harbor")).start()
    yield process
    process.stop()


def send(client: EndpointClient, *values: bytes) -> list[str]:
    """Upload byte strings and return their hashes."""
    artifact_client = ArtifactClient()
    with artifact_client.pack(list(values)) as packed:
        sent = loop_thread().run(
            uploads.upload(client, packed.artifacts, list(values), artifact_client, Retry(RetryPolicy(first=5.0, later=20.0)))
        )
        assert sent == sum(map(len, values))
        return list(packed.artifacts)


def read(process: EndpointProcess, name: str) -> bytes:
    headers = {"Authorization": f"Bearer {process.token}"}
    answer = requests.get(f"{process.url}/yggdrasill/v1/artifacts/{name}", headers=headers, timeout=30)
    assert answer.status_code == 200
    return answer.content


def counted(client: EndpointClient, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Record method, kind of path and length of the requests with a body of known length."""
    seen: list[tuple[str, str, int]] = []
    opened = client.open

    def record(method: str, path: str, **rest: Any) -> Any:
        if rest.get("length") is not None:
            seen.append((method, "session" if "/uploads/" in path else "whole" if method == "PUT" else "batch", rest["length"]))
        return opened(method, path, **rest)

    monkeypatch.setattr(client, "open", record)
    return seen


def test_a_large_artifact_goes_in_pieces_that_grow_with_the_speed(harbor: EndpointProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    client, data = harbor.client(), os.urandom(20 * MIB)
    monkeypatch.setattr(uploads, "MAX_PIECE_BYTES", 8 * MIB)
    seen = counted(client, monkeypatch)
    (name,) = send(client, data)
    assert read(harbor, name) == data
    assert seen == [("PUT", "session", size * MIB) for size in (1, 8, 8, 3)]


def test_small_artifacts_go_as_before(harbor: EndpointProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    client = harbor.client()
    seen = counted(client, monkeypatch)
    send(client, *(os.urandom(50_000) for _ in range(5)))
    send(client, os.urandom(MIB))
    assert [kind for _, kind, _ in seen] == ["batch", "whole"]


def test_a_cut_connection_resumes_at_the_byte(harbor: EndpointProcess) -> None:
    data = os.urandom(12 * MIB)
    with cutter(harbor) as proxy:
        client = harbor.client(proxy.url)
        proxy.cut(times=3, after=3 * MIB)
        (name,) = send(client, data)
        assert read(harbor, name) == data
        # What was under way at each of the cuts is sent again, and nothing before it.
        assert proxy.to_server < len(data) + 8 * MIB


class SlowProxy:
    """A relay that takes what it is sent at once and forwards it to the server at ``rate`` bytes per second."""

    def __init__(self, port: int, rate: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._port, self._rate = port, rate
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            chunks: queue.Queue[bytes] = queue.Queue()
            for act, arguments in ((self._take, (near, chunks)), (self._forward, (far, chunks)), (self._back, (far, near))):
                threading.Thread(target=act, args=arguments, daemon=True).start()

    def _take(self, near: socket.socket, chunks: queue.Queue[bytes]) -> None:
        chunk = b"x"
        while chunk:
            try:
                chunk = near.recv(1 << 16)
            except OSError:
                chunk = b""
            self.received += len(chunk)
            chunks.put(chunk)

    def _forward(self, far: socket.socket, chunks: queue.Queue[bytes]) -> None:
        while chunk := chunks.get():
            try:
                far.sendall(chunk)
            except OSError:
                return
            time.sleep(len(chunk) / self._rate)
        far.close()

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        try:
            while chunk := far.recv(1 << 16):
                near.sendall(chunk)
        except OSError:
            pass
        near.close()


def test_an_upload_over_a_slow_path_with_large_buffers_succeeds(harbor: EndpointProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    # A tenth of the times, at ten times the speed of a slow link: 7 MB at 1 MB/s, with 3 s of silence instead of 30.
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(uploads, "UNKNOWN_SECONDS", 3.0)
    monkeypatch.setattr(uploads, "PIECE_SECONDS", 1.0)
    data = os.urandom(7_000_000)
    proxy = SlowProxy(int(harbor.url.rpartition(":")[2]), 1_000_000)
    try:
        (name,) = send(harbor.client(proxy.url), data)
        assert read(harbor, name) == data
        assert proxy.received < 1.2 * len(data)
    finally:
        proxy.close()


@pytest.fixture
def old_endpoint(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server with the artifact routes of protocol 1, and the requests that it received."""
    import asyncio

    seen: list[str] = []
    headers = {"X-Yggdrasill-Protocol": "1"}

    async def handle(request: web.Request) -> web.Response:
        seen.append(f"{request.method} {'session' if '/uploads/' in request.path else 'whole'}")
        if "/uploads/" in request.path:
            error = {"type": "UnknownName", "message": "Unknown route.", "details": {}}
            return web.json_response({"error": error}, status=404, headers=headers)
        await request.read()
        return web.json_response({}, status=201, headers=headers)

    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app := web.Application(client_max_size=64 * MIB))
    app.router.add_route("*", "/{rest:.*}", handle)

    async def begin() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        return port

    port = loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}", seen
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_an_endpoint_without_sessions_gets_whole_artifacts_and_is_remembered(old_endpoint: tuple[str, list[str]]) -> None:
    url, seen = old_endpoint
    client = EndpointClient(url)
    send(client, os.urandom(3 * MIB))
    assert seen[-1] == "PUT whole"
    assert "PUT session" in seen
    del seen[:]
    send(client, os.urandom(3 * MIB))
    assert seen == ["PUT whole"]


def test_a_client_that_speaks_protocol_1_sends_whole_artifacts(harbor: EndpointProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    client = harbor.client()
    monkeypatch.setattr(type(client), "protocol", 1)
    seen = counted(client, monkeypatch)
    send(client, os.urandom(3 * MIB))
    assert seen == [("PUT", "whole", 3 * MIB)]
