"""Workers: the threads of one outermost run, and the branches of a program that they run at the same time.

A run has at most ``limit`` computing threads, however deep its runs are nested. A thread computes while it holds one of the
pool's permits. The thread that runs a program takes steps of it like any helper; while it only waits for its helpers it gives
its permit back, so nested runs can never wait for each other in a circle.
"""

from __future__ import annotations

import contextvars
import heapq
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from yggdrasill.errors import Cancelled, InvalidArgument
from yggdrasill.executor.context import CancelToken
from yggdrasill.executor.thread_state import ThreadState

__all__ = ["WorkerPool", "check_workers", "run_branches"]

#: Threads are made on demand and bounded by the permits; a thread that waits for nested steps holds none.
_MOST_THREADS = 1 << 20


def check_workers(max_workers: int) -> int:
    """Return ``max_workers``.

    Raises:
        InvalidArgument: it is not an integer of at least 1.
    """
    if not isinstance(max_workers, int) or isinstance(max_workers, bool) or max_workers < 1:
        raise InvalidArgument(f"max_workers must be an integer of at least 1, got {max_workers!r}")
    return max_workers


class WorkerPool:
    """Permits for ``limit`` computing threads; the thread that makes the pool holds the first one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Guards the permits and every `_Branches` of the pool; notified when a step ends or a permit returns.
        self.changed = threading.Condition(threading.Lock())
        self.free = limit - 1
        self._waiting: list[_Branches] = []
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()

    def add(self, branches: _Branches) -> None:
        """Give ready steps of ``branches`` to free threads from now on. Call with `changed` held."""
        self._waiting.append(branches)
        self.dispatch()

    def remove(self, branches: _Branches) -> None:
        """Start no more threads for ``branches``. Call with `changed` held."""
        if branches in self._waiting:
            self._waiting.remove(branches)

    def give_back(self) -> None:
        """Return a permit. Call with `changed` held."""
        self.free += 1
        self.dispatch()
        self.changed.notify_all()

    def dispatch(self) -> None:
        """Start a thread for each ready step that no thread is about to take, innermost runs first. Call with `changed` held."""
        for branches in reversed(self._waiting):
            while self.free > 0 and branches.unclaimed() > 0:
                self.free -= 1
                branches.coming += 1
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="yggdrasill-branch")
                # Without another thread the run continues with those it has, its own at least.
                with suppress(RuntimeError):
                    self._threads.submit(branches.help)


def run_branches(
    pool: WorkerPool, sources: Sequence[frozenset[int]], token: CancelToken, run_step: Callable[[int, CancelToken], None]
) -> None:
    """Call ``run_step(position, token)`` for every step after the steps in ``sources[position]``, several at the same time.

    Each call has a copy of the caller's context variables and torch's thread state. After a failure no further step
    starts and the calls that run get a cancelled token; they are waited for. The failure of the first step in order is
    raised, leaving out `Cancelled` errors that the failure of another step caused.
    """
    _Branches(pool, sources, token, run_step).run()


class _Branches:
    """One program on its way through the pool. All fields are guarded by ``pool.changed``."""

    def __init__(
        self, pool: WorkerPool, sources: Sequence[frozenset[int]], token: CancelToken, run_step: Callable[[int, CancelToken], None]
    ) -> None:
        self.coming = 0
        self._pool = pool
        self._outer = token
        self._token = token.derive()
        self._run_step = run_step
        self._missing = [len(before) for before in sources]
        self._followers: list[list[int]] = [[] for _ in sources]
        for position, before in enumerate(sources):
            for source in before:
                self._followers[source].append(position)
        self._ready = [position for position, count in enumerate(self._missing) if count == 0]
        self._helpers = 0
        self._waits = self._granted = False
        self._failures: dict[int, BaseException] = {}
        self._first: int | None = None
        self._variables = contextvars.copy_context()
        self._state = ThreadState.capture()

    def unclaimed(self) -> int:
        """Return the number of ready steps that no thread is about to take."""
        return len(self._ready) - self.coming - self._waits

    def run(self) -> None:
        """Take steps in the calling thread until all are done, then raise the failure to report, if any."""
        pool = self._pool
        try:
            with pool.changed:
                position = self._take()
                pool.add(self)
            while position is not None:
                error = self._attempt(position)
                with pool.changed:
                    self._finish(position, error)
                    position = self._take()
                    pool.dispatch()
                    if position is None:
                        position = self._wait()
        except BaseException as error:
            self._interrupt(error)
            raise
        with pool.changed:
            pool.remove(self)
        failure = self._failure()
        if failure is not None:
            raise failure

    def help(self) -> None:
        """Take steps in a thread of the pool until none is ready, then pass its permit on."""
        pool = self._pool
        with pool.changed:
            self.coming -= 1
            position = self._take()
            if position is None:
                pool.give_back()
                return
            self._helpers += 1
        while position is not None:
            try:
                with self._state.applied():
                    error = self._attempt(position)
            except BaseException as problem:  # noqa: BLE001 - a thread must report every failure, or its run waits for ever
                error = problem
            with pool.changed:
                self._finish(position, error)
                position = self._take()
                if position is None:
                    self._leave()
                else:
                    pool.dispatch()
                    pool.changed.notify_all()

    def _leave(self) -> None:
        """End a helper. The last one passes its permit to the waiting owner, which must not compete for one: it may hold a
        block's lock that the threads with permits wait for."""
        self._helpers -= 1
        if self._helpers == 0 and self._waits:
            self._granted = True
            self._pool.changed.notify_all()
        else:
            self._pool.give_back()

    def _attempt(self, position: int) -> BaseException | None:
        try:
            self._variables.copy().run(self._run_step, position, self._token)
        except BaseException as error:  # noqa: BLE001 - reported by `run`, which decides between several failures
            return error
        return None

    def _take(self) -> int | None:
        return heapq.heappop(self._ready) if self._ready and self._first is None else None

    def _finish(self, position: int, error: BaseException | None) -> None:
        if error is not None:
            self._failures[position] = error
            if self._first is None:
                self._first = position
                self._ready.clear()
                self._token.cancel(f"another branch failed: {type(error).__name__}")
            return
        if self._first is not None:
            return
        for follower in self._followers[position]:
            self._missing[follower] -= 1
            if self._missing[follower] == 0:
                heapq.heappush(self._ready, follower)

    def _wait(self) -> int | None:
        """Wait without a permit until a step is ready or all helpers are done; return the step, with a permit."""
        pool = self._pool
        while self._helpers:
            self._waits = True
            pool.give_back()
            try:
                pool.changed.wait_for(lambda: self._granted or (self._ready and pool.free > 0))
            finally:
                if not self._granted:
                    pool.free -= 1
                self._waits = self._granted = False
            position = self._take()
            if position is not None:
                return position
        return None

    def _interrupt(self, error: BaseException) -> None:
        """Stop after an interrupt outside a step: start nothing, cancel the running steps, and wait for them."""
        pool = self._pool
        with pool.changed:
            self._first = -1 if self._first is None else self._first
            self._ready.clear()
            self._token.cancel(f"interrupted: {type(error).__name__}")
            pool.remove(self)
            pool.changed.wait_for(lambda: not self._helpers)

    def _failure(self) -> BaseException | None:
        """Return the failure to report: an interrupt, else the first in order that our own cancelling did not cause."""
        for _, error in sorted(self._failures.items()):
            if not isinstance(error, Exception):
                return error
        for position, error in sorted(self._failures.items()):
            if position == self._first or self._outer.cancelled or not isinstance(error, Cancelled):
                return error
        return None
