"""How long ago somebody called what is served only while somebody does, and removing what nobody called for too long."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable

from yggdrasill.errors import UnknownGraph, YggdrasillError

__all__ = ["IdleReaper"]

_LOG = logging.getLogger("yggdrasill.server")
_SWEEP = 1.0


class IdleReaper:
    """By graph id, the seconds it is kept without a call, and when it was called last. Safe to use from several threads.

    What was never started is kept for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called: dict[str, tuple[float, float]] = {}

    def start(self, graph_id: str, idle_after: float | None) -> None:
        """Count the seconds from now on; None: keep it for ever."""
        with self._lock:
            self._called.pop(graph_id, None)
            if idle_after is not None:
                self._called[graph_id] = time.monotonic(), idle_after

    def touch(self, graph_id: str) -> None:
        """Somebody calls it."""
        with self._lock:
            if graph_id in self._called:
                self._called[graph_id] = time.monotonic(), self._called[graph_id][1]

    def forget(self, graph_id: str) -> None:
        """It is served no longer."""
        with self._lock:
            self._called.pop(graph_id, None)

    def idle(self) -> list[str]:
        """What was not called for as long as it is to be kept."""
        now = time.monotonic()
        with self._lock:
            return [graph_id for graph_id, (called, kept) in self._called.items() if now - called > kept]

    async def sweep(self, in_use: Callable[[], Iterable[str]], remove: Callable[[str], None]) -> None:
        """Until cancelled, have ``remove`` take away what is idle, in a thread; what ``in_use`` names counts as called.

        What cannot be removed is tried again when nobody called it for that long once more.
        """
        while True:
            await asyncio.sleep(_SWEEP)
            for graph_id in in_use():
                self.touch(graph_id)
            for graph_id in self.idle():
                try:
                    await asyncio.to_thread(remove, graph_id)
                except UnknownGraph:
                    self.forget(graph_id)
                except YggdrasillError as error:
                    self.touch(graph_id)
                    _LOG.warning("graph %r, which nobody calls, cannot be removed: %s", graph_id, error)
                else:
                    _LOG.info("graph %r is served no longer: nobody called it for as long as it was to be kept", graph_id)
