"""A job of a queue channel: its row, its events, and the facts of the queue's job that runs it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from yggdrasill.errors import YggdrasillError
from yggdrasill.protocol.states import FINAL, IN_QUEUE
from yggdrasill.remote.serverless.messages import passing_place

__all__ = ["QueueJob"]

_MAX_EVENTS = 2000
_PAUSE_SECONDS = 5.0


class QueueJob:
    """A job with the request that is sent for it. ``message`` is the input of the queue's job without artifacts, ``sizes`` has the artifacts by hash.

    ``kind`` and ``graph_id`` are those of the row. ``seconds`` bounds its run, if the caller wants less than the budget.
    """

    def __init__(
        self, key: str, kind: str, graph_id: str, message: Mapping[str, Any], sizes: Mapping[str, int], seconds: float | None = None
    ) -> None:
        self.job_id, self.key, self.kind, self.graph_id = uuid.uuid4().hex, key, kind, graph_id
        self.message, self.sizes, self.seconds = message, dict(sizes), seconds
        self.status = IN_QUEUE
        self.missing: list[str] = []
        #: How often it was queued, and the id of the queue's present job.
        self.attempts = 0
        self.run_id: str | None = None
        self.is_cancelled = False
        self.created = time.time()
        self.started: float | None = None
        self.finished: float | None = None
        self.timing: dict[str, float] = {}
        #: What is known about the workers while the job waits for one.
        self.waiting: dict[str, Any] | None = None
        self.output: Any = None
        self.error: dict[str, Any] | None = None
        #: The result of the worker, after the end.
        self.envelope: Mapping[str, Any] = {}
        self.task: asyncio.Task[None] | None = None
        self.submission: asyncio.Task[None] | None = None
        self._events: list[tuple[int, str, Mapping[str, Any]]] = []
        self._seq = 0
        self._changed = asyncio.Event()
        #: The number of the newest passing event of the worker, and of the last numbered one.
        self._seen = self._numbered = 0

    @property
    def is_final(self) -> bool:
        """Return whether the job has ended."""
        return self.status in FINAL

    def row(self) -> dict[str, Any]:
        """Return the row as JSON, with the output of a completed job."""
        found: dict[str, Any] = {
            "job_id": self.job_id,
            "key": self.key,
            "graph_id": self.graph_id,
            "kind": self.kind,
            "status": self.status,
            "missing": self.missing,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "attempts": self.attempts,
            "timing": self.timing,
            "waiting": self.waiting if self.status == IN_QUEUE else None,
            "detached": False,
            "error": self.error,
        }
        return found if self.output is None else {**found, "output": self.output}

    # -- changes ------------------------------------------------------------------------------------------------

    def set_status(self, status: str, **facts: Any) -> None:
        """Change the state, unless the job has ended or has this state, and add its event."""
        if self.is_final or (status == self.status and not facts):
            return
        self.status = status
        self.add_event("status", {"status": status, **facts})

    def wait_for(self, missing: list[str], status: str) -> None:
        """Wait for the caller's upload of artifacts."""
        self.missing = missing
        self.set_status(status, missing=missing)

    def end(self, status: str, *, output: Any = None, error: YggdrasillError | Mapping[str, Any] | None = None) -> None:
        """End the job, once."""
        if self.is_final:
            return
        self.finished = time.time()
        self.output = output
        self.error = error.to_dict() if isinstance(error, YggdrasillError) else None if error is None else dict(error)
        self.set_status(status, final=True)

    def add_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event; of very many the oldest are forgotten, and of progress and previews all but the newest."""
        self._seq += 1
        place = passing_place(kind, data)
        if place is not None:
            self._events = [event for event in self._events if passing_place(event[1], event[2]) != place]
        self._events.append((self._seq, kind, data))
        if len(self._events) > 2 * _MAX_EVENTS:
            del self._events[:_MAX_EVENTS]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def receive(self, events: object) -> None:
        """Add the worker's events that were not received before; each is ``[seq, kind, data, number]``.

        Numbered ones are added in their order, each once: those after a gap are received with the result. Others are older than one that was
        received, or are added at once.
        """
        for event in events if isinstance(events, list) else ():
            if not isinstance(event, list) or len(event) != 4 or not isinstance(event[0], int) or not isinstance(event[2], Mapping):
                continue
            seq, kind, data, number = event
            if number == 0 and seq > self._seen:
                self._seen = seq
            elif number != 0 and number == self._numbered + 1:
                self._numbered += 1
            else:
                continue
            self.add_event(str(kind), data)

    def forget(self) -> None:
        """Forget what is large of a job that has ended and was read."""
        self.message, self.envelope, self._events = {}, {}, self._events[-1:]

    def begin_attempt(self) -> None:
        """Prepare for the events of another worker."""
        self._seen = self._numbered = 0

    # -- readers ------------------------------------------------------------------------------------------------

    async def ended(self, seconds: float) -> None:
        """Wait until the job ends or waits for inputs, at most ``seconds``."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self.is_final and not self.missing and loop.time() < end:
            try:
                await asyncio.wait_for(self._changed.wait(), end - loop.time())
            except asyncio.TimeoutError:
                return

    async def stream(self, after: int) -> AsyncIterator[bytes]:
        """Yield the events after ``after`` as server-sent events, up to the last one."""
        while True:
            changed = self._changed
            for seq, kind, data in [event for event in self._events if event[0] > after]:
                after = seq
                yield f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
            if self.is_final:
                return
            if changed is self._changed:
                try:
                    await asyncio.wait_for(changed.wait(), _PAUSE_SECONDS)
                except asyncio.TimeoutError:
                    yield b": waiting\n\n"
