"""A real HTTP server on this machine that answers as a test scripts it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from yggdrasill.errors import YggdrasillError
from yggdrasill.protocol.version import BASE_PATH
from yggdrasill.remote import EndpointClient

__all__ = ["GOOD", "TOKEN", "Answer", "Handler", "Received", "ScriptedEndpoint", "answer", "events", "refusal", "scripted_endpoint"]

TOKEN = "very-hidden"
GOOD = {"X-Yggdrasill-Protocol": "2"}
_SECONDS = 20.0


@dataclass(frozen=True)
class Received:
    """A request. ``path`` is below the base path of all routes."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def route(self) -> str:
        """Return method and path, without the query."""
        return f"{self.method} {self.path.partition('?')[0]}"

    @property
    def document(self) -> Any:
        """Return the JSON body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """A response: status, headers, and the whole body or its chunks."""

    status: int = 200
    body: bytes | Callable[[], AsyncIterator[bytes]] = b""
    headers: dict[str, str] = field(default_factory=dict)


#: Returns the response. A `ConnectionError` breaks the connection.
Handler = Callable[[Received], Awaitable[Answer]]


def answer(document: Any, status: int = 200, **headers: str) -> Answer:
    """Return a JSON response of a current endpoint."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(document).encode(), {**GOOD, **named})


def refusal(error: YggdrasillError, status: int, **headers: str) -> Answer:
    """Return the response that carries an error."""
    return answer({"error": error.to_dict()}, status, **headers)


def events(*entries: tuple[str, dict[str, Any]], first: int = 1) -> Answer:
    """Return an event stream of ``(kind, data)``, which ends."""
    lines = [f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for seq, (kind, data) in enumerate(entries, first)]
    return Answer(200, "".join(lines).encode(), {**GOOD, "Content-Type": "text/event-stream"})


class ScriptedEndpoint:
    """The server. It answers in a thread; ``received`` lists all requests. `stop` and `start` keep its port."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.received: list[Received] = []
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def routes(self) -> list[str]:
        """Return method and path of all requests."""
        return [received.route for received in self.received]

    def client(self, name: str = "memory", **options: Any) -> EndpointClient:
        """Return a client for it."""
        return EndpointClient(self.url, **{"token": TOKEN, "name": name, **options})

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(_SECONDS)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(_SECONDS)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        assert self._runner.server is not None
        self._server = await self._loop.create_server(self._runner.server, "127.0.0.1", self._port, reuse_address=True)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            # asyncio never closes a connection that was accepted just before its server closes, so accepting ends first
            for listening in self._server.sockets:
                self._loop.remove_reader(listening)
            await asyncio.sleep(0.02)
            self._server.close()
            await runner.cleanup()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            # Closing transports end in later iterations of the loop.
            await asyncio.sleep(0.02)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        received = Received(request.method, request.raw_path.removeprefix(BASE_PATH), dict(request.headers), await request.read())
        self.received.append(received)
        try:
            found = await self.handler(received)
        except ConnectionError:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(found.body, bytes):
            return web.Response(status=found.status, body=found.body, headers=found.headers)
        response = web.StreamResponse(status=found.status, headers=found.headers)
        await response.prepare(request)
        async for chunk in found.body():
            await response.write(chunk)
        return response


@contextmanager
def scripted_endpoint(handler: Handler) -> Iterator[ScriptedEndpoint]:
    """Start a `ScriptedEndpoint` for a block."""
    server = ScriptedEndpoint(handler)
    server.start()
    try:
        yield server
    finally:
        server.close()
