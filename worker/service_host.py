"""The host of our service inside a worker: its ComfyUI, or a headless endpoint in a process of its own where ComfyUI is not installed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.cli.comfy_processes import parent_pipe
from yggdrasill.errors import EndpointFailed, MissingFile, RunError, UnknownName
from yggdrasill.remote.client import EndpointClient
from yggdrasill.server_ext.auth import load_or_create_secret
from yggdrasill.server_ext.parent_watchdog import PARENT_PIPE
from yggdrasill.worker.comfy_process import CRASH_SECONDS, ComfyService, End, run_beside
from yggdrasill.worker.failures import Scrubber
from yggdrasill.worker.settings import Settings
from yggdrasill.worker.training import clean_environment
from yggdrasill.worker.versions import Versions

__all__ = ["Hosts", "ServiceHost", "graph_config", "graph_files"]

Result = TypeVar("Result")
Guard = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]

_LOG = logging.getLogger("yggdrasill.worker")
_POLL = 0.05
_STOP_SECONDS = 10.0
_TAIL_LINES = 20


@dataclass(frozen=True)
class ServiceHost:
    """A running host: the client of its service, and ``guard``, which runs a coroutine and raises `RunError` at once if the host ends."""

    client: EndpointClient
    guard: Guard


class Hosts:
    """The host of the settings, started when it is needed and again after a crash."""

    def __init__(self, settings: Settings, comfy: ComfyService, versions: Versions, scrubber: Scrubber) -> None:
        self._settings, self._comfy, self._versions = settings, comfy, versions
        self._headless = _HeadlessProcess(settings, scrubber)
        self._clients: dict[str, EndpointClient] = {}

    @property
    def is_headless(self) -> bool:
        """Whether the host is a headless endpoint, because ComfyUI is not installed."""
        return not (self._settings.comfy_home / "main.py").is_file()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[ServiceHost]:
        """Yield the running host; it is not stopped while the block runs.

        Raises:
            EndpointFailed (code ``comfy_start_failed`` or ``host_start_failed``), VersionIncomplete, UnknownVersion
        """
        if self.is_headless:
            running = await self._headless.ready()
            client = await self._client(running.url, running.data_dir)
            yield ServiceHost(client, lambda work: self._headless.guard(running, work))
            return
        version_id = self._settings.version_id
        spec = None if version_id is None else await asyncio.to_thread(self._versions.load, version_id)
        ready = await self._versions.prepare(spec, None, _ignore)
        async with self._comfy.use(ready.profile) as comfy:
            client = await self._client(comfy.process.url, self._comfy.data_dir)
            yield ServiceHost(client, lambda work: self._comfy.guard(comfy, work))

    async def _client(self, url: str, data_dir: Path) -> EndpointClient:
        token = await asyncio.to_thread(load_or_create_secret, data_dir / "token")
        known = self._clients.get(url)
        if known is None or known.token != token:
            self._clients = {url: EndpointClient(url, token=token, name="the worker's host")}
        return self._clients[url]

    async def close(self) -> None:
        """Stop the headless endpoint. ComfyUI is stopped by its own service."""
        await self._headless.close()


@dataclass(eq=False)
class _Running:
    process: subprocess.Popen[bytes]
    url: str
    data_dir: Path
    ended: asyncio.Task[End]


class _HeadlessProcess:
    """A headless endpoint on a port of this machine, with the plugins of the settings."""

    def __init__(self, settings: Settings, scrubber: Scrubber) -> None:
        self._settings, self._scrubber = settings, scrubber
        self._folder = settings.state_dir / "host"
        self._running: _Running | None = None
        self._starting = asyncio.Lock()
        self._pipes = contextlib.ExitStack()
        self._pipe: tuple[int, ...] | None = None

    async def ready(self) -> _Running:
        """Return the running endpoint, started if necessary. Raise `EndpointFailed` (code ``host_start_failed``)."""
        async with self._starting:
            if self._running is not None and self._running.ended.done():
                await asyncio.to_thread(_stop, self._running.process)
                self._running = None
            if self._running is None:
                self._running = await self._start()
            return self._running

    async def guard(self, running: _Running, work: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of ``work``. Raise `RunError` (code ``host_crashed``) as soon as the endpoint has ended."""

        def crashed(end: End) -> RunError:
            return RunError(
                f"The worker's host ended while the job ran (return code {end.code}). It is started again. Its last output:\n{end.output}",
                code="host_crashed",
            )

        return await run_beside(running.ended, work, crashed)

    async def close(self) -> None:
        """Stop the endpoint."""
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(_stop, running.process)
            await asyncio.wait({running.ended}, timeout=CRASH_SECONDS)
        self._pipes.close()
        self._pipe = None

    async def _start(self) -> _Running:
        began, data_dir = time.monotonic(), self._folder / "data"
        if self._pipe is None:
            self._pipe = self._pipes.enter_context(parent_pipe())
        process = await asyncio.to_thread(self._spawn, data_dir)
        ended = asyncio.create_task(self._end_of(process))
        try:
            line = await asyncio.wait_for(asyncio.to_thread(_first_line, process), self._settings.start_seconds)
            url = str(json.loads(line)["url"])
        except (asyncio.TimeoutError, ValueError, KeyError) as error:
            await asyncio.to_thread(_stop, process)
            raise EndpointFailed(f"The worker's host did not start. Its last output:\n{self._tail()}", code="host_start_failed") from error
        except BaseException:
            await asyncio.to_thread(_stop, process)
            raise
        _LOG.info("the worker's host is ready after %.1f s", time.monotonic() - began)
        return _Running(process, url, data_dir, ended)

    def _spawn(self, data_dir: Path) -> subprocess.Popen[bytes]:
        """Start the process. It ends with this one, because it inherits a pipe."""
        settings, pipe = self._settings, self._pipe or ()
        facts = {"port": 0, "data_dir": str(data_dir), "plugins": list(settings.host_plugins), "slots": settings.concurrency}
        python = settings.host_python or Path(sys.executable)
        environment = {
            **clean_environment(keep=("HF_TOKEN",)),
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        }
        environment |= {PARENT_PIPE: str(pipe[0])} if pipe else {}
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with (self._folder / "server.log").open("wb") as log:
                return subprocess.Popen(  # noqa: S603 - the Python of the settings
                    [str(python), "-m", "yggdrasill.server_ext", json.dumps(facts)],
                    env=environment,
                    cwd=self._folder,
                    pass_fds=pipe,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
        except OSError as error:
            raise EndpointFailed(
                f"The worker's host cannot be started ({error.strerror}). Correct HOST_PYTHON.", code="host_start_failed"
            ) from error

    async def _end_of(self, process: subprocess.Popen[bytes]) -> End:
        """Wait until a process has ended and return how it ended; the next start replaces its log."""
        while (code := process.poll()) is None:  # noqa: ASYNC110 - a process has no event
            await asyncio.sleep(_POLL)
        return End(code, self._tail())

    def _tail(self) -> str:
        try:
            text = (self._folder / "server.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return self._scrubber.text("\n".join(text.splitlines()[-_TAIL_LINES:]))


def graph_files(folder: Path) -> dict[str, Path]:
    """Return the configs of graphs in a folder by id, which is the name without suffix."""
    if not folder.is_dir():
        return {}
    return {file.stem: file for suffix in (".json", ".yaml", ".yml") for file in sorted(folder.glob(f"*{suffix}"))}


def graph_config(folder: Path, graph_id: str) -> dict[str, Any] | None:
    """Return ``{"kind", "config"}`` of the file of a graph, or None if the folder has none.

    Raises:
        UnknownName: the file describes nothing that can be served.
    """
    from yggdrasill.foundation.config import read_document
    from yggdrasill.foundation.kinds import detect_kind

    file = graph_files(folder).get(graph_id)
    if file is None:
        return None
    try:
        config = read_document(file)
    except MissingFile:
        return None
    kind = detect_kind(config)
    if kind is None:
        raise UnknownName(f"The file of graph {graph_id!r} describes no graph, pipeline, stage or world.", code="invalid_graph")
    return {"kind": kind.name, "config": config}


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    return process.stdout.readline() if process.stdout is not None else b""


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _ignore(done: int, total: int, what: str) -> None:
    """Receive the progress of a verification."""
