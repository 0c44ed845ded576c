"""Slots: permissions to compute. A job that waits for another endpoint releases its slot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken

__all__ = ["Lease", "Slots"]

_POLL_SECONDS = 0.25
"""Interval at which a thread that waits for a slot checks its cancel token."""


class Slots:
    """A fixed number of slots. Jobs that resume have priority over new jobs. ``on_free`` is called when a new job may start."""

    def __init__(self, count: int, on_free: Callable[[], None]) -> None:
        self.count = count
        self._free = count
        self._resuming = 0
        self._changed = threading.Condition()
        self._on_free = on_free

    def try_lease(self, token: CancelToken) -> Lease | None:
        """Return a slot for a new job, or None if none is free."""
        with self._changed:
            if self._free <= self._resuming:
                return None
            self._free -= 1
        return Lease(self, token)

    def release(self) -> None:
        """Return a slot."""
        with self._changed:
            self._free += 1
            self._changed.notify()
        self._on_free()

    def acquire(self, token: CancelToken) -> None:
        """Wait for a slot.

        Raises:
            Cancelled: the job was cancelled while it waited; no slot is held.
        """
        with self._changed:
            self._resuming += 1
            while self._free == 0 and not token.cancelled:
                self._changed.wait(_POLL_SECONDS)
            self._resuming -= 1
            acquired = self._free > 0
            self._free -= acquired
        if not acquired:
            # a new job that this waiter held back may start now
            self._on_free()
            raise Cancelled(token.reason)


class Lease:
    """The slot of one job.

    The job holds its slot only while none of its threads waits for another endpoint. A thread that resumes while another one still waits
    continues without a slot: holding one could prevent the job that the other thread waits for from starting.
    """

    def __init__(self, slots: Slots, token: CancelToken) -> None:
        self._slots = slots
        self._token = token
        self._lock = threading.Lock()
        self._waiting_threads = 0
        self._held = True

    @contextmanager
    def release_slot(self) -> Iterator[None]:
        """Release the slot inside the ``with`` block and acquire it again afterwards."""
        with self._lock:
            self._waiting_threads += 1
            held, self._held = self._held, False
        if held:
            self._slots.release()
        try:
            yield
        finally:
            self._reacquire()

    def _reacquire(self) -> None:
        with self._lock:
            self._waiting_threads -= 1
            last = self._waiting_threads == 0
        if not last:
            return
        self._slots.acquire(self._token)
        with self._lock:
            # another thread of the job may have released or reacquired the slot while this one waited
            keep = self._waiting_threads == 0 and not self._held
            self._held = self._held or keep
        if not keep:
            self._slots.release()

    def end(self) -> None:
        """Return the slot when the job ends."""
        with self._lock:
            held, self._held = self._held, False
        if held:
            self._slots.release()
