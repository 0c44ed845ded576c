"""Closes the endpoint before a signal ends ComfyUI, which never calls the shutdown handlers of its web application.

A process that is killed, or replaced by another program as some restart buttons do, is not closed: its jobs are continued by the next start.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from yggdrasill.server_ext.comfy import compat

__all__ = ["LONGEST_CLOSE", "OrderlyStop"]

LONGEST_CLOSE = 8.0
"""Seconds after which a signal ends the process although the endpoint has not closed. A second signal ends it at once."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


class OrderlyStop:
    """Calls ``close`` on the main loop when a signal arrives, and then lets the signal act as it did before."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self._close = close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._previous: dict[int, Any] = {}
        self._closing: asyncio.Future[None] | None = None
        self._is_signalled = False
        self._ending: asyncio.Future[None] | None = None

    def install(self) -> None:
        """Handle signals from now on. Call it on the main loop; without effect in a loop of another thread, which receives no signals."""
        if threading.current_thread() is threading.main_thread():
            self._loop = asyncio.get_running_loop()
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    self._previous[number] = handler
                    signal.signal(number, self._handle)

    async def close(self) -> None:
        """Close the endpoint once, and handle signals no more."""
        self._restore()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            # another pack may have replaced our handler since
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_signalled or self._loop is None or not self._loop.is_running():
            self._end(number)
            return
        self._is_signalled = True
        self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        self._ending = asyncio.ensure_future(self._close_and_end(number))

    async def _close_and_end(self, number: int) -> None:
        with compat.shielded("the endpoint could not be closed before ComfyUI ended"):
            if self._closing is None:
                self._closing = asyncio.ensure_future(self._close())
            await asyncio.wait([self._closing], timeout=LONGEST_CLOSE)
        # a callback may raise KeyboardInterrupt out of the loop; a task would keep it as its exception
        asyncio.get_running_loop().call_soon(self._end, number)

    def _end(self, number: int) -> None:
        """Let the signal act as it did before. A handler of another pack that calls ours is not called again."""
        self._restore()
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, None)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
