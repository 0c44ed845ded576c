"""The jobs an endpoint has in hand: found by id and key, waited for, watched over, cancelled, and in time forgotten.

Everything here happens on one event loop; tasks report from their threads through `finished`, `tell` and `waits`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from yggdrasill.errors import Cancelled, StorageFailed, UnknownJob
from yggdrasill.server_ext.blockers import Blockers
from yggdrasill.server_ext.events import EventHub
from yggdrasill.server_ext.host import Host
from yggdrasill.server_ext.job import CANCELLED, FAILED, IN_QUEUE, TIMED_OUT, Job
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.redaction import Redactor
from yggdrasill.server_ext.retention import Memory, Retention
from yggdrasill.server_ext.tasks import Task, error_dict, stop_error
from yggdrasill.values.stores.base import ArtifactStore

__all__ = ["JobManager"]

_SWEEP = 0.2
_PRUNE = 60.0
_LOOK = 0.5
_RECENT = 256
_CHANGING = ("status", "started", "finished", "output", "error", "timing", "artifacts", "request")


class JobManager:
    """Live jobs in memory, the rest in the store."""

    def __init__(self, jobs: JobStore, hub: EventHub, host: Host, store: ArtifactStore, redactor: Redactor, retention: Retention) -> None:
        self._jobs, self._hub, self._host, self._store, self._redactor = jobs, hub, host, store, redactor
        self._memory = Memory(jobs, store, retention)
        self._keys: dict[str, str] = {}
        self._live: dict[str, Job] = {}
        self._tasks: dict[str, Task] = {}
        self._blockers = Blockers(hub, self._tasks, self._refuse)
        self._recent: OrderedDict[str, Job] = OrderedDict()
        self._done: dict[str, asyncio.Future[None]] = {}
        self._promised: dict[str, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._ended = False

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> list[Job]:
        """Take up the stored jobs and give those that are not finished."""
        self._loop = asyncio.get_running_loop()
        self._keys = await asyncio.wrap_future(self._jobs.keys())
        unfinished = await asyncio.wrap_future(self._jobs.unfinished())
        running = {job.job_id: job for job in unfinished}
        for job_id, hashes in (await asyncio.wrap_future(self._jobs.artifacts())).items():
            if job_id in running:
                self._store.pin(f"call:{running[job_id].key}", hashes)
            else:
                self._memory.keep(job_id, hashes)
        for job in unfinished:
            self._take_up(job)
        self._sweeper = asyncio.create_task(self._watch())
        return unfinished

    async def stop(self) -> None:
        """Watch no longer, and let everybody go who waits."""
        self._ended = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        if self._closing:
            await asyncio.wait(self._closing)

    @property
    def live(self) -> list[Job]:
        """Jobs that are not finished."""
        return list(self._live.values())

    # -- adding -------------------------------------------------------------------------------------------------

    async def add(self, job: Job) -> None:
        """Take a new job in and store it; from this call on its key is taken.

        Raises:
            StorageFailed: it could not be stored, and is as if it had never come.
        """
        self._keys[job.key] = job.job_id
        self._take_up(job)
        self._promised.pop(job.key, None)
        try:
            await asyncio.wrap_future(self._jobs.insert(job))
        except StorageFailed:
            del self._keys[job.key], self._live[job.job_id]
            self._done.pop(job.job_id).cancel()
            self._store.unpin(f"call:{job.key}")
            raise
        self._hub.emit(job.job_id, "status", {"status": IN_QUEUE})

    def run(self, task: Task) -> None:
        """Give a job to the host."""
        if task.job.token.cancelled:
            self._end_soon(task.job)
            return
        self._tasks[task.job.job_id] = task
        self._host.enqueue(task)
        self._blockers.queued(task)

    def expect(self, key: str, seconds: float) -> None:
        """Keep what is pinned for a call that will come again, its missing artifacts sent."""
        self._promised[key] = time.monotonic() + seconds

    def release_call(self, job: Job) -> None:
        """Another request for a job that is there pinned its inputs again; those of a finished one are let go."""
        if job.is_final:
            self._store.unpin(f"call:{job.key}")

    def _take_up(self, job: Job) -> None:
        job.last_seen = time.monotonic()
        self._live[job.job_id] = job
        self._done[job.job_id] = asyncio.get_running_loop().create_future()

    # -- finding ------------------------------------------------------------------------------------------------

    async def find(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            UnknownJob
        """
        job = self._live.get(job_id) or self._recent.get(job_id) or await asyncio.wrap_future(self._jobs.get(job_id))
        if job is None:
            raise UnknownJob(
                f"there is no job {job_id[:80]!r}; it was never made here, or was finished long ago and forgotten", name=job_id[:80]
            )
        job.last_seen = time.monotonic()
        return job

    async def find_key(self, key: str) -> Job | None:
        """The job that was made with this key, if there is one."""
        job_id = self._keys.get(key)
        return None if job_id is None else await self.find(job_id)

    async def newest(self, graph_id: str | None, status: str | None, limit: int) -> list[Job]:
        """Jobs, newest first."""
        stored = await asyncio.wrap_future(self._jobs.newest(graph_id=graph_id, status=status, limit=limit))
        return [self._live.get(job.job_id, job) for job in stored]

    # -- waiting ------------------------------------------------------------------------------------------------

    @contextmanager
    def attended(self, job: Job) -> Iterator[None]:
        """Somebody waits for the job while this is open."""
        job.present += 1
        try:
            yield
        finally:
            job.present -= 1
            job.last_seen = time.monotonic()

    async def wait(self, job: Job, seconds: float, is_there: Callable[[], bool]) -> None:
        """Until the job is finished, the time is over, or whoever waits is gone."""
        done = self._done.get(job.job_id)
        until = time.monotonic() + seconds
        with self.attended(job):
            while done is not None and not done.done() and not self._ended and (left := until - time.monotonic()) > 0 and is_there():
                await asyncio.wait([done], timeout=min(left, _LOOK))

    # -- ending -------------------------------------------------------------------------------------------------

    def stop_job(self, job: Job, reason: str, stopped_as: str = CANCELLED) -> None:
        """Ask a job to end: at once if it has not begun, else at its next node. A finished one is left as it is."""
        if job.is_final or job.token.cancelled:
            return
        job.stopped_as = stopped_as
        job.token.cancel(reason)
        task = self._tasks.get(job.job_id)
        if task is not None and self._host.withdraw(task):
            self._end_soon(job)

    def shelve(self, job: Job) -> None:
        """Take a job that has not begun away from the host; its row stays as it is, for the next start."""
        task = self._tasks.get(job.job_id)
        if task is not None and self._host.withdraw(task):
            del self._tasks[job.job_id], self._live[job.job_id]

    def fail(self, job: Job, error: Exception) -> None:
        """End a job that cannot be run."""
        self._end_soon(job, error)

    def finished(self, job: Job, final: Job) -> None:
        """Called by a task, from its thread, with the job's final form as it is stored."""
        self._call(self._settle, job, final)

    def tell(self, job: Job, kind: str, data: dict[str, Any], slot: str | None = None) -> None:
        """Called by a task, from its thread: an event of its job; see `EventHub.emit`."""
        self._call(self._hub.emit, job.job_id, kind, data, slot)

    def waits(self, task: Task, keys: list[str]) -> None:
        """Called by a task, from any thread: the calls that its run waits for now."""
        self._call(self._blockers.waits, task, keys)

    def _refuse(self, job: Job, error: Exception) -> None:
        if self._host.withdraw(self._tasks[job.job_id]):
            self._end_soon(job, error)

    def _call(self, act: Callable[..., Any], *arguments: Any) -> None:
        # a closed loop: the endpoint is gone, and the row says what is to be said
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(act, *arguments)

    def _end_soon(self, job: Job, error: Exception | None = None) -> None:
        closing = asyncio.ensure_future(self._end(job, error))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _end(self, job: Job, error: Exception | None) -> None:
        status = job.stopped_as if error is None else FAILED
        reported = stop_error(job, Cancelled(job.token.reason), self._redactor) if error is None else error_dict(error, self._redactor)
        final = replace(job, status=status, finished=time.time(), error=reported, artifacts=(), request={})
        with contextlib.suppress(StorageFailed):
            await asyncio.wrap_future(self._jobs.update(final))
        self._settle(job, final)

    def _settle(self, job: Job, final: Job) -> None:
        for name in _CHANGING:
            setattr(job, name, getattr(final, name))
        self._tasks.pop(job.job_id, None)
        self._live.pop(job.job_id, None)
        self._recent[job.job_id] = job
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        if job.artifacts:
            self._memory.keep(job.job_id, job.artifacts)
        else:
            self._store.unpin(f"job:{job.job_id}")
        self._store.unpin(f"call:{job.key}")
        self._hub.emit(job.job_id, "status", {"status": job.status, "error": job.error})
        done = self._done.pop(job.job_id, None)
        if done is not None and not done.done():
            done.set_result(None)

    # -- watching -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        next_prune = time.monotonic() + _PRUNE
        while True:
            await asyncio.sleep(_SWEEP)
            now = time.monotonic()
            for job in self.live:
                self._look_after(job, now)
            self._blockers.look(now)
            for key in [key for key, until in self._promised.items() if until < now]:
                del self._promised[key]
                self._store.unpin(f"call:{key}")
            if now > next_prune or self._memory.is_full:
                next_prune = now + _PRUNE
                with contextlib.suppress(StorageFailed):
                    await self.prune()

    def _look_after(self, job: Job, now: float) -> None:
        if job.timeout is not None and time.time() > job.created + job.timeout:
            self.stop_job(job, f"not finished within its timeout of {job.timeout:g} s", TIMED_OUT)
        elif not job.detached and not job.present and now - job.last_seen > job.orphan_after:
            self.stop_job(job, f"caller gone for more than {job.orphan_after:g} s; a detached job would have gone on")

    async def prune(self) -> None:
        """Forget jobs that were finished long ago."""
        gone = await self._memory.prune()
        for job_id in gone:
            self._recent.pop(job_id, None)
        self._keys = {key: job_id for key, job_id in self._keys.items() if job_id not in gone}
