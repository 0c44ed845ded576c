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
_KEPT_BYTES = 256 << 20


class EventWindow:
    """Numbers events and reports the recent ones, at most four times a second. Thread-safe.

    An entry is ``[seq, kind, data, number]``. Of progress and previews only the newest matters: their number is 0. A reader polls and may miss
    messages, so all other events are numbered from 1, and `kept` returns them for the result of the job.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._seq = 0
        #: Recent entries with their times and sizes.
        self._recent: list[tuple[float, list[Any], int]] = []
        self._kept: list[list[Any]] = []
        self._kept_bytes = 0
        self._left_out = 0
        self._sent = 0.0
        self._timer: threading.Timer | None = None
        self._closed = False

    def add(self, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event."""
        with self._lock:
            self._seq += 1
            size, place = len(json.dumps(data)), passing_place(kind, data)
            if place is not None:
                self._recent = [each for each in self._recent if passing_place(each[1][1], each[1][2]) != place]
                entry = [self._seq, kind, data, 0]
            elif self._kept_bytes + size > _KEPT_BYTES:
                self._left_out += 1
                return
            else:
                self._kept_bytes += size
                entry = [self._seq, kind, data, len(self._kept) + 1]
                self._kept.append(entry)
            self._recent.append((time.monotonic(), entry, size))
            self._plan()

    def kept(self) -> list[list[Any]]:
        """Return the events for the result, and send no more messages. More than 256 MiB are left out, which the last event says."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if not self._left_out:
                return list(self._kept)
            text = f"{self._left_out} events of the call were left out: they are larger than {_KEPT_BYTES >> 20} MiB."
            return [*self._kept, [self._seq + 1, "log", {"level": "WARNING", "text": text}, len(self._kept) + 1]]

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
            for _, entry, size in reversed(self._recent):
                room -= size
                if room < 0:
                    break
                chosen.append(entry)
            message = {"type": EVENTS, "seq": self._seq, "events": chosen[::-1]}
        self._report(message)
