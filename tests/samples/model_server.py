"""A server of model files, an endpoint that fetches from it, and that endpoint as a process that can be killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from samples.endpoints import TESTS
from yggdrasill.server_ext.auth import Access, Signer
from yggdrasill.server_ext.configs import HostRules
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.server_ext.jobs.store import JobStore
from yggdrasill.server_ext.model_fetch import ModelRequest, ModelSources
from yggdrasill.server_ext.peer_fetcher import PeerFetcher
from yggdrasill.server_ext.principals import Principals
from yggdrasill.server_ext.service import Service
from yggdrasill.values.stores.memory import MemoryStore

__all__ = ["SHA256", "WEIGHTS", "ModelServer", "fetching_process", "files", "model_server", "service", "sources"]

WEIGHTS = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class ModelServer(ThreadingHTTPServer):
    """A server where ``/good/...`` returns the weights, ``/good/short...`` a truncated response, ``/good/gated...`` the second half when
    ``gate`` is set, ``/good/to/X`` a redirect to X, and any other path 404."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ModelHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.gate = threading.Event()
        #: Of how many gated files the first half was given.
        self.halves = 0


class _ModelHandler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_GET(self) -> None:
        if self.path.startswith("/good/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/good/to"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        known = self.path.startswith("/good/") and not self.path.startswith("/good/none")
        self.send_response(200 if known or self.path.startswith("/private/") else 404)
        if not self.path.startswith("/good/untold"):
            self.send_header("Content-Length", str(len(WEIGHTS)))
        self.end_headers()
        # whoever fetches may be killed
        with suppress(OSError):
            self._give()

    def _give(self) -> None:
        if self.path.startswith("/good/gated"):
            half = len(WEIGHTS) // 2
            self.wfile.write(WEIGHTS[:half])
            self.server.halves += 1
            self.server.gate.wait(60)
            self.wfile.write(WEIGHTS[half:])
        else:
            self.wfile.write(WEIGHTS[:1000] if self.path.startswith("/good/short") else WEIGHTS)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """Start a server of model files."""
    server = ModelServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


def sources(folder: Path, url: str, *, most: int = 1 << 30, allowed: tuple[str, ...] = ("/good",)) -> ModelSources:
    """Return sources with one folder, ``loras``, and the paths ``allowed`` at a model server."""
    base = folder / "loras"
    base.mkdir(exist_ok=True)
    return ModelSources([url + path for path in allowed], lambda: {"loras": base}, most)


def service(folder: Path) -> Service:
    """Return a service, not started, with its files in ``folder`` and without model folders."""
    store = MemoryStore()
    return Service(
        access=Access(Principals("token-of-a-test"), folder, store),
        host=HeadlessHost(),
        deployments=Deployments(folder / "graphs", HostRules([folder], folder, lambda url: False)),
        jobs=JobStore(folder / "jobs.sqlite"),
        store=store,
        signer=Signer("key", None),
        fetcher=PeerFetcher(store, lambda url: False, 1 << 30),
    )


def files(folder: Path) -> list[str]:
    """Return all files below a folder, including hidden ones."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fetching_process(folder: Path, url: str, key: str) -> subprocess.Popen[bytes]:
    """Start a process whose endpoint fetches ``/good/gated.safetensors`` from a model server into ``loras/a.safetensors``."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "samples.model_server", str(folder), url, key]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})


async def _fetch(folder: Path, url: str, key: str) -> None:
    endpoint = service(folder)
    endpoint.models = sources(folder, url)
    await endpoint.start()
    await endpoint.fetch_model(ModelRequest(f"{url}/good/gated.safetensors", "loras", "a.safetensors"), key)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(_fetch(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
