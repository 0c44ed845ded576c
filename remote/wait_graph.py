"""Which calls a run waits for, so that whoever waits for the run can tell when both wait for each other.

What waits says so with `waiting` and passes on what the other side says that it waits for itself; a host that observes the
runs it starts tells their callers. Who breaks a ring, and how, is the host's affair.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Learn", "WaitGraph", "observe_waits", "waiting"]

MOST_KEYS = 64

#: Takes the keys of all the calls that are waited for in one place now.
Learn = Callable[[Iterable[str]], None]


class WaitGraph:
    """The keys of the calls that one run waits for, in all its threads.

    ``tell(keys)`` gets them in order, at most 64, whenever they change: from any thread, but never two at a time.
    """

    def __init__(self, tell: Callable[[list[str]], None]) -> None:
        self._tell = tell
        self._lock = threading.RLock()
        self._open: dict[object, frozenset[str]] = {}
        self._told: list[str] = []

    @contextmanager
    def waiting(self) -> Iterator[Learn]:
        """Within this block one more place waits, for what the given function was last called with."""
        place = object()
        with self._lock:
            self._open[place] = frozenset()
        try:
            yield lambda keys: self._learn(place, keys)
        finally:
            with self._lock:
                del self._open[place]
                self._changed()

    def _learn(self, place: object, keys: Iterable[str]) -> None:
        with self._lock:
            # it may be told in another thread when nobody waits there any more
            if place in self._open:
                self._open[place] = frozenset(keys)
                self._changed()

    def _changed(self) -> None:
        keys = sorted(frozenset().union(*self._open.values()))[:MOST_KEYS]
        if keys != self._told:
            self._told = keys
            self._tell(keys)


_waits: ContextVar[WaitGraph | None] = ContextVar("yggdrasill_waits", default=None)


@contextmanager
def observe_waits(tell: Callable[[list[str]], None]) -> Iterator[None]:
    """Within this block, and in the branches it starts, ``tell`` gets the calls that are waited for; see `WaitGraph`."""
    before = _waits.set(WaitGraph(tell))
    try:
        yield
    finally:
        _waits.reset(before)


@contextmanager
def waiting() -> Iterator[Learn | None]:
    """Within this block the current run waits for the calls that the given function was last told; None if nobody observes."""
    waits = _waits.get()
    if waits is None:
        yield None
        return
    with waits.waiting() as learn:
        yield learn
