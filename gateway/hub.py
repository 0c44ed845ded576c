"""The listeners of a gateway: event streams and waiting requests, informed about stored events of all gateways on the same database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from yggdrasill.errors import YggdrasillError
from yggdrasill.gateway.models import STATUS, Event
from yggdrasill.gateway.store import JobStore
from yggdrasill.protocol.states import FINAL

__all__ = ["Hub"]

_POLL_SECONDS = 0.25
_IDLE_POLL_SECONDS = 1.0
_BATCH = 1000
_MAX_UNREAD = 10_000


class _Listener:
    """The unread events of one stream."""

    def __init__(self, accepts: Callable[[Event], bool]) -> None:
        self.accepts = accepts
        self.events: asyncio.Queue[Event | None] = asyncio.Queue(_MAX_UNREAD)
        self.is_slow = False

    def put(self, event: Event) -> None:
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.is_slow = True


class Hub:
    """Reads new events from ``store`` when this process has written some, else every second, and passes them to listeners.

    The functions in ``on_status`` receive each event of a state, also those that other gateways wrote.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.on_status: list[Callable[[Event], None]] = []
        #: Receive the events that are not stored.
        self.on_live: list[Callable[[Event], None]] = []
        self._listeners: set[_Listener] = set()
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._new = asyncio.Event()
        self._last = 0
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Begin to read events after those that exist."""
        self._loop = asyncio.get_running_loop()
        self._last = await asyncio.wrap_future(self._store.last_seq())
        self._task = asyncio.create_task(self._read())

    async def close(self) -> None:
        """End all streams."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for listener in self._listeners:
            listener.is_slow = True
            with contextlib.suppress(asyncio.QueueFull):
                listener.events.put_nowait(None)
        for waiting in list(self._waiters.values()):
            for future in waiting:
                future.cancel()

    def written(self) -> None:
        """Report that this process has stored events. May be called on any thread."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._new.set)

    def pass_on(self, event: Event) -> None:
        """Pass an event to the present listeners without storing it."""
        self._pass(event)
        for receive in self.on_live:
            receive(event)

    def _pass(self, event: Event) -> None:
        for listener in self._listeners:
            if listener.accepts(event):
                listener.put(event)

    async def _read(self) -> None:
        while True:
            is_watched = bool(self._listeners or self._waiters)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._new.wait(), _POLL_SECONDS if is_watched else _IDLE_POLL_SECONDS)
            self._new.clear()
            try:
                found = await asyncio.wrap_future(self._store.events(self._last, limit=_BATCH))
            except YggdrasillError:
                # the store is away; those who write or read report it
                await asyncio.sleep(_IDLE_POLL_SECONDS)
                continue
            for event in found:
                self._last = event.seq
                self._distribute(event)
            if len(found) == _BATCH:
                self._new.set()

    def _distribute(self, event: Event) -> None:
        self._pass(event)
        if event.kind != STATUS:
            return
        for listener in self.on_status:
            listener(event)
        if event.data.get("status") in FINAL:
            for future in self._waiters.pop(event.job_id, ()):
                if not future.done():
                    future.set_result(None)

    async def wait(self, job_id: str, seconds: float, has_ended: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a job ends, at most so many seconds. ``has_ended()`` reads its row after the beginning of this call."""
        future = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job_id, set()).add(future)
        try:
            if not await has_ended():
                await asyncio.wait_for(future, seconds)
        except asyncio.TimeoutError:
            pass
        finally:
            waiting = self._waiters.get(job_id)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiters[job_id]

    async def stream(
        self, after: int | None, *, job_id: str | None = None, principal: str | None = None, has_ended: bool = False, poll: float = 0.5
    ) -> AsyncGenerator[Event | None, None]:
        """Yield events after the number ``after`` (None: from now on), those of one job up to its end, and None whenever nothing happens for ``poll`` seconds.

        A reader that is too slow gets the rest from the store. With ``has_ended`` the job has ended already, and only stored events follow.
        """
        while True:
            listener = _Listener(lambda event: job_id in (None, event.job_id) and principal in (None, event.principal))
            self._listeners.add(listener)
            try:
                last = self._last if after is None else after
                while True:
                    stored = await asyncio.wrap_future(self._store.events(last, job_id=job_id, principal=principal))
                    for event in stored:
                        last = event.seq
                        yield event
                        if _is_end(event, job_id):
                            return
                    if len(stored) < _BATCH:
                        break
                if has_ended:
                    return
                while not listener.is_slow or not listener.events.empty():
                    try:
                        found = await asyncio.wait_for(listener.events.get(), poll)
                    except asyncio.TimeoutError:
                        yield None
                        continue
                    if found is None:
                        return
                    if found.seq and found.seq <= last:
                        continue
                    last = max(last, found.seq)
                    yield found
                    if _is_end(found, job_id):
                        return
                after = last
            finally:
                self._listeners.discard(listener)


def _is_end(event: Event, job_id: str | None) -> bool:
    return job_id is not None and event.kind == STATUS and event.data.get("status") in FINAL
