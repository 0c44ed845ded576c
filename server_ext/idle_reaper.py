"""The idle reaper: removes deployments that were not called for longer than their ``idle_after``."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from yggdrasill.errors import UnknownGraph

__all__ = ["IdleReaper", "RepeatedFailures"]

_LOG = logging.getLogger("yggdrasill.server")
_SWEEP_SECONDS = 1.0


class IdleReaper:
    """Last call and time limit of each deployment with an ``idle_after``. Thread-safe.

    Deployments without a limit are never removed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called: dict[str, tuple[float, float]] = {}

    def start(self, graph_id: str, idle_after: float | None) -> None:
        """Track a deployment with a limit of ``idle_after`` seconds from now; None removes its limit."""
        with self._lock:
            self._called.pop(graph_id, None)
            if idle_after is not None:
                self._called[graph_id] = time.monotonic(), idle_after

    def touch(self, graph_id: str) -> None:
        """Record a call."""
        with self._lock:
            if graph_id in self._called:
                self._called[graph_id] = time.monotonic(), self._called[graph_id][1]

    def untrack(self, graph_id: str) -> None:
        """Stop tracking a deployment."""
        with self._lock:
            self._called.pop(graph_id, None)

    def idle(self) -> list[str]:
        """Return the ids of deployments whose limit has expired."""
        now = time.monotonic()
        with self._lock:
            return [graph_id for graph_id, (called, limit) in self._called.items() if now - called > limit]

    async def sweep(self, in_use: Callable[[], Iterable[str]], remove: Callable[[str], None]) -> None:
        """Remove idle deployments with ``remove(graph_id)``, in a thread, until cancelled. Ids in ``in_use()`` count as called.

        A failed removal is tried again after another ``idle_after`` seconds.
        """
        failures = RepeatedFailures("The removal of idle graphs failed; it is repeated.")
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            with failures.logged():
                for graph_id in in_use():
                    self.touch(graph_id)
                for graph_id in self.idle():
                    await self._remove(graph_id, remove)

    async def _remove(self, graph_id: str, remove: Callable[[str], None]) -> None:
        try:
            await asyncio.to_thread(remove, graph_id)
        except UnknownGraph:
            self.untrack(graph_id)
        except Exception as error:  # noqa: BLE001 - one graph must not keep the others from being removed
            self.touch(graph_id)
            _LOG.warning("Idle graph %r cannot be removed: %s: %s", graph_id, type(error).__name__, error)
        else:
            _LOG.info("Idle graph %r was removed: it was not called within its idle_after.", graph_id)


class RepeatedFailures:
    """The failures of a periodic task, which must survive them. Each kind of exception is logged once, with ``message``."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._seen: set[type[Exception]] = set()

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Catch and log exceptions raised inside."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the periodic task must survive every error
            if type(error) not in self._seen:
                self._seen.add(type(error))
                _LOG.exception(self._message)
