"""Event loop thread: one background asyncio loop per process that runs coroutines for blocking code, started on first use."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, Protocol, TypeVar

from yggdrasill.errors import InvalidArgument
from yggdrasill.executor.context import CancelToken

__all__ = ["AsyncCloseable", "LoopThread", "PendingResult", "loop_thread"]

Result = TypeVar("Result")
#: How often a waiting thread checks its cancel token, in seconds.
POLL_SECONDS = 0.04
_CLOSE_SECONDS = 3.0
_loop_threads_lock = threading.Lock()


class AsyncCloseable(Protocol):
    """A resource that belongs to the loop and is closed on it."""

    async def aclose(self) -> None:
        """Close the resource."""
        ...


Shared = TypeVar("Shared", bound=AsyncCloseable)


class PendingResult(Generic[Result]):
    """A coroutine on the loop thread. ``future`` is done when the coroutine has ended, also after `cancel`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Result]) -> None:
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()
        self._loop = loop
        self._task: asyncio.Task[Result] | None = None
        loop.call_soon_threadsafe(self._start, coroutine)

    def _start(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[Result]) -> None:
        if task.cancelled():
            self.future.set_exception(CancelledError())
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())

    def cancel(self) -> None:
        """Cancel the coroutine; it may finish its cleanup before it ends."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())


class LoopThread:
    """Runs coroutines for waiting threads. A forked child starts a new thread; `close` may be called at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._shared: dict[str, Any] = {}

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> PendingResult[Result]:
        """Start a coroutine on the loop without waiting for it."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._serve, args=(self._loop,), name="yggdrasill-remote", daemon=True)
                self._thread.start()
            return PendingResult(self._loop, coroutine)

    def shared(self, key: str, make: Callable[[], Shared]) -> Shared:
        """Return the resource that ``make()`` created for ``key``, shared until the loop thread closes it."""
        with self._lock:
            if key not in self._shared:
                self._shared[key] = make()
            shared: Shared = self._shared[key]
            return shared

    def run(
        self,
        coroutine: Coroutine[Any, Any, Result],
        *,
        token: CancelToken | None = None,
        inbox: queue.SimpleQueue[Callable[[], None] | None] | None = None,
    ) -> Result:
        """Run a coroutine and wait for it in this thread, calling the functions put into ``inbox``.

        A cancelled token, KeyboardInterrupt, or an exception of an inbox function cancels the coroutine and waits for its end.

        Raises:
            InvalidArgument: called on the loop thread, which would wait for itself.
            concurrent.futures.CancelledError: the token was cancelled.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise InvalidArgument("blocking call on the thread that serves all blocking calls; await the asynchronous form")
        pending = self.start(coroutine)
        box: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue() if inbox is None else inbox
        pending.future.add_done_callback(lambda _: box.put(None))
        try:
            _serve_inbox(box, pending, token)
        except BaseException:
            pending.cancel()
            with contextlib.suppress(BaseException):
                pending.future.result(_CLOSE_SECONDS)
            raise
        return pending.future.result()

    async def run_async(
        self,
        coroutine: Coroutine[Any, Any, Result],
        *,
        token: CancelToken | None = None,
        inbox: queue.SimpleQueue[Callable[[], None] | None] | None = None,
    ) -> Result:
        """Do the same for a caller on another event loop, without blocking that loop."""
        pending = self.start(coroutine)
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        pending.future.add_done_callback(lambda _: _wake(loop, ended))
        try:
            while not ended.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ended.wait(), POLL_SECONDS)
                _run_inbox(inbox)
                if token is not None and token.cancelled:
                    pending.cancel()
                    token = None
        except BaseException:
            pending.cancel()
            raise
        return pending.future.result()

    def close(self) -> None:
        """Cancel running coroutines, close connections, and stop the thread. The next call starts a new one."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            shared, self._shared = list(self._shared.values()), {}
        if loop is None or thread is None or thread is threading.current_thread():
            return
        future = asyncio.run_coroutine_threadsafe(_close_all(shared), loop)
        with contextlib.suppress(Exception):
            future.result(_CLOSE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSE_SECONDS)

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


def _serve_inbox(box: queue.SimpleQueue[Callable[[], None] | None], pending: PendingResult[Any], token: CancelToken | None) -> None:
    cancel_sent = False
    while True:
        try:
            call = box.get(timeout=POLL_SECONDS)
        except queue.Empty:
            call = _no_message
        if call is None:
            return
        call()
        if token is not None and token.cancelled and not cancel_sent:
            cancel_sent = True
            pending.cancel()


def _run_inbox(inbox: queue.SimpleQueue[Callable[[], None] | None] | None) -> None:
    while inbox is not None and not inbox.empty():
        call = inbox.get_nowait()
        if call is not None:
            call()


def _wake(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # That loop may be closed.
        loop.call_soon_threadsafe(ended.set)


def _no_message() -> None:
    """Do nothing: no message arrived."""


async def _close_all(shared: list[AsyncCloseable]) -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for resource in shared:
        await resource.aclose()


_loop_threads: dict[int, LoopThread] = {}  # By process id: a forked child must not use its parent's loop, not even to close it.


def loop_thread() -> LoopThread:
    """Return the loop thread of this process."""
    process = os.getpid()
    found = _loop_threads.get(process)
    if found is None:
        with _loop_threads_lock:
            found = _loop_threads.setdefault(process, LoopThread())
    return found


def _close_at_exit() -> None:
    found = _loop_threads.get(os.getpid())
    if found is not None:
        found.close()


atexit.register(_close_at_exit)
