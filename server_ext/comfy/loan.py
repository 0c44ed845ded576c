"""The waiting of one Remote Graph node, during which it may run a prompt that is lent its place."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from yggdrasill.errors import Cancelled, RunError
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.lending import Wait
from yggdrasill.server_ext.comfy.nested import NestedRun
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.runner import QueueRunner

__all__ = ["LONGEST_LOAN", "Loan"]

LONGEST_LOAN = 600.0
"""Seconds after which a lent prompt is cancelled, so that the prompt around it goes on."""


class Loan:
    """Made on the loop of the prompt that waits. ``nested`` is the lent run that the waiting node itself belongs to, if any."""

    def __init__(self, runner: QueueRunner, nested: PromptRun | None) -> None:
        self._runner = runner
        self._nested = nested
        self._loop = asyncio.get_running_loop()
        self._offered = asyncio.Event()
        self._run: PromptRun | None = None
        self._own: list[PromptRun] = []
        self._task: asyncio.Task[None] | None = None
        self._wait: Wait | None = None
        self._lock = threading.Lock()
        self._over = False

    # -- from the call's thread ---------------------------------------------------------------------------------

    def begin(self, key: str) -> None:
        """The call got its key."""
        with self._lock:
            if not self._over:
                self._wait = Wait(key, self._offer, self._nested)
                self._runner.lender.begin(self._wait)

    def learn(self, keys: list[str]) -> None:
        """The called job says what blocks it."""
        if self._wait is not None:
            self._runner.lender.learn(self._wait, keys)

    def take(self, run: PromptRun) -> None:
        """Run a prompt of the node's own, instead of what it waited for; nothing is lent from now on.

        Raises:
            Cancelled: the node waits no longer.
        """
        with self._lock:
            if self._over:
                raise Cancelled(f"{run.place}: the node that called was stopped", node=run.place)
            run.state = "lent"
            if self._wait is not None:
                self._runner.lender.end(self._wait)
            self._own.append(run)
            waits = self._run is not None
        if not waits:
            self._offer(run)

    def _offer(self, run: PromptRun) -> None:
        self._run = run
        try:
            self._loop.call_soon_threadsafe(self._offered.set)
        except RuntimeError:  # the waiting prompt is over; its loop is closed
            self._give_up(run)

    # -- on the waiting prompt's loop ---------------------------------------------------------------------------

    async def wait_with(self, future: asyncio.Future[Any], seconds: float) -> None:
        """Wait for ``future``, or a while; a prompt that is offered meanwhile begins."""
        offered = asyncio.ensure_future(self._offered.wait())
        try:
            await asyncio.wait(
                [future, offered, *([self._task] if self._task else [])], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            offered.cancel()
        if self._offered.is_set() and self._task is None and self._run is not None and not host_api.interrupted():
            self._offered.clear()
            self._task = asyncio.ensure_future(self._lend(self._run))
        if self._task is not None and self._task.done():
            self._task = None

    async def stop(self) -> None:
        """End what runs here, as the owner interrupted the prompt around it."""
        if self._run is not None and self._task is not None:
            self._run.context.token.cancel("the prompt it ran inside was interrupted by the owner of that ComfyUI")
        await self.finish()

    async def finish(self) -> None:
        """Wait until nothing runs here any more; it would be cut off with the loop."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def end(self) -> None:
        """The node waits no longer."""
        with self._lock:
            self._over = True
        if self._wait is not None:
            self._runner.lender.end(self._wait)
        if self._run is not None and self._task is None:
            self._give_up(self._run)

    async def _lend(self, run: PromptRun) -> None:
        inner = NestedRun(run)
        run.stop_inner = inner.cancel
        run.lent_until = None if run in self._own else time.monotonic() + LONGEST_LOAN
        try:
            await inner.go()
        except asyncio.CancelledError:
            self._give_up(run)
            raise
        except Exception as error:  # noqa: BLE001 - the run ends with it
            run.refuse(RunError(f"{run.place}: it could not run inside a waiting prompt: {type(error).__name__}: {error}"))
        finally:
            self._run = run.stop_inner = run.lent_until = None
            self._next(run)
            if self._wait is not None:
                self._runner.lender.gave_back(self._wait)

    def _next(self, over: PromptRun) -> None:
        """One prompt is over; the node's own may have waited for it."""
        with self._lock:
            self._own = [run for run in self._own if run is not over]
            waiting = self._own[:1]
        for run in waiting:
            self._offer(run)

    def _give_up(self, run: PromptRun) -> None:
        """The prompt around it ended first: what was lent the place gets its own in the queue after all; what is the node's own ends too."""
        self._run = None
        if run in self._own:
            run.refuse(Cancelled(f"{run.place}: the prompt around it has ended", node=run.place))
        elif run.state == "lent":
            asyncio.run_coroutine_threadsafe(self._requeue(run), host_api.prompt_server().loop)

    async def _requeue(self, run: PromptRun) -> None:
        with host_api.shielded("a job could not be put back into the queue"):
            self._runner.queue(run)
