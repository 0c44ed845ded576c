"""The thin layer between the ``runpod`` SDK and the worker: an async handler, the start, and the end.

The worker runs in an event loop of its own thread. The SDK's loop, which also sends heartbeats and takes jobs, is never blocked by it, and
everything can be made ready before the SDK starts: a snapshot that is taken then has all modules imported, ComfyUI running, models
loaded, and no open connection.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.errors import InvalidArgument, YggdrasillError
from yggdrasill.worker.failures import Scrubber
from yggdrasill.worker.memory import free_memory, job_slots
from yggdrasill.worker.progress import Report
from yggdrasill.worker.service import WorkerService
from yggdrasill.worker.settings import Settings
from yggdrasill.worker.warming import warm

__all__ = ["WorkerHost", "log_to", "run_serverless"]

Result = TypeVar("Result")

_LOG = logging.getLogger("yggdrasill.worker")
_PATTERN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOCAL_FLAGS = ("--rp_serve_api", "--test_input")


class WorkerHost:
    """A `WorkerService` in an event loop of its own thread, for callers in other loops and threads."""

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="yggdrasill-worker", daemon=True)
        self._thread.start()
        self._closed = False
        self.service: WorkerService = self.run(_make(settings))
        try:
            self.run(self.service.start())
        except BaseException:
            self.close()
            raise

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the worker's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def handle(self, job: Mapping[str, Any], report: Report | None = None) -> dict[str, Any]:
        """Answer a job from another loop, as `WorkerService.handle`. A cancellation reaches the worker."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.service.handle(job, report), self._loop))

    def close(self) -> None:
        """Stop the worker, its trainers and ComfyUI, and the thread."""
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "service"):
            self.run(self.service.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def run_serverless(arguments: Sequence[str] = (), settings: Settings | None = None) -> int:
    """Run as a RunPod worker until the SDK ends, and return the exit code. ``arguments`` are those of the SDK, such as ``--rp_serve_api``.

    Raises:
        InvalidArgument: the SDK is not installed, or a setting is invalid.
    """
    began = time.time()
    chosen = settings or Settings.from_environment()
    host = WorkerHost(chosen)
    try:
        log_to(host.service, sys.stderr, chosen.root / "logs" / f"worker-{chosen.worker_id}.log")
        sdk = _sdk()
        is_local = "RUNPOD_WEBHOOK_POST_OUTPUT" not in os.environ or any(flag in arguments for flag in _LOCAL_FLAGS)
        _import_stores(chosen)
        host.run(warm(host.service))
        host.service.ready_seconds = time.time() - began
        _LOG.info(
            "ready after %.1f s (ComfyUI %.1f s, models %.1f s)",
            host.service.ready_seconds,
            host.service.comfy.boot_seconds,
            host.service.load_seconds,
        )

        async def handler(job: dict[str, Any]) -> dict[str, Any]:
            return await host.handle(job, None if is_local else lambda message: sdk.serverless.progress_update(job, message))

        def concurrency(current: int) -> int:
            return job_slots(chosen.concurrency, chosen.job_memory, host.service.running_jobs, free_memory())

        sys.argv = [sys.argv[0], *arguments]
        sdk.serverless.start({"handler": handler, "concurrency_modifier": concurrency, "refresh_worker": chosen.refresh})
    finally:
        host.close()
    return 0


class _ScrubbingFormatter(logging.Formatter):
    """Formats records, with their tracebacks, without secrets and paths."""

    def __init__(self, scrubber: Scrubber) -> None:
        super().__init__(_PATTERN)
        self._scrubber = scrubber

    def format(self, record: logging.LogRecord) -> str:
        return self._scrubber.text(super().format(record))


def log_to(service: WorkerService, stream: Any, file: Path | None = None) -> None:
    """Send the worker's log to a stream and a file, without secrets and paths: clients can read the file."""
    formatter = _ScrubbingFormatter(service.scrubber)
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    logger = logging.getLogger("yggdrasill")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


async def _make(settings: Settings) -> WorkerService:
    return WorkerService(settings)


def _sdk() -> Any:
    try:
        return importlib.import_module("runpod")
    except ImportError as error:
        raise InvalidArgument('A serverless worker needs the RunPod SDK: pip install "yggdrasill[runpod]"') from error


def _import_stores(settings: Settings) -> None:
    """Import what the first upload needs, so that no job waits for it."""
    names = ["google.cloud.storage"] if settings.gcs.bucket else []
    names += ["obstore.store"] if settings.s3.endpoint_url else []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            _LOG.warning("%s is not installed (%s); results cannot be put into that store.", name, type(error).__name__)
    for name in ("PIL.Image", "yggdrasill.remote.remote_graph", "yggdrasill.cli.outputs"):
        try:
            importlib.import_module(name)
        except (ImportError, YggdrasillError) as error:
            _LOG.warning("%s cannot be imported (%s)", name, type(error).__name__)
