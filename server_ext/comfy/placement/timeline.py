"""What the calls of the last prompts cost: for the timeline in the editor."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.remote.reports import CallReport, Report

__all__ = ["PlacedRun", "Timeline"]

_MAX_RUNS = 20
_MAX_CALLS = 2000


@dataclass
class PlacedRun:
    """The calls of one prompt. Times are seconds since the epoch."""

    prompt_id: str
    started: float
    calls: list[dict[str, Any]] = field(default_factory=list)


class Timeline:
    """The last prompts with parts elsewhere, oldest first. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: deque[PlacedRun] = deque(maxlen=_MAX_RUNS)

    def begin(self, prompt_id: str) -> None:
        """A prompt with parts elsewhere begins."""
        with self._lock:
            self._runs.append(PlacedRun(prompt_id, time.time()))

    def note(self, prompt_id: str, part: str, node_id: str, report: Report) -> None:
        """A call of that prompt, or a value that was fetched for it, is over."""
        entry = {"part": part, "node": node_id, **_facts(report)}
        with self._lock:
            run = next((run for run in self._runs if run.prompt_id == prompt_id), None)
            if run is not None and len(run.calls) < _MAX_CALLS:
                run.calls.append(entry)

    def runs(self) -> list[dict[str, Any]]:
        """``{"prompt_id", "started", "calls"}`` each. A call has part, node, endpoint, started, finished, queued_s, run_s, bytes_sent,
        bytes_received, bytes_direct, and ``spans``: ``{"kind": "transfer" | "wait" | "compute", "start", "end"}`` in order."""
        with self._lock:
            return [{"prompt_id": run.prompt_id, "started": run.started, "calls": list(run.calls)} for run in self._runs]

    def last(self) -> dict[str, Any] | None:
        """The newest of `runs`; None before the first."""
        found = self.runs()
        return found[-1] if found else None


def _facts(report: Report) -> dict[str, Any]:
    shift = time.time() - time.perf_counter()
    spans = [{"kind": kind, "start": start + shift, "end": end + shift} for _, _, kind, start, end, _ in report.spans()]
    facts = {"endpoint": report.endpoint, "started": report.started + shift, "finished": report.finished + shift, "spans": spans}
    if isinstance(report, CallReport):
        meter = report.meter
        moved = {"bytes_sent": meter.bytes_sent, "bytes_received": meter.bytes_received, "bytes_direct": report.bytes_direct}
        return {**facts, "queued_s": report.queued_s, "run_s": report.run_s, **moved}
    return {**facts, "queued_s": 0.0, "run_s": 0.0, "bytes_sent": 0, "bytes_received": report.bytes_moved, "bytes_direct": 0}
