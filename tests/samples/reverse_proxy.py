"""A small reverse proxy as nginx is configured in practice: it sets X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host.

The headers ``X-Test-For``, ``X-Test-Proto`` and ``X-Test-Host`` of a request say which connection the proxy pretends to have received.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web

__all__ = ["reverse_proxy"]

_NOT_PASSED = {"host", "connection", "transfer-encoding", "content-length", "keep-alive", "x-forwarded-for"}


@contextmanager
def reverse_proxy(target: str) -> Iterator[str]:
    """Run a proxy in front of the url ``target`` in a thread, and yield its url."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    found: list[str] = []
    stop = asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            app = web.Application(client_max_size=1 << 30)

            async def forward(request: web.Request) -> web.StreamResponse:
                return await _forward(session, target, request)

            app.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            found.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            ready.set()
            await stop.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _forward(session: aiohttp.ClientSession, target: str, request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED and not name.startswith("X-Test-")}
    before = request.headers.get("X-Forwarded-For")
    caller = request.headers.get("X-Test-For", request.remote or "")
    headers["X-Forwarded-For"] = f"{before}, {caller}" if before else caller
    headers["X-Forwarded-Proto"] = request.headers.get("X-Test-Proto", request.scheme)
    headers["X-Forwarded-Host"] = request.headers.get("X-Test-Host", request.host)
    body = io.BytesIO(await request.read())
    async with session.request(request.method, target + request.raw_path, headers=headers, data=body, allow_redirects=False) as answer:
        passed = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED}
        response = web.StreamResponse(status=answer.status, headers=passed)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response
