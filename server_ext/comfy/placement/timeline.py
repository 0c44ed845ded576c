"""The costs of the calls of recent prompts, for the timeline in the editor."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.remote.observers import CallReport, Report

__all__ = ["PlacedRun", "Timeline"]

_MAX_RUNS = 20
_MAX_CALLS = 2000


@dataclass
class PlacedRun:
    """The calls of one prompt. Times are in seconds since 1970."""

    prompt_id: str
    started: float
    calls: list[dict[str, Any]] = field(default_factory=list)


class Timeline:
    """The most recent prompts with placed parts, oldest first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: deque[PlacedRun] = deque(maxlen=_MAX_RUNS)

    def begin(self, prompt_id: str) -> None:
        """Add a prompt that starts."""
        with self._lock:
            self._runs.append(PlacedRun(prompt_id, time.time()))

    def note(self, prompt_id: str, part: str, node_id: str, report: Report) -> None:
        """Add a finished call of a prompt, or a finished transfer of a value for it."""
        entry = {"part": part, "node": node_id, **_facts(report)}
        with self._lock:
            run = next((run for run in self._runs if run.prompt_id == prompt_id), None)
            if run is not None and len(run.calls) < _MAX_CALLS:
                run.calls.append(entry)

    def runs(self) -> list[dict[str, Any]]:
        """Return ``{"prompt_id", "started", "calls"}`` for each prompt.

        A call has part, node, endpoint, started, finished, queued_s, run_s, bytes_sent, bytes_received, bytes_direct, and ``spans``:
        ``{"kind": "transfer" | "wait" | "compute", "start", "end"}`` in order.
        """
        with self._lock:
            return [{"prompt_id": run.prompt_id, "started": run.started, "calls": list(run.calls)} for run in self._runs]

    def last(self) -> dict[str, Any] | None:
        """Return the newest of `runs`, or None."""
        found = self.runs()
        return found[-1] if found else None


def _facts(report: Report) -> dict[str, Any]:
    shift = time.time() - time.perf_counter()
    spans = [{"kind": kind, "start": start + shift, "end": end + shift} for _, _, kind, start, end, _ in report.spans()]
    facts = {"endpoint": report.endpoint, "started": report.started + shift, "finished": report.finished + shift, "spans": spans}
    if isinstance(report, CallReport):
        meter = report.meter
        transferred = {"bytes_sent": meter.bytes_sent, "bytes_received": meter.bytes_received, "bytes_direct": report.bytes_direct}
        return {**facts, "queued_s": report.queued_s, "run_s": report.run_s, **transferred}
    return {**facts, "queued_s": 0.0, "run_s": 0.0, "bytes_sent": 0, "bytes_received": report.bytes_moved, "bytes_direct": 0}
