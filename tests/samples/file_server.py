"""A server of files on loopback with the failures of real ones: broken connections, no ranges, wrong bytes, statuses, redirects."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

__all__ = ["FileServer", "data_of", "digest_of", "file_server", "spec_document"]


def data_of(name: str, nbytes: int = 300_000) -> bytes:
    """Return bytes that differ by name."""
    seed = hashlib.sha256(name.encode()).digest()
    return (seed * (nbytes // len(seed) + 1))[:nbytes]


def digest_of(data: bytes) -> str:
    """Return the sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


class FileServer:
    """A server where ``/plain/NAME`` returns ``files[NAME]``, and other first parts of the path fail in their way.

    ``cut`` sends ``cut_bytes`` and closes, ``norange`` ignores ranges and is cut once, ``gate`` waits in the middle for ``gate``, ``wrong`` has other bytes, ``long`` more of them, ``unsized`` no length, ``status/CODE`` a status, ``to/PATH`` a redirect, ``hub`` the
    answers of a hub and ``nodes`` those of the registry.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_bytes = 70_000
        self.gate = threading.Event()
        self.gated = threading.Event()
        #: Paths, and headers in lower case, of all requests.
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.archives: dict[str, bytes] = {}
        self.url = ""
        self._cut_once: set[str] = set()

    def add(self, name: str, nbytes: int = 300_000) -> bytes:
        """Add a file and return its bytes."""
        self.files[name] = data_of(name, nbytes)
        return self.files[name]

    def paths(self) -> list[str]:
        """Return the paths that were requested."""
        return [path for path, _ in self.requests]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        try:
            return await self._answer(request)
        except ConnectionError:  # the client was killed, or has what it needs
            return web.Response(status=499)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, {key.lower(): value for key, value in request.headers.items()}))
        kind, _, rest = request.path.lstrip("/").partition("/")
        if kind == "to":
            return web.Response(status=302, headers={"Location": rest if "://" in rest else f"/{rest}"})
        if kind == "status":
            return web.Response(status=int(rest.partition("/")[0]), headers={"Retry-After": "0"})
        if kind == "nodes":
            return self._registry(request, rest)
        if kind == "zip":
            return web.Response(body=self.archives[rest])
        if kind == "hub":
            name = rest.rpartition("/")[2]
            headers = {
                "Location": f"/plain/{name}",
                "X-Linked-Etag": f'"{digest_of(self.files[name])}"',
                "X-Linked-Size": str(len(self.files[name])),
            }
            return web.Response(status=302, headers=headers)
        if rest not in self.files:
            return web.Response(status=404)
        return await self._file(request, kind, rest)

    async def _file(self, request: web.Request, kind: str, name: str) -> web.StreamResponse:
        data = self.files[name]
        if kind == "wrong":
            data = bytes(byte ^ 1 for byte in data)
        if kind == "long":
            data += b"more"
        span = request.http_range if kind != "norange" else slice(None, None)
        start, stop = span.start or 0, len(data) if span.stop is None else min(span.stop, len(data))
        ranged = "Range" in request.headers and kind != "norange"
        response = web.StreamResponse(status=206 if ranged else 200)
        if ranged:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if kind == "unsized":
            response.enable_chunked_encoding()
        else:
            response.content_length = stop - start
        await response.prepare(request)
        body = data[start:stop]
        probe = request.headers.get("Range") == "bytes=0-0"
        if not probe and (kind == "cut" or (kind == "norange" and name not in self._cut_once)):
            self._cut_once.add(name)
            if len(body) > self.cut_bytes:
                await response.write(body[: self.cut_bytes])
                assert request.transport is not None
                await asyncio.sleep(0.02)  # so that the bytes leave before the connection breaks
                request.transport.close()
                return response
        if not probe and kind == "gate":
            half = 0 if start else len(body) // 2
            await response.write(body[:half])
            self.gated.set()
            await asyncio.to_thread(self.gate.wait, 60)
            body = body[half:]
        await response.write(body)
        return response

    def _registry(self, request: web.Request, rest: str) -> web.Response:
        node, version = rest.partition("/")[0], request.query.get("version", "")
        if f"{node}-{version}.zip" not in self.archives:
            return web.Response(status=404)
        return web.Response(text=json.dumps({"id": "1", "version": version, "downloadUrl": f"{self.url}/zip/{node}-{version}.zip"}))

    def add_node(self, node: str, version: str, files: dict[str, str] | None = None) -> None:
        """Add a version of a custom node to the registry."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("pyproject.toml", f'[project]\nname = "{node}"\nversion = "{version}"\n')
            for name, text in (files or {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n"}).items():
                archive.writestr(name, text)
        self.archives[f"{node}-{version}.zip"] = packed.getvalue()


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Start a server in a thread of its own."""
    server = FileServer()
    started, loop, done = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # clients are killed on purpose
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = str(runner.addresses[0][1])
        started.set()
        await done.wait()
        await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(20)
    server.url = f"http://127.0.0.1:{server.url}"
    yield server
    server.gate.set()
    loop.call_soon_threadsafe(done.set)
    thread.join(20)


def spec_document(server: FileServer, *names: str, kind: str = "plain", **definition: Any) -> dict[str, Any]:
    """Return the document of a spec with files of a server as models in ``loras``."""
    models = [
        {
            "type": "loras",
            "filename": name,
            "sha256": digest_of(server.files[name]),
            "sizeBytes": len(server.files[name]),
            "sourceUri": f"{server.url}/{kind}/{name}",
        }
        for name in names
    ]
    return {"schema": "comfy-build/1", "name": "sample", "definition": {"models": models, **definition}}
