"""Ordered events: each gets the next number, is stored, and goes to everybody who listens; who was away reads up.

Everything here happens on one event loop; other threads go through ``loop.call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from yggdrasill.server_ext.job import FINAL, Event
from yggdrasill.server_ext.jobs import JobStore

__all__ = ["EventHub"]

#: Numbers left out at a start: more than could have been told to somebody and not yet stored when the process was killed.
_GAP = 100_000
_BEHIND = 10_000
"""Events a listener may be behind; one that falls further back is cut off and reads up when it comes again."""


class _Listener:
    def __init__(self, job_id: str | None) -> None:
        self.job_id = job_id
        self.waiting: deque[Event] = deque()
        self.arrived = asyncio.Event()
        self.cut_off = False

    def take(self, event: Event, instead_of: int | None) -> None:
        if self.job_id in (None, event.job_id):
            older = next((index for index, waits in enumerate(self.waiting) if waits.seq == instead_of), None)
            if older is not None:
                del self.waiting[older]
            self.cut_off = self.cut_off or len(self.waiting) >= _BEHIND
            if not self.cut_off:
                self.waiting.append(event)
            self.arrived.set()


class EventHub:
    """The events of one endpoint. ``last`` is the highest number that was given away."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._listeners: set[_Listener] = set()
        self._slots: dict[str, dict[str, int]] = {}
        self.last = 0

    async def start(self) -> None:
        """Go on after the events that are stored."""
        stored = await asyncio.wrap_future(self._store.last_seq())
        self.last = stored + _GAP if stored else 0

    def emit(self, job_id: str, kind: str, data: dict[str, Any], slot: str | None = None) -> Event:
        """Number, store and send an event. Of a job's events with one ``slot`` only the newest is kept, for whoever reads late."""
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
            listener.take(event, older)
        return event

    def end(self) -> None:
        """End every stream; those who listen may come again elsewhere."""
        for listener in tuple(self._listeners):
            listener.cut_off = True
            listener.arrived.set()

    async def listen(self, job_id: str | None, after: int | None, pause: float) -> AsyncGenerator[Event | None, None]:
        """Events of one job, or of all, from after the number ``after`` (None: from now on), without end.

        None comes whenever nothing happened for ``pause`` seconds. It ends only for a listener that is too far behind, and with `end`.
        """
        listener = _Listener(job_id)
        self._listeners.add(listener)
        try:
            # a number that nobody was given here is of a file that is gone: all events are new to whoever has it
            told = self.last if after is None else after if after <= self.last else 0
            while after is not None and (stored := await asyncio.wrap_future(self._store.events(job_id, told))):
                for event in stored:
                    yield event
                    told = event.seq
            while not listener.cut_off:
                while listener.waiting:
                    event = listener.waiting.popleft()
                    if event.seq > told:
                        yield event
                        told = event.seq
                listener.arrived.clear()
                try:
                    await asyncio.wait_for(listener.arrived.wait(), pause)
                except asyncio.TimeoutError:
                    yield None
        finally:
            self._listeners.discard(listener)
