"""Bodies of requests whose senders are silent or slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from blake3 import blake3

from yggdrasill.errors import YggdrasillError
from yggdrasill.server_ext import bodies
from yggdrasill.values import SharedFolderStore, Writer
from yggdrasill.values.stores import ThreadedStore

DATA = b"artifact" * 1000
NAME = blake3(DATA).hexdigest()
HEAD = bytes.fromhex(NAME) + len(DATA).to_bytes(8, "little")


async def _status(act: Callable[[web.Request], Awaitable[Any]], parts: list[bytes], pause: float) -> tuple[int, str]:
    """Send ``parts`` with pauses between them, and return status and text of the response."""

    async def handler(request: web.Request) -> web.Response:
        try:
            await act(request)
        except YggdrasillError as error:
            return web.Response(status=400, text=str(error))
        return web.Response(status=200)

    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
            await asyncio.sleep(pause)

    app = web.Application()
    app.router.add_put("/", handler)
    async with TestClient(TestServer(app)) as client:
        response = await client.put("/", data=body())
        return response.status, await response.text()


def acts(store: SharedFolderStore) -> dict[str, tuple[Callable[[web.Request], Awaitable[Any]], bytes]]:
    return {
        "artifact": (lambda request: bodies.receive_artifact(request, ThreadedStore(store), NAME, 1 << 20, Writer()), DATA),
        "batch": (lambda request: bodies.receive_batch(request, ThreadedStore(store), Writer()), HEAD + DATA),
        "json": (lambda request: bodies.read_json(request, 1 << 20), b'"' + DATA + b'"'),
    }


@pytest.mark.parametrize("kind", ["artifact", "batch", "json"])
def test_a_body_whose_sender_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(bodies, "_MIN_BYTES_PER_SECOND", 1 << 20)
    store = SharedFolderStore(tmp_path)
    act, body = acts(store)[kind]
    status, text = asyncio.run(asyncio.wait_for(_status(act, [body[:4000], body[4000:]], 3.0), 10))
    assert (status, "silent for 0.2 seconds" in text) == (400, True)
    assert list((tmp_path / "incoming").iterdir()) == []
    assert not store.has(NAME)


@pytest.mark.parametrize("kind", ["artifact", "batch", "json"])
def test_a_body_that_arrives_byte_by_byte_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.4)
    monkeypatch.setattr(bodies, "_MIN_BYTES_PER_SECOND", 100_000)
    act, body = acts(SharedFolderStore(tmp_path))[kind]
    status, text = asyncio.run(asyncio.wait_for(_status(act, [body[at : at + 1] for at in range(60)], 0.1), 10))
    assert (status, "too slow" in text) == (400, True)


@pytest.mark.parametrize("kind", ["artifact", "batch", "json"])
def test_a_body_with_short_pauses_is_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 1.0)
    act, body = acts(SharedFolderStore(tmp_path))[kind]
    assert asyncio.run(_status(act, [body[at : at + 2000] for at in range(0, len(body), 2000)], 0.2))[0] == 200
