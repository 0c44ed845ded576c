"""The prompts that one waiting node runs nested: re-entrant runs, and runs of the node itself."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from yggdrasill.errors import Cancelled, RunError
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.nested_run import NestedRun
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.reentrancy import Wait
from yggdrasill.server_ext.comfy.runner import QueueRunner

__all__ = ["LONGEST_NESTED_RUN", "ReentrantSlot"]

LONGEST_NESTED_RUN = 600.0
"""Seconds after which a re-entrant run is cancelled, so that the outer prompt continues."""


class ReentrantSlot:
    """Created on the event loop of the prompt that waits. ``enclosing`` is the re-entrant run that the waiting node belongs to, if any.

    Nested prompts start as soon as they are offered and run concurrently on this event loop. They must not queue behind each other: one may
    be waiting for what another computes.
    """

    def __init__(self, runner: QueueRunner, enclosing: PromptRun | None) -> None:
        self._runner = runner
        self._enclosing = enclosing
        self._loop = asyncio.get_running_loop()
        self._offered = asyncio.Event()
        self._pending: queue.SimpleQueue[PromptRun] = queue.SimpleQueue()
        self._local_runs: set[PromptRun] = set()
        self._tasks: dict[asyncio.Task[None], PromptRun] = {}
        self._wait: Wait | None = None
        self._lock = threading.Lock()
        self._ended = False

    # -- from other threads -------------------------------------------------------------------------------------

    def update_waits(self, keys: list[str]) -> None:
        """Set the job keys that the node waits for."""
        with self._lock:
            if self._wait is None and not self._ended:
                self._wait = Wait(self._offer, self._enclosing)
                self._runner.reentrancy.begin(self._wait)
            if self._wait is not None:
                self._runner.reentrancy.update(self._wait, keys)

    def run_local(self, run: PromptRun) -> None:
        """Run a prompt that the node itself started.

        Raises:
            Cancelled: the node no longer waits.
        """
        with self._lock:
            if self._ended:
                raise Cancelled(f"{run.node_path}: the calling node was stopped", node=run.node_path)
            run.state, run.reentrant_root = "nested", self._enclosing
            self._local_runs.add(run)
            self._offer(run)

    def wake(self) -> None:
        """End the current `wait_with`."""
        with contextlib.suppress(RuntimeError):  # the waiting prompt has ended; its loop is closed
            self._loop.call_soon_threadsafe(self._offered.set)

    def _offer(self, run: PromptRun) -> None:
        self._pending.put(run)
        try:
            self._loop.call_soon_threadsafe(self._offered.set)
        except RuntimeError:  # the waiting prompt has ended; its loop is closed
            self._abandon_pending()

    # -- on the waiting prompt's loop ---------------------------------------------------------------------------

    async def wait_with(self, future: asyncio.Future[Any], seconds: float) -> None:
        """Wait for ``future`` for at most ``seconds``, and start the prompts that are offered in that time."""
        offered = asyncio.ensure_future(self._offered.wait())
        try:
            await asyncio.wait([future, offered, *self._tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            offered.cancel()
        if self._offered.is_set() and not compat.interrupted():
            self._offered.clear()
            for run in self._take_pending():
                self._tasks[asyncio.ensure_future(self._run(run))] = run
        self._tasks = {task: run for task, run in self._tasks.items() if not task.done()}

    async def stop(self) -> None:
        """Cancel the nested prompts, because the owner interrupted the outer one, and wait for them. No further prompt starts."""
        with self._lock:
            self._ended = True
        self._abandon_pending()
        for run in self._tasks.values():
            run.context.token.cancel("the prompt it ran inside was interrupted by the owner of that ComfyUI")
        await self.finish()

    async def finish(self) -> None:
        """Wait until no nested prompt runs; otherwise it would be cut off when the loop closes."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def end(self) -> None:
        """Stop waiting, and hand pending prompts back."""
        with self._lock:
            self._ended = True
        if self._wait is not None:
            self._runner.reentrancy.end(self._wait)
        self._abandon_pending()

    async def _run(self, run: PromptRun) -> None:
        is_local = run in self._local_runs
        try:
            nested = NestedRun(run)
            run.cancel_nested = nested.cancel
            run.deadline = None if is_local else time.monotonic() + LONGEST_NESTED_RUN
            await nested.execute()
        except asyncio.CancelledError:
            self._abandon(run)
            raise
        except Exception as error:  # noqa: BLE001 - the run ends with it
            run.refuse(RunError(f"{run.node_path}: it could not run nested inside a waiting prompt: {type(error).__name__}: {error}"))
        finally:
            run.cancel_nested = run.deadline = None
            self._local_runs.discard(run)
            if self._wait is not None and not is_local:
                self._runner.reentrancy.nested_run_ended(self._wait)

    def _take_pending(self) -> Iterator[PromptRun]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._pending.get_nowait()

    def _abandon_pending(self) -> None:
        for run in self._take_pending():
            self._abandon(run)

    def _abandon(self, run: PromptRun) -> None:
        """Handle a nested run whose outer prompt ended first: requeue a re-entrant run, and end one that the node itself started."""
        if run in self._local_runs:
            run.refuse(Cancelled(f"{run.node_path}: the outer prompt has ended", node=run.node_path))
        elif run.state == "nested":
            asyncio.run_coroutine_threadsafe(self._requeue(run), compat.main_loop())

    async def _requeue(self, run: PromptRun) -> None:
        run.reentrant_root = None
        with compat.shielded("a job could not be put back into the queue"):
            self._runner.queue(run)
