"""Events of an endpoint: numbering, storage and distribution, the callers that wait for a change, and the wait-for graph of jobs.

Not thread-safe: all calls happen on one event loop; other threads use ``loop.call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from yggdrasill.errors import RunError
from yggdrasill.protocol.states import FINAL, IN_QUEUE, STAGING, WAITING_INPUTS
from yggdrasill.server_ext.jobs.execution import Task
from yggdrasill.server_ext.jobs.model import Event, Job
from yggdrasill.server_ext.jobs.store import JobStore

__all__ = ["EventHub", "WaitForGraph", "Waiting"]

_POLL_SECONDS = 0.5

#: Numbers skipped at startup: more than the events that a killed process can have sent but not stored.
_RESTART_GAP = 100_000
_MAX_BACKLOG = 10_000
"""A listener with more unread events is disconnected; it can reconnect and resume from the store."""
_MAX_KNOWN_EVENTS, _MAX_KNOWN_TEXT = 64, 32 << 10
"""The events of a job, and the characters of their data, up to which they are kept in memory besides the store."""
_MAX_KNOWN_JOBS = 256
"""Finished jobs whose events are kept in memory."""


class _Known:
    """All events of one job, while they are few and small."""

    def __init__(self) -> None:
        self.events: dict[int, Event] = {}
        self.size = 0

    def add(self, event: Event, replaced: int | None) -> bool:
        """Add an event. Return False if they have become too many."""
        old = None if replaced is None else self.events.pop(replaced, None)
        self.events[event.seq] = event
        self.size += len(event.text) - (0 if old is None else len(old.text))
        return len(self.events) <= _MAX_KNOWN_EVENTS and self.size <= _MAX_KNOWN_TEXT


class _Listener:
    def __init__(self, job_id: str | None) -> None:
        self.job_id = job_id
        self.backlog: OrderedDict[int, Event] = OrderedDict()
        self.arrived = asyncio.Event()
        self.disconnected = False

    def put(self, event: Event, replaced: int | None) -> None:
        if replaced is not None:
            self.backlog.pop(replaced, None)
        self.disconnected = self.disconnected or len(self.backlog) >= _MAX_BACKLOG
        if not self.disconnected:
            self.backlog[event.seq] = event
        self.arrived.set()


class EventHub:
    """The events of one endpoint. ``last`` is the highest assigned number."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        #: Listeners by the job that they listen to; None for all jobs.
        self._listeners: defaultdict[str | None, set[_Listener]] = defaultdict(set)
        self._slots: dict[str, dict[str, int]] = {}
        #: The events of jobs that began since the start, see `begin`; a job with too many or too large events is left out.
        self._known_events: dict[str, _Known] = {}
        self._ended: deque[str] = deque()
        self.last = 0

    async def start(self) -> None:
        """Continue numbering after the stored events, and report the ends of jobs whose events a killed process had not stored."""
        stored = await asyncio.wrap_future(self._store.last_seq())
        self.last = stored + _RESTART_GAP if stored else 0
        for job_id, status, error in await asyncio.wrap_future(self._store.unreported_ends()):
            self.emit(job_id, "status", {"status": status, "error": error})
        self._store.flush()

    def begin(self, job_id: str) -> None:
        """Keep the events of a new job in memory too, so that they are read without the store."""
        self._known_events[job_id] = _Known()

    def emit(self, job_id: str, kind: str, data: dict[str, Any], slot: str | None = None) -> Event:
        """Number, store and send an event. Of a job's events with the same ``slot`` only the newest is stored.

        It is stored with the next change of a row, or when the store is flushed.
        """
        self.last += 1
        event = Event(self.last, job_id, kind, {"job_id": job_id, **data})
        older = None
        if slot is not None:
            slots = self._slots.setdefault(job_id, {})
            older, slots[slot] = slots.get(slot), event.seq
        is_last = kind == "status" and data.get("status") in FINAL
        if is_last:
            self._slots.pop(job_id, None)
        self._store.add_event(event, older, lazily=True)
        self._keep(event, older, is_last)
        for listeners in (self._listeners.get(job_id, ()), self._listeners.get(None, ())):
            for listener in listeners:
                listener.put(event, older)
        return event

    def _keep(self, event: Event, replaced: int | None, is_last: bool) -> None:
        known = self._known_events.get(event.job_id)
        if known is None:
            return
        if not known.add(event, replaced):
            del self._known_events[event.job_id]
        elif is_last:
            self._ended.append(event.job_id)
            if len(self._ended) > _MAX_KNOWN_JOBS:
                self._known_events.pop(self._ended.popleft(), None)

    def close(self) -> None:
        """End all streams."""
        for listener in [listener for listeners in self._listeners.values() for listener in listeners]:
            listener.disconnected = True
            listener.arrived.set()

    async def stored(self, job_id: str | None, after: int) -> AsyncGenerator[Event, None]:
        """Yield the stored events of one job, or of all, after the number ``after``."""
        sent = self._known(after)
        known = None if job_id is None else self._known_events.get(job_id)
        if known is not None:
            for event in list(known.events.values()):
                if event.seq > sent:
                    yield event
            return
        while events := await asyncio.wrap_future(self._store.events(job_id, sent)):
            for event in events:
                yield event
                sent = event.seq

    def _known(self, after: int) -> int:
        """Return ``after``, or 0 for a number that was never assigned: it is from a deleted job file."""
        return after if after <= self.last else 0

    async def listen(self, job_id: str | None, after: int | None, pause: float) -> AsyncGenerator[Event | None, None]:
        """Yield events of one job, or of all, after the number ``after`` (None: new events only), without end.

        Yields None after each ``pause`` seconds of silence. Ends with `close`, or when the listener falls too far behind.
        """
        listener = _Listener(job_id)
        self._listeners[job_id].add(listener)
        try:
            sent = self.last
            if after is not None:
                sent = self._known(after)
                async with aclosing(self.stored(job_id, after)) as stored:
                    async for event in stored:
                        yield event
                        sent = event.seq
            while not listener.disconnected:
                while listener.backlog:
                    _, event = listener.backlog.popitem(last=False)
                    if event.seq > sent:
                        yield event
                        sent = event.seq
                listener.arrived.clear()
                try:
                    await asyncio.wait_for(listener.arrived.wait(), pause)
                except asyncio.TimeoutError:
                    yield None
        finally:
            self._listeners[job_id].discard(listener)
            if not self._listeners[job_id]:
                del self._listeners[job_id]


