"""Observers of remote calls: cost reports, and the keys of the calls that a run waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "CallReport",
    "LoadReport",
    "Report",
    "TransferMeter",
    "WaitCallback",
    "WaitedCalls",
    "observe_calls",
    "observe_waits",
    "report",
    "waiting",
]

Kind = Literal["compute", "transfer", "wait"]


@dataclass
class TransferMeter:
    """Filled in while a call is under way: bytes and seconds of its transfers."""

    bytes_sent: int = 0
    bytes_received: int = 0
    send_s: float = 0.0
    receive_s: float = 0.0

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Measure the seconds of an upload."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.send_s += time.perf_counter() - start

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Measure the seconds of a download."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.receive_s += time.perf_counter() - start


@dataclass(frozen=True)
class CallReport:
    """One finished call of a part at an endpoint.

    Times are seconds of `time.perf_counter`; ``queued_s`` and ``run_s`` are the endpoint's, ``fetch_s`` is what it took to
    fetch ``bytes_direct`` from other endpoints.
    """

    endpoint: str
    graph_id: str
    path: tuple[str, ...]
    pass_index: int
    started: float
    finished: float
    queued_s: float
    run_s: float
    fetch_s: float
    bytes_direct: int
    meter: TransferMeter = field(default_factory=TransferMeter)

    @property
    def bytes_moved(self) -> int:
        """Tensor bytes that crossed a socket for this call."""
        return self.meter.bytes_sent + self.meter.bytes_received + self.bytes_direct

    def spans(self) -> list[tuple[str, str, Kind, float, float, int]]:
        """(place, label, kind, start, end, pass) in order: inputs move, the job waits and computes, outputs move.

        Where the parts do not add up to the whole (requests, packing), the rest is waiting before the computation.
        """
        moved_in = self.meter.send_s + self.fetch_s
        rest = max(self.finished - self.started - moved_in - self.run_s - self.meter.receive_s, 0.0)
        spans: list[tuple[str, str, Kind, float, float, int]] = []
        at = self.started
        parts: tuple[tuple[Kind, float], ...] = (
            ("transfer", moved_in),
            ("wait", rest),
            ("compute", self.run_s),
            ("transfer", self.meter.receive_s),
        )
        for kind, seconds in parts:
            if seconds > 0:
                spans.append((self.endpoint, self.graph_id, kind, at, at + seconds, self.pass_index))
            at += seconds
        return spans


@dataclass(frozen=True)
class LoadReport:
    """A tensor that lay at an endpoint and was fetched when somebody here needed it."""

    endpoint: str
    started: float
    finished: float
    bytes_moved: int
    pass_index: int = 0

    def spans(self) -> list[tuple[str, str, Kind, float, float, int]]:
        """One transfer."""
        return [(self.endpoint, "load", "transfer", self.started, self.finished, self.pass_index)]


Report = CallReport | LoadReport

_observer: ContextVar[Callable[[Report], None] | None] = ContextVar("yggdrasill_calls", default=None)


@contextmanager
def observe_calls(observer: Callable[[Report], None]) -> Iterator[None]:
    """Within this block, and in the branches it starts, ``observer`` is told of every finished call and load."""
    before = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(before)


def report(finished: Report) -> None:
    """Tell the observer, if there is one."""
    observer = _observer.get()
    if observer is not None:
        observer(finished)


MOST_KEYS = 64

#: Takes the keys of all the calls that are waited for in one place now.
WaitCallback = Callable[[Iterable[str]], None]


class WaitedCalls:
    """The keys of the calls that one run waits for, in all its threads.

    ``tell(keys)`` gets them in order, at most 64, whenever they change: from any thread, but never two at a time.
    """

    def __init__(self, tell: Callable[[list[str]], None]) -> None:
        self._tell = tell
        self._lock = threading.RLock()
        self._open: dict[object, frozenset[str]] = {}
        self._told: list[str] = []

    @contextmanager
    def waiting(self) -> Iterator[WaitCallback]:
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


_waits: ContextVar[WaitedCalls | None] = ContextVar("yggdrasill_waits", default=None)


@contextmanager
def observe_waits(tell: Callable[[list[str]], None]) -> Iterator[None]:
    """Within this block, and in the branches it starts, ``tell`` gets the calls that are waited for; see `WaitedCalls`."""
    before = _waits.set(WaitedCalls(tell))
    try:
        yield
    finally:
        _waits.reset(before)


@contextmanager
def waiting() -> Iterator[WaitCallback | None]:
    """Within this block the current run waits for the calls that the given function was last told; None if nobody observes."""
    waits = _waits.get()
    if waits is None:
        yield None
        return
    with waits.waiting() as learn:
        yield learn
