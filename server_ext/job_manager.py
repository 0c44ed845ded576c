"""The job manager: finds jobs by id and key, waits for them, enforces timeouts, cancels them and deletes old ones.

Not thread-safe: all calls happen on one event loop. Only `finished`, `emit` and `set_waits` may be called from other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from yggdrasill.errors import Cancelled, UnknownJob
from yggdrasill.protocol.states import CANCELLED, FAILED, IN_QUEUE, TIMED_OUT
from yggdrasill.server_ext.artifacts import PinThread
from yggdrasill.server_ext.events import EventHub
from yggdrasill.server_ext.host import Host
from yggdrasill.server_ext.idle_reaper import RepeatedFailures
from yggdrasill.server_ext.job import Job, KeyRecord, new_job_id
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.redaction import Redactor
from yggdrasill.server_ext.retention import OutputRetention, Retention
from yggdrasill.server_ext.tasks import JOB_LOG, Task, job_error, stop_error
from yggdrasill.server_ext.wait_for_graph import WaitForGraph

__all__ = ["JobManager"]

_LOG = logging.getLogger("yggdrasill.server")
_CHECK_SECONDS = 0.2
_PRUNE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_MAX_RECENT = 256
_FINAL_FIELDS = ("status", "started", "finished", "output", "error", "timing", "artifacts", "request")


class JobManager:
    """The jobs of one endpoint: unfinished ones in memory, all of them in the job store."""

    def __init__(self, jobs: JobStore, hub: EventHub, host: Host, pins: PinThread, redactor: Redactor, retention: Retention) -> None:
        self._jobs, self._hub, self._host, self._pins, self._redactor = jobs, hub, host, pins, redactor
        self._retention = OutputRetention(jobs, pins, retention)
        self._keys: dict[str, str] = {}
        self._live: dict[str, Job] = {}
        self._tasks: dict[str, Task] = {}
        self._wait_for_graph = WaitForGraph(hub, self._tasks, self._fail_queued)
        self._recent: OrderedDict[str, Job] = OrderedDict()
        #: Jobs of keys that were cancelled before their calls arrived, by key.
        self._cancelled: OrderedDict[str, Job] = OrderedDict()
        self._done: dict[str, asyncio.Future[None]] = {}
        self._reserved: dict[str, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._checker: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._next_prune = time.monotonic() + _PRUNE_SECONDS

    # -- start and stop -----------------------------------------------------------------------------------------

    async def start(self) -> list[Job]:
        """Load the stored jobs and return the unfinished ones."""
        self._loop = asyncio.get_running_loop()
        self._keys = await asyncio.wrap_future(self._jobs.keys())
        unfinished = await asyncio.wrap_future(self._jobs.unfinished())
        running = {job.job_id: job for job in unfinished}
        for job_id, hashes in (await asyncio.wrap_future(self._jobs.artifacts())).items():
            if job_id in running:
                await self._pins.pin(f"call:{running[job_id].key}", hashes)
            else:
                self._retention.keep(job_id, hashes)
        for job in unfinished:
            job.submitted = time.monotonic() - max(0.0, time.time() - job.created)
            self._track(job)
        self._checker = asyncio.create_task(self._check_regularly())
        return unfinished

    async def stop(self) -> None:
        """Stop the checks and release all waiting callers."""
        self._stopped = True
        if self._checker is not None:
            self._checker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checker
        if self._ending:
            await asyncio.wait(self._ending)

    @property
    def live(self) -> list[Job]:
        """The unfinished jobs."""
        return list(self._live.values())

    # -- adding -------------------------------------------------------------------------------------------------

    async def add(self, job: Job) -> None:
        """Add a new job and store it. Its key is in use from this call on.

        Raises:
            StorageFailed: the job could not be stored. Nothing was added, whatever the error is.
        """
        self._keys[job.key] = job.job_id
        self._track(job)
        self._reserved.pop(job.key, None)
        try:
            await asyncio.wrap_future(self._jobs.insert(job))
        except BaseException:
            del self._keys[job.key], self._live[job.job_id]
            self._done.pop(job.job_id).cancel()
            self._pins.unpin(f"call:{job.key}")
            # a cancelled request may have stored the row
            self._jobs.remove([job.job_id])
            raise
        self._hub.emit(job.job_id, "status", {"status": IN_QUEUE})

    def run(self, task: Task) -> None:
        """Queue a job on the host."""
        if task.job.token.cancelled:
            self._end_soon(task.job)
            return
        self._tasks[task.job.job_id] = task
        try:
            self._host.enqueue(task)
        except Exception as error:  # noqa: BLE001 - any error becomes the result of the job
            self.fail(task.job, error)
            return
        self._wait_for_graph.add_queued(task)

    def reserve_inputs(self, key: str, seconds: float) -> None:
        """Keep the inputs of a call pinned for ``seconds``: the caller uploads missing artifacts and repeats the call."""
        self._reserved[key] = time.monotonic() + seconds

    def release_inputs(self, job: Job) -> None:
        """Unpin the inputs that a repeated request pinned again, if its job has already finished."""
        if job.is_final:
            self._pins.unpin(f"call:{job.key}")

    def _track(self, job: Job) -> None:
        job.last_seen = time.monotonic()
        self._live[job.job_id] = job
        self._done[job.job_id] = asyncio.get_running_loop().create_future()

    # -- finding ------------------------------------------------------------------------------------------------

    async def find(self, job_id: str, principal: str | None = None) -> Job:
        """Return the job with this id, if it is one of ``principal`` (None: of any).

        Raises:
            UnknownJob: the id was never assigned, the job was deleted, or it belongs to another principal.
        """
        job = self._live.get(job_id) or self._recent.get(job_id) or await asyncio.wrap_future(self._jobs.get(job_id))
        if job is None or principal not in (None, job.principal):
            raise UnknownJob(
                f"Unknown job {job_id[:80]!r}. It was never created on this endpoint, or it finished long ago and was deleted.",
                name=job_id[:80],
            )
        job.last_seen = time.monotonic()
        return job

    async def principal_of(self, job_id: str) -> str | None:
        """Return the name of the principal of a job, or None if there is no such job. Does not count as contact with its caller."""
        job = self._live.get(job_id) or self._recent.get(job_id)
        return await asyncio.wrap_future(self._jobs.principal_of(job_id)) if job is None else job.principal

    async def find_key(self, key: str) -> Job | None:
        """Return the job with this key, or None. Of a deleted job, only key, body hash and status are known (``forgotten``)."""
        if key in self._keys:
            with contextlib.suppress(UnknownJob):
                return await self.find(self._keys[key])
        record = await asyncio.wrap_future(self._jobs.key_record(key))
        # no await between these lines and the caller's use of the result: the key may have come into use since the first line
        job_id = self._keys.get(key, "")
        job = self._live.get(job_id) or self._recent.get(job_id) or self._cancelled.get(key)
        return job or (None if record is None else record.job())

    async def cancel_key(self, key: str, reason: str) -> Job:
        """Stop the job with this key and return it. A call with an unused key that arrives later is answered as cancelled and never runs.

        Raises:
            StorageFailed: the key could not be recorded; it is known until the endpoint stops.
        """
        job = await self.find_key(key)
        if job is None:
            record = KeyRecord(key, new_job_id(), "", CANCELLED)
            job = record.job()
            self._cancelled[key] = self._recent[job.job_id] = job
            for recent in (self._cancelled, self._recent):
                if len(recent) > _MAX_RECENT:
                    recent.popitem(last=False)
            await asyncio.wrap_future(self._jobs.record_key(record))
        else:
            self.stop_job(job, reason)
        return job

    async def newest(self, graph_id: str | None, status: str | None, limit: int, principal: str | None = None) -> list[Job]:
        """Return jobs of ``principal`` (None: of all), newest first."""
        found = self._jobs.newest(graph_id=graph_id, status=status, limit=limit, principal=principal)
        return [self._live.get(job.job_id, job) for job in await asyncio.wrap_future(found)]

    # -- waiting ------------------------------------------------------------------------------------------------

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
        """Wait until the job has ended, ``seconds`` have passed, or ``is_connected()`` returns False."""
        done = self._done.get(job.job_id)
        until = time.monotonic() + seconds
        with self.attend(job):
            while done is not None and not done.done() and not self._stopped and (left := until - time.monotonic()) > 0 and is_connected():
                await asyncio.wait([done], timeout=min(left, _POLL_SECONDS))

    # -- ending -------------------------------------------------------------------------------------------------

    def stop_job(self, job: Job, reason: str, stopped_as: str = CANCELLED) -> None:
        """Stop a job: a queued job ends immediately, a running one at its next node. A finished job is unchanged."""
        if job.is_final or job.token.cancelled:
            return
        job.stopped_as = stopped_as
        job.token.cancel(reason)
        task = self._tasks.get(job.job_id)
        if task is not None and self._host.withdraw(task):
            self._end_soon(job)

    def suspend(self, job: Job) -> None:
        """Remove a queued job from the host. Its row is unchanged, so the next start runs it."""
        task = self._tasks.get(job.job_id)
        if task is not None and self._host.withdraw(task):
            del self._tasks[job.job_id], self._live[job.job_id]

    def fail(self, job: Job, error: Exception) -> None:
        """End a job that cannot run, with this error."""
        self._end_soon(job, error)

    def finished(self, job: Job, final: Job) -> None:
        """Apply the final, stored form of a job. Called by tasks from their threads."""
        self._call_on_loop(self._apply_final, job, final)

    def emit(self, job: Job, kind: str, data: dict[str, Any], slot: str | None = None) -> None:
        """Emit an event of a job; see `EventHub.emit`. Called by tasks from their threads."""
        self._call_on_loop(self._hub.emit, job.job_id, kind, data, slot)

    def set_waits(self, task: Task, keys: list[str]) -> None:
        """Record the calls that a run waits for. Called from any thread."""
        self._call_on_loop(self._wait_for_graph.set_waits, task, keys)

    def _fail_queued(self, job: Job, error: Exception) -> None:
        if self._host.withdraw(self._tasks[job.job_id]):
            self._end_soon(job, error)

    def _call_on_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        # the loop is closed when the endpoint has shut down; the row holds the result
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)

    def _end_soon(self, job: Job, error: Exception | None = None) -> None:
        ending = asyncio.ensure_future(self._end(job, error))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, job: Job, error: Exception | None) -> None:
        status = job.stopped_as if error is None else FAILED
        reported = stop_error(job, Cancelled(job.token.reason), self._redactor) if error is None else job_error(error, self._redactor)
        final = replace(job, status=status, finished=time.time(), error=reported, artifacts=(), request={})
        try:
            await asyncio.wrap_future(self._jobs.update(final))
        except Exception:  # noqa: BLE001 - the job must end for its callers, stored or not
            _LOG.exception("The end of job %s could not be stored.", job.job_id)
        self._apply_final(job, final)

    def _apply_final(self, job: Job, final: Job) -> None:
        for name in _FINAL_FIELDS:
            setattr(job, name, getattr(final, name))
        JOB_LOG.info("Job %s of %r (%s): %s", job.job_id, job.principal, job.graph_id, job.status)
        self._tasks.pop(job.job_id, None)
        self._live.pop(job.job_id, None)
        self._recent[job.job_id] = job
        while len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        if job.artifacts:
            self._retention.keep(job.job_id, job.artifacts)
        else:
            self._pins.unpin(f"job:{job.job_id}")
        self._pins.unpin(f"call:{job.key}")
        self._hub.emit(job.job_id, "status", {"status": job.status, "error": job.error})
        done = self._done.pop(job.job_id, None)
        if done is not None and not done.done():
            done.set_result(None)

    # -- periodic checks ----------------------------------------------------------------------------------------

    async def _check_regularly(self) -> None:
        failures = RepeatedFailures("The check of jobs for timeouts, lost callers and retention failed; it is repeated.")
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            for check in (self._check_jobs, self._release_reserved, self._prune_if_due):
                with failures.logged():
                    await check()

    async def _check_jobs(self) -> None:
        now = time.monotonic()
        for job in self.live:
            self._check_limits(job, now)
        self._wait_for_graph.fail_deadlocked(now)

    async def _release_reserved(self) -> None:
        now = time.monotonic()
        for key in [key for key, until in self._reserved.items() if until < now]:
            del self._reserved[key]
            # a job with this key that was added by another request still needs its inputs
            if self._keys.get(key) not in self._live:
                self._pins.unpin(f"call:{key}")

    async def _prune_if_due(self) -> None:
        now = time.monotonic()
        if now > self._next_prune or self._retention.is_full:
            self._next_prune = now + _PRUNE_SECONDS
            await self.prune()

    def _check_limits(self, job: Job, now: float) -> None:
        if job.timeout is not None and now > job.submitted + job.timeout:
            self.stop_job(job, f"The job did not finish within its timeout of {job.timeout:g} s.", TIMED_OUT)
        elif not job.detached and not job.waiters and now - job.last_seen > job.orphan_after:
            self.stop_job(
                job,
                f"The caller was disconnected for more than {job.orphan_after:g} s. Submit the job as detached to keep it running without a caller.",
            )

    async def prune(self) -> None:
        """Delete finished jobs beyond the retention limits."""
        removed = await self._retention.prune()
        for job_id in removed:
            self._recent.pop(job_id, None)
        self._keys = {key: job_id for key, job_id in self._keys.items() if job_id not in removed}
