"""Slots: how many jobs compute at a time. Who waits for something elsewhere lends its slot to others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken

__all__ = ["Lease", "Slots"]

_LOOK_AGAIN = 0.25
"""Seconds between looks at the cancel token while waiting for a slot."""


class Slots:
    """``count`` slots; those who come back for theirs go before new jobs. ``freed`` is called whenever a new job may start."""

    def __init__(self, count: int, freed: Callable[[], None]) -> None:
        self.count = count
        self._free = count
        self._returning = 0
        self._changed = threading.Condition()
        self._freed = freed

    def try_lease(self, token: CancelToken) -> Lease | None:
        """A slot for a new job, or None while all are taken."""
        with self._changed:
            if self._free <= self._returning:
                return None
            self._free -= 1
        return Lease(self, token)

    def give(self) -> None:
        """Put a slot back."""
        with self._changed:
            self._free += 1
            self._changed.notify()
        self._freed()

    def take(self, token: CancelToken) -> None:
        """Wait for a slot.

        Raises:
            Cancelled: the job was cancelled meanwhile; no slot was taken.
        """
        with self._changed:
            self._returning += 1
            while self._free == 0 and not token.cancelled:
                self._changed.wait(_LOOK_AGAIN)
            self._returning -= 1
            taken = self._free > 0
            self._free -= taken
        if not taken:
            # whoever was kept waiting by this one's claim may start now
            self._freed()
            raise Cancelled(token.reason)


class Lease:
    """The slot of one job.

    A job holds it while none of its threads is outside; one that comes back while another of the same job is still
    outside goes on without, because holding a slot there could keep what that other waits for from ever starting.
    """

    def __init__(self, slots: Slots, token: CancelToken) -> None:
        self._slots = slots
        self._token = token
        self._lock = threading.Lock()
        self._outside = 0
        self._held = True

    @contextmanager
    def release_slot(self) -> Iterator[None]:
        """Lend the slot while waiting for something that computes elsewhere."""
        with self._lock:
            self._outside += 1
            lend, self._held = self._held, False
        if lend:
            self._slots.give()
        try:
            yield
        finally:
            self._come_back()

    def _come_back(self) -> None:
        with self._lock:
            self._outside -= 1
            last = self._outside == 0
        if not last:
            return
        self._slots.take(self._token)
        with self._lock:
            # another thread of the job may have gone outside, or come back, while this one waited
            keep = self._outside == 0 and not self._held
            self._held = self._held or keep
        if not keep:
            self._slots.give()

    def end(self) -> None:
        """The job is over."""
        with self._lock:
            held, self._held = self._held, False
        if held:
            self._slots.give()
