"""The waiting of one node, during which it may run prompts: what is lent its place, and what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from yggdrasill.errors import Cancelled, RunError
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.nested_run import NestedRun
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.reentrancy import Wait
from yggdrasill.server_ext.comfy.runner import QueueRunner

__all__ = ["LONGEST_NESTED_RUN", "ReentrantSlot"]

LONGEST_NESTED_RUN = 600.0
"""Seconds after which a lent prompt is cancelled, so that the prompt around it goes on."""


class ReentrantSlot:
    """Made on the loop of the prompt that waits. ``nested`` is the lent run that the waiting node itself belongs to, if any.

    Prompts begin as they are offered. Several take turns, as ComfyUI's asynchronous nodes do: none may have to wait for another,
    for one that waits for a call may be what another one was lent for.
    """

    def __init__(self, runner: QueueRunner, nested: PromptRun | None) -> None:
        self._runner = runner
        self._nested = nested
        self._loop = asyncio.get_running_loop()
        self._offered = asyncio.Event()
        self._waiting: queue.SimpleQueue[PromptRun] = queue.SimpleQueue()
        self._own: set[PromptRun] = set()
        self._tasks: dict[asyncio.Task[None], PromptRun] = {}
        self._wait: Wait | None = None
        self._lock = threading.Lock()
        self._over = False

    # -- from other threads -------------------------------------------------------------------------------------

    def learn(self, keys: list[str]) -> None:
        """The node waits for these calls now."""
        with self._lock:
            if self._wait is None and not self._over:
                self._wait = Wait(self._offer, self._nested)
                self._runner.reentrancy.begin(self._wait)
            if self._wait is not None:
                self._runner.reentrancy.learn(self._wait, keys)

    def take(self, run: PromptRun) -> None:
        """Run a prompt of the node's own.

        Raises:
            Cancelled: the node waits no longer.
        """
        with self._lock:
            if self._over:
                raise Cancelled(f"{run.node_path}: the node that called was stopped", node=run.node_path)
            run.state, run.reentrant_root = "nested", self._nested
            self._own.add(run)
            self._offer(run)

    def _offer(self, run: PromptRun) -> None:
        self._waiting.put(run)
        try:
            self._loop.call_soon_threadsafe(self._offered.set)
        except RuntimeError:  # the waiting prompt is over; its loop is closed
            self._give_up_waiting()

    # -- on the waiting prompt's loop ---------------------------------------------------------------------------

    async def wait_with(self, future: asyncio.Future[Any], seconds: float) -> None:
        """Wait for ``future``, or a while; prompts that are offered meanwhile begin."""
        offered = asyncio.ensure_future(self._offered.wait())
        try:
            await asyncio.wait([future, offered, *self._tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            offered.cancel()
        if self._offered.is_set() and not host_api.interrupted():
            self._offered.clear()
            for run in self._take_waiting():
                self._tasks[asyncio.ensure_future(self._run(run))] = run
        self._tasks = {task: run for task, run in self._tasks.items() if not task.done()}

    async def stop(self) -> None:
        """End what runs here, as the owner interrupted the prompt around it; nothing begins here any more."""
        with self._lock:
            self._over = True
        self._give_up_waiting()
        for run in self._tasks.values():
            run.context.token.cancel("the prompt it ran inside was interrupted by the owner of that ComfyUI")
        await self.finish()

    async def finish(self) -> None:
        """Wait until nothing runs here any more; it would be cut off with the loop."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def end(self) -> None:
        """The node waits no longer."""
        with self._lock:
            self._over = True
        if self._wait is not None:
            self._runner.reentrancy.end(self._wait)
        self._give_up_waiting()

    async def _run(self, run: PromptRun) -> None:
        inner, own = NestedRun(run), run in self._own
        run.cancel_nested = inner.cancel
        run.deadline = None if own else time.monotonic() + LONGEST_NESTED_RUN
        try:
            await inner.go()
        except asyncio.CancelledError:
            self._give_up(run)
            raise
        except Exception as error:  # noqa: BLE001 - the run ends with it
            run.refuse(RunError(f"{run.node_path}: it could not run inside a waiting prompt: {type(error).__name__}: {error}"))
        finally:
            run.cancel_nested = run.deadline = None
            self._own.discard(run)
            if self._wait is not None and not own:
                self._runner.reentrancy.gave_back(self._wait)

    def _take_waiting(self) -> Iterator[PromptRun]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._waiting.get_nowait()

    def _give_up_waiting(self) -> None:
        for run in self._take_waiting():
            self._give_up(run)

    def _give_up(self, run: PromptRun) -> None:
        """The prompt around it ended first: what was lent the place gets its own in the queue after all; what is the node's own ends too."""
        if run in self._own:
            run.refuse(Cancelled(f"{run.node_path}: the prompt around it has ended", node=run.node_path))
        elif run.state == "nested":
            asyncio.run_coroutine_threadsafe(self._requeue(run), host_api.prompt_server().loop)

    async def _requeue(self, run: PromptRun) -> None:
        run.reentrant_root = None
        with host_api.shielded("a job could not be put back into the queue"):
            self._runner.queue(run)
