"""Observers of remote calls: cost reports of finished calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CallReport", "LoadReport", "Report", "TransferMeter", "observe_calls", "report"]

Kind = Literal["compute", "transfer", "wait"]
_observer: ContextVar[Callable[[Report], None] | None] = ContextVar("yggdrasill_calls", default=None)


@dataclass
class TransferMeter:
    """Bytes and seconds of a call's transfers, updated during the call."""

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
    """A finished call of a remote part.

    Times are seconds of `time.perf_counter`; ``queued_s`` and ``run_s`` are the endpoint's, ``fetch_s`` is the time the endpoint took
    to fetch ``bytes_direct`` from other endpoints.
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
        """Return the tensor bytes that crossed a socket for this call."""
        return self.meter.bytes_sent + self.meter.bytes_received + self.bytes_direct

    def spans(self) -> list[tuple[str, str, Kind, float, float, int]]:
        """Return (endpoint, label, kind, start, end, pass) in order: input transfer, wait, computation, output transfer.

        Time that belongs to no span (requests, packing) counts as waiting before the computation.
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
    """A tensor at an endpoint that was fetched when it was used."""

    endpoint: str
    started: float
    finished: float
    bytes_moved: int
    pass_index: int = 0

    def spans(self) -> list[tuple[str, str, Kind, float, float, int]]:
        """Return one transfer."""
        return [(self.endpoint, "load", "transfer", self.started, self.finished, self.pass_index)]


Report = CallReport | LoadReport


@contextmanager
def observe_calls(observer: Callable[[Report], None]) -> Iterator[None]:
    """Call ``observer`` with every call and load that finishes within this block or in branches it starts."""
    before = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(before)


def report(finished: Report) -> None:
    """Pass a report to the observer, if any."""
    observer = _observer.get()
    if observer is not None:
        observer(finished)