DEADLOCK_SECONDS = 3.0
"""How long a job must wait for itself before it fails. Another endpoint in the cycle may resolve the deadlock first."""


class WaitForGraph:
    """Tracks which unfinished ``tasks`` wait for which calls. ``end(job, error)`` fails a deadlocked job.

    Not thread-safe: all calls happen on the event loop of ``hub``.
    """

    def __init__(self, hub: EventHub, tasks: Mapping[str, Task], end: Callable[[Job, Exception], None]) -> None:
        self._hub, self._tasks, self._end = hub, tasks, end
        self._waits_of_key: dict[str, list[str]] = {}
        self._deadlocked_since: dict[str, float] = {}

    def set_waits(self, task: Task, keys: list[str]) -> None:
        """Record the keys of the calls that the run of ``task`` waits for. Tasks queued behind it wait for the same calls."""
        self._emit_blocked(task.job, keys)
        key = task.exclusive_key
        if key is None:
            return
        self._waits_of_key[key] = keys
        for other in [other for other in self._tasks.values() if other is not task and other.exclusive_key == key]:
            self.add_queued(other)
        if not keys:
            del self._waits_of_key[key]

    def add_queued(self, task: Task) -> None:
        """Record a queued task. It waits for a running task with the same exclusive key."""
        keys = None if task.exclusive_key is None else self._waits_of_key.get(task.exclusive_key)
        if keys is None or task.job.status != IN_QUEUE:
            return
        if task.job.call_key not in keys:
            self._deadlocked_since.pop(task.job.job_id, None)
        else:
            self._deadlocked_since.setdefault(task.job.job_id, time.monotonic())
        self._emit_blocked(task.job, keys)

    def fail_deadlocked(self, now: float) -> None:
        """Fail queued jobs that the running job with the same exclusive key waits for."""
        for job_id in [job_id for job_id, since in self._deadlocked_since.items() if now - since > DEADLOCK_SECONDS]:
            del self._deadlocked_since[job_id]
            task = self._tasks.get(job_id)
            if task is not None and task.job.status == IN_QUEUE:
                self._end(task.job, _deadlock_error(task))

    def _emit_blocked(self, job: Job, keys: list[str]) -> None:
        self._hub.emit(job.job_id, "blocked", {"by": keys}, "blocked")


def _deadlock_error(task: Task) -> RunError:
    request = task.job.request or {"run": {"path": []}}
    path = "/".join(request["run"]["path"]) or task.job.graph_id
    return RunError(
        f"{path}: deadlock: graph {task.job.graph_id!r} keeps state, so it runs one call at a time, and the running call waits for this one. "
        "Deploy a graph without state, or change the graphs that it calls so that none of them calls it again.",
        node=path,
    )


class Waiting:
    """The callers that wait for changes of the states of jobs."""

    def __init__(self) -> None:
        #: The next change of the state of each job that a caller waits for.
        self._changes: dict[str, asyncio.Future[None]] = {}
        self._stopped = False

    @contextmanager
    def attend(self, job: Job) -> Iterator[None]:
        """Count a caller as waiting for the job inside the ``with`` block, so that the job does not become orphaned."""
        job.waiters += 1
        try:
            yield
        finally:
            job.waiters -= 1
            job.last_seen = time.monotonic()

    async def wait(self, job: Job, seconds: float, is_connected: Callable[[], bool]) -> None:
        """Wait until the job has ended or needs inputs, ``seconds`` have passed, or ``is_connected()`` returns False."""
        await self._wait(job, lambda: job.is_final or job.status == WAITING_INPUTS, seconds, is_connected)

    async def wait_staged(self, job: Job, is_connected: Callable[[], bool]) -> None:
        """Wait until the inputs were brought and the deployment was built, or the job needs inputs or has ended."""
        await self._wait(job, lambda: job.status != STAGING, float("inf"), is_connected)

    async def _wait(self, job: Job, is_reached: Callable[[], bool], seconds: float, is_connected: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        with self.attend(job):
            while not is_reached() and not self._stopped and (left := until - time.monotonic()) > 0 and is_connected():
                await asyncio.wait([self.next_change(job)], timeout=min(left, _POLL_SECONDS))

    def next_change(self, job: Job) -> asyncio.Future[None]:
        """Return a future that ends at the next change of an unfinished job's state, or when the endpoint stops. Do not cancel it."""
        if job.job_id not in self._changes:
            self._changes[job.job_id] = asyncio.get_running_loop().create_future()
        return self._changes[job.job_id]

    def _report_change(self, job_id: str) -> None:
        change = self._changes.pop(job_id, None)
        if change is not None:
            change.set_result(None)
