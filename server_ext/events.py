"""The event hub: numbers, stores and distributes the events of an endpoint. Listeners can resume after any number.

Not thread-safe: all calls happen on one event loop; other threads use ``loop.call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from yggdrasill.protocol.states import FINAL
from yggdrasill.server_ext.job import Event
from yggdrasill.server_ext.jobs import JobStore

__all__ = ["EventHub"]

#: Numbers skipped at startup: more than the events that a killed process can have sent but not stored.
_RESTART_GAP = 100_000
_MAX_BACKLOG = 10_000
"""A listener with more unread events is disconnected; it can reconnect and resume from the store."""


class _Listener:
    def __init__(self, job_id: str | None) -> None:
        self.job_id = job_id
        self.backlog: OrderedDict[int, Event] = OrderedDict()
        self.arrived = asyncio.Event()
        self.disconnected = False

    def put(self, event: Event, replaced: int | None) -> None:
        if self.job_id in (None, event.job_id):
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
        self._listeners: set[_Listener] = set()
        self._slots: dict[str, dict[str, int]] = {}
        self.last = 0

    async def start(self) -> None:
        """Continue numbering after the stored events."""
        stored = await asyncio.wrap_future(self._store.last_seq())
        self.last = stored + _RESTART_GAP if stored else 0

    def emit(self, job_id: str, kind: str, data: dict[str, Any], slot: str | None = None) -> Event:
        """Number, store and send an event. Of a job's events with the same ``slot`` only the newest is stored."""
        self.last += 1
        event = Event(self.last, job_id, kind, {"job_id": job_id, **data})
        older = None
        if slot is not None:
            slots = self._slots.setdefault(job_id, {})
            older, slots[slot] = slots.get(slot), event.seq
        elif kind == "status" and data.get("status") in FINAL:
            self._slots.pop(job_id, None)
        self._store.add_event(event, older)
        for listener in tuple(self._listeners):
            listener.put(event, older)
        return event

    def close(self) -> None:
        """End all streams."""
        for listener in tuple(self._listeners):
            listener.disconnected = True
            listener.arrived.set()

    async def stored(self, job_id: str | None, after: int) -> AsyncGenerator[Event, None]:
        """Yield the stored events of one job, or of all, after the number ``after``."""
        sent = self._known(after)
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
        self._listeners.add(listener)
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
            self._listeners.discard(listener)
