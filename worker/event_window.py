"""The events of a call as progress messages of a job, of which a reader sees only the newest: each repeats what happened recently."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from yggdrasill.remote.serverless.messages import EVENTS, passing_place
from yggdrasill.worker.progress import Report

__all__ = ["EventWindow"]

_SECONDS = 0.25
_RECENT_SECONDS = 6.0
_MAX_BYTES = 192 << 10
_KEPT_BYTES = 8 << 20


class EventWindow:
    """Numbers events and reports the recent ones, at most four times a second. Thread-safe.

    A reader polls and may miss messages, therefore `kept` returns the events that must not be lost, for the result of the job: all but
    progress and previews, up to 8 MiB.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._seq = 0
        self._recent: list[tuple[float, int, str, Any, int]] = []
        self._kept: list[list[Any]] = []
        self._kept_bytes = 0
        self._sent = 0.0
        self._timer: threading.Timer | None = None
        self._closed = False

    def add(self, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event."""
        with self._lock:
            self._seq += 1
            size, mark = len(json.dumps(data)), passing_place(kind, data)
            if mark is not None:
                self._recent = [each for each in self._recent if passing_place(each[2], each[3]) != mark]
            elif self._kept_bytes + size <= _KEPT_BYTES:
                self._kept_bytes += size
                self._kept.append([self._seq, kind, data])
            self._recent.append((time.monotonic(), self._seq, kind, data, size))
            self._plan()

    def kept(self, most_bytes: int = _KEPT_BYTES) -> list[list[Any]]:
        """Return the newest events for the result, about ``most_bytes`` of JSON, and send no more messages."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            chosen = []
            for event in reversed(self._kept):
                most_bytes -= len(json.dumps(event))
                if most_bytes < 0:
                    break
                chosen.append(event)
            return chosen[::-1]

    def _plan(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = threading.Timer(max(0.0, self._sent + _SECONDS - time.monotonic()), self._send)
            self._timer.daemon = True
            self._timer.start()

    def _send(self) -> None:
        with self._lock:
            self._timer = None
            if self._closed:
                return
            self._sent = now = time.monotonic()
            self._recent = [each for each in self._recent if now - each[0] < _RECENT_SECONDS]
            room, chosen = _MAX_BYTES, []
            for _, seq, kind, data, size in reversed(self._recent):
                room -= size
                if room < 0:
                    break
                chosen.append([seq, kind, data])
            message = {"type": EVENTS, "seq": self._seq, "events": chosen[::-1]}
        self._report(message)
