"""The client of a plain ComfyUI, against a server that behaves like one and can be silent or slow."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from yggdrasill.errors import Cancelled
from yggdrasill.remote import comfy_server
from yggdrasill.remote.comfy_server import ComfyServer

PROMPT = {"1": {"class_type": "X", "inputs": {}}}


class Comfy:
    """ComfyUI's routes; ``messages`` are sent after a prompt was posted, ``{id}`` in them is its id."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.queued: list[str] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.finished: dict[str, Any] = {}
        self.post_seconds = 0.0
        self._socket: web.WebSocketResponse | None = None

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        self._socket = web.WebSocketResponse()
        await self._socket.prepare(request)
        async for _ in self._socket:
            pass
        return self._socket

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(self.post_seconds)
        prompt_id = body["prompt_id"]
        self.queued.append(prompt_id)
        assert self._socket is not None
        for message in self.messages:
            if isinstance(message, bytes):
                await self._socket.send_bytes(message.replace(b"{id}", prompt_id.encode()))
            else:
                await self._socket.send_str(json.dumps(message).replace("{id}", prompt_id))
        return web.json_response({"prompt_id": prompt_id})

    async def queue(self, request: web.Request) -> web.Response:
        return web.json_response({"queue_running": [[0, prompt_id] for prompt_id in self.queued], "queue_pending": []})

    async def history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["id"]
        return web.json_response({prompt_id: self.finished["any"]} if "any" in self.finished else {})

    async def withdraw(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.withdrawn.append((request.path, str(body.get("prompt_id") or body.get("delete"))))
        return web.json_response({})


@pytest_asyncio.fixture
async def comfy() -> AsyncIterator[tuple[Comfy, ComfyServer]]:
    behaviour = Comfy()
    app = web.Application()
    app.add_routes(
        [
            web.get("/ws", behaviour.ws), web.post("/prompt", behaviour.prompt), web.get("/queue", behaviour.queue),
            web.get("/history/{id}", behaviour.history), web.post("/queue", behaviour.withdraw), web.post("/interrupt", behaviour.withdraw),
        ]
    )  # fmt: skip
    async with TestServer(app) as server:
        yield behaviour, ComfyServer(str(server.make_url("/")))


def ignore(kind: str, data: Any) -> None:
    """Receive a message."""


async def test_previews_of_both_forms_are_forwarded_and_those_of_other_prompts_are_not(comfy: tuple[Comfy, ComfyServer]) -> None:
    behaviour, server = comfy

    def with_metadata(prompt_id: str) -> bytes:
        facts = json.dumps({"prompt_id": prompt_id, "image_type": "image/png"}).encode()
        size = len(facts) + (36 - len("{id}") if "{id}" in prompt_id else 0)
        return struct.pack(">II", 4, size) + facts + b"second"

    behaviour.messages = [
        struct.pack(">II", 1, 1) + b"first", with_metadata("{id}"), with_metadata("another"), b"", struct.pack(">II", 9, 9) + b"x",
        struct.pack(">II", 4, 99) + b"{", {"type": "executing", "data": {"node": None, "prompt_id": "{id}"}},
    ]  # fmt: skip
    behaviour.finished["any"] = {"outputs": {"1": {}}, "status": {}}
    seen: list[tuple[str, bytes]] = []
    assert await server.run(PROMPT, {}, ignore, lambda media, data: seen.append((media, data))) == {"1": {}}
    assert seen == [("image/jpeg", b"first"), ("image/png", b"second")]


async def test_a_prompt_that_ends_without_a_message_is_noticed(comfy: tuple[Comfy, ComfyServer], monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, server = comfy
    monkeypatch.setattr(comfy_server, "_SILENCE", 0.1)
    running = asyncio.create_task(server.run(PROMPT, {}, ignore))
    await asyncio.sleep(0.5)
    assert not running.done()
    behaviour.queued.clear()
    behaviour.finished["any"] = {"outputs": {"1": {"text": ["x"]}}, "status": {}}
    assert await asyncio.wait_for(running, 10) == {"1": {"text": ["x"]}}


async def test_a_prompt_that_was_removed_from_the_queue_is_cancelled(
    comfy: tuple[Comfy, ComfyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour, server = comfy
    monkeypatch.setattr(comfy_server, "_SILENCE", 0.1)
    running = asyncio.create_task(server.run(PROMPT, {}, ignore))
    await asyncio.sleep(0.3)
    behaviour.queued.clear()
    with pytest.raises(Cancelled):
        await asyncio.wait_for(running, 10)


@pytest.mark.parametrize("post_seconds, wait", [(0.0, 0.3), (0.5, 0.1)])
async def test_a_cancelled_run_is_withdrawn_also_before_its_prompt_is_queued(
    comfy: tuple[Comfy, ComfyServer], post_seconds: float, wait: float
) -> None:
    behaviour, server = comfy
    behaviour.post_seconds = post_seconds
    running = asyncio.create_task(server.run(PROMPT, {}, ignore))
    await asyncio.sleep(wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (prompt_id,) = behaviour.queued
    assert [path for path, named in behaviour.withdrawn if prompt_id in named] == ["/queue", "/interrupt"]
