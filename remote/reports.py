"""What calls of endpoints cost: when, where, how long each part took and how many bytes it moved. For tables and timelines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CallReport", "LoadReport", "Meter", "Report", "observe_calls", "report"]

Kind = Literal["compute", "transfer", "wait"]


@dataclass
class Meter:
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
    meter: Meter = field(default_factory=Meter)

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
