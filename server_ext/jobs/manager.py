"""The job manager: finds jobs by id and key, waits for them, moves them through their states, enforces limits, cancels and deletes them.

Not thread-safe: all calls happen on one event loop. Only `finished`, `emit`, `set_waits` and `together` may be called from other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import replace
from typing import Any

from yggdrasill.errors import Cancelled, StorageFailed, UnknownJob
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, IN_PROGRESS, TIMED_OUT
from yggdrasill.server_ext.deployment import RepeatedFailures
from yggdrasill.server_ext.headless import Host
from yggdrasill.server_ext.jobs.events import EventHub, WaitForGraph, Waiting
from yggdrasill.server_ext.jobs.execution import JOB_LOG, LEASE_SECONDS, Task, job_error, stop_error
from yggdrasill.server_ext.jobs.model import Job, KeyRecord, new_job_id
from yggdrasill.server_ext.jobs.store import JobStore, OutputRetention, Retention
from yggdrasill.server_ext.logs import Redactor
from yggdrasill.values.stores.threaded import PinThread

__all__ = ["JobManager"]

_LOG = logging.getLogger("yggdrasill.server")
_CHECK_SECONDS = 0.2
_PRUNE_SECONDS = 60.0
_ROOM_SECONDS = 10.0
_MAX_RECENT = 256
_CACHED_REQUEST_BYTES = 8 << 20
"""Bytes of requests of waiting jobs that are kept in memory; jobs beyond them have their requests in their rows only."""
_FINAL_FIELDS = (
    "status", "started", "finished", "output", "error", "timing", "artifacts", "request", "missing", "lease_owner", "lease_until",
)  # fmt: skip


class _OfThread(threading.local):
    """Whether the calls of a thread wait for the end of a block; see `JobManager.together`."""

    is_holding = False


class JobManager(Waiting):
    """The jobs of one endpoint: unfinished ones in memory without their requests, all of them in the job store.

    A job changes its state only if its row does: `move` for the states before a run, `complete`, `fail` and `stop_job` for its end.
    """

    def __init__(
        self,
        jobs: JobStore,
        hub: EventHub,
        host: Host,
        pins: PinThread,
        redactor: Redactor,
        retention: Retention,
        lease_owner: str,
    ) -> None:
        self._jobs, self._hub, self._host, self._pins, self._redactor = jobs, hub, host, pins, redactor
        super().__init__()
        self._retention = OutputRetention(jobs, pins, retention)
        self.lease_owner = lease_owner
        self._keys: dict[str, str] = {}
        self._live: dict[str, Job] = {}
        #: Jobs whose rows are being written for the first time.
        self._inserting: dict[str, asyncio.Future[None]] = {}
        self._tasks: dict[str, Task] = {}
        self._wait_for_graph = WaitForGraph(hub, self._tasks, self._fail_queued)
        self._recent: OrderedDict[str, Job] = OrderedDict()
        #: Jobs of keys that were cancelled before their calls arrived, by key.
        self._cancelled: OrderedDict[str, Job] = OrderedDict()
        #: Bytes of the requests of unfinished jobs, and of those in memory.
        self.queued_bytes = 0
        self._cached_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Calls of other threads that the loop has not made yet, and whether it was woken for them.
        self._posted: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._wakes_soon = False
        self._of_thread = _OfThread()
        self._checker: asyncio.Task[None] | None = None
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._next_prune = time.monotonic() + _PRUNE_SECONDS
        self._next_renewal = time.monotonic()
        #: Called with each job that is stopped, suspended or has ended.
        self.on_stop: Callable[[Job], None] = lambda _: None

    # -- start and stop -----------------------------------------------------------------------------------------

    async def start(self) -> list[Job]:
        """Load the stored jobs, pin their artifacts, end those that were stopped while they ran, and return the unfinished ones."""
        self._loop = asyncio.get_running_loop()
        self._keys = await asyncio.wrap_future(self._jobs.keys())
        unfinished = await asyncio.wrap_future(self._jobs.unfinished())
        running = {job.job_id for job in unfinished}
        artifacts = await asyncio.wrap_future(self._jobs.artifacts())
        await self._pins.release_others("job:", {f"job:{job_id}" for job_id in artifacts})
        for job_id, hashes in artifacts.items():
            if job_id not in running:
                self._retention.keep(job_id, hashes)
        for job in unfinished:
            if job.stopped_as is None and job.artifacts:
                await self._pins.pin(job.pin_owner, job.artifacts)
            job.submitted = time.monotonic() - max(0.0, time.time() - job.created)
            self._track(job)
            if job.stopped_as is not None:
                job.token.cancel(job.stop_reason or "")
                await self._end(job, None)
        self._checker = asyncio.create_task(self._check_regularly())
        return self.live

    async def stop(self) -> None:
        """Stop the checks and release all waiting callers."""
        self._stopped = True
        if self._checker is not None:
            self._checker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checker
        if self._ending:
            await asyncio.wait(self._ending.values())
        for job_id in list(self._changes):
            self._report_change(job_id)

    @property
    def live(self) -> list[Job]:
        """The unfinished jobs."""
        return list(self._live.values())

    def is_live(self, job_id: str) -> bool:
        """Return whether a job is unfinished."""
        return job_id in self._live

    def __len__(self) -> int:
        """Return the number of unfinished jobs."""
        return len(self._live)

    # -- adding -------------------------------------------------------------------------------------------------

    def reserve(self, job: Job) -> None:
        """Add a new job and its key in memory. `insert` or `discard` must follow."""
        self._keys[job.key] = job.job_id
        self._inserting[job.job_id] = asyncio.get_running_loop().create_future()
        self._track(job)

    async def insert(self, job: Job) -> KeyRecord | None:
        """Store a reserved job. If its key was used for a job whose row is not stored, return that record instead; then `discard` the job.

        Raises:
            StorageFailed: the job could not be stored. `discard` it, whatever the error is.
        """
        record: KeyRecord | None = await asyncio.wrap_future(self._jobs.insert(job))
        if record is not None:
            return record
        if self._cached_bytes + job.nbytes > _CACHED_REQUEST_BYTES:
            job.request = None
        else:
            self._cached_bytes += job.nbytes
        self._inserting.pop(job.job_id).set_result(None)
        self._hub.begin(job.job_id)
        self._hub.emit(job.job_id, "status", {"status": job.status})
        return None

    def discard(self, job: Job) -> None:
        """Remove a reserved job that does not exist for its caller."""
        del self._keys[job.key]
        self._untrack(job)
        self._inserting.pop(job.job_id).set_result(None)
        self._pins.unpin(job.pin_owner)
        # a cancelled request may have stored the row
        self._jobs.remove([job.job_id])

    async def request(self, job: Job) -> dict[str, Any]:
        """Return the request of an unfinished job."""
        return job.request if job.request is not None else await asyncio.wrap_future(self._jobs.request(job.job_id))

    async def move(self, job: Job, status: str, **facts: Any) -> bool:
        """Bring an unfinished job to a state before its run, or to the run of a deployment, and set the fields ``facts``.

        Returns False if the job has ended. Then nothing changed.
        """
        missing = facts.pop("missing", ())
        moved = await asyncio.wrap_future(self._jobs.transition(replace(job, status=status, missing=missing, **facts)))
        if not moved or job.is_final:
            return False
        for name, value in {**facts, "status": status, "missing": missing}.items():
            setattr(job, name, value)
        self._hub.emit(job.job_id, "status", {"status": status, **({"missing": list(missing)} if missing else {})})
        self._report_change(job.job_id)
        return True

    def run(self, task: Task) -> None:
        """Queue a job on the host, unless it was stopped or suspended."""
        if task.job.job_id not in self._live:
            return
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

    def _track(self, job: Job) -> None:
        job.last_seen = time.monotonic()
        self._live[job.job_id] = job
        self.queued_bytes += job.nbytes

    def _untrack(self, job: Job) -> None:
        if self._live.pop(job.job_id, None) is not None:
            self.queued_bytes -= job.nbytes
            if job.request is not None and job.job_id not in self._inserting:
                self._cached_bytes = max(0, self._cached_bytes - job.nbytes)

    # -- finding ------------------------------------------------------------------------------------------------

    async def find(self, job_id: str, principal: str | None = None) -> Job:
        """Return the job with this id, of any principal or of ``principal``.

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
        """Return the stored job with this key, or None. Of a deleted job, only key, body hash and status are known (``forgotten``)."""
        job = await self.find_live_key(key)
        if job is not None:
            return job
        record = await asyncio.wrap_future(self._jobs.key_record(key))
        # the key may have come into use since the first line
        job_id = self._keys.get(key, "")
        if job_id in self._inserting:
            return await self.find_key(key)
        job = self._live.get(job_id) or self._recent.get(job_id) or self._cancelled.get(key)
        return job or (None if record is None else record.job())

    async def find_live_key(self, key: str) -> Job | None:
        """Return the job with this key if its row is stored or the key was cancelled recently, else None.

        The key cannot come into use between the last look and the return.
        """
        while (inserting := self._inserting.get(self._keys.get(key, ""))) is not None:
            await asyncio.shield(inserting)
        if key in self._keys:
            with contextlib.suppress(UnknownJob):
                return await self.find(self._keys[key])
        return self._cancelled.get(key)

    async def cancel_key(self, key: str, reason: str, principal: str) -> Job:
        """Stop the job with this key and return it. A call with an unused key that arrives later is answered as cancelled and never runs.

        Raises:
            StorageFailed: the key could not be recorded; it is known until the endpoint stops.
        """
        job = await self.find_key(key)
        if job is None:
            record = KeyRecord(key, new_job_id(), "", CANCELLED, principal=principal)
            job = record.job()
            self._cancelled[key] = self._recent[job.job_id] = job
            for recent in (self._cancelled, self._recent):
                if len(recent) > _MAX_RECENT:
                    recent.popitem(last=False)
            await asyncio.wrap_future(self._jobs.record_key(record))
        else:
            await self.cancel(job, reason)
        return job

    async def newest(self, graph_id: str | None, status: str | None, principal: str | None, limit: int) -> list[Job]:
        """Return jobs, newest first."""
        stored = await asyncio.wrap_future(self._jobs.newest(graph_id=graph_id, status=status, principal=principal, limit=limit))
        return [self._live.get(job.job_id, job) for job in stored]

    # -- ending -------------------------------------------------------------------------------------------------

    async def cancel(self, job: Job, reason: str) -> None:
        """Stop a job as `stop_job`, and return when its row contains the stop, which a restart obeys.

        Raises:
            StorageFailed: the stop could not be stored; it applies until the endpoint stops.
        """
        self.stop_job(job, reason)
        ending = self._ending.get(job.job_id)
        if ending is not None:
            await asyncio.wait([ending])
        elif job.stopped_as is not None and not job.is_final:
            await asyncio.wrap_future(self._jobs.record_stop(job.job_id, job.stopped_as, job.token.reason))

    def stop_job(self, job: Job, reason: str, stopped_as: str = CANCELLED, *, is_recorded: bool = True) -> None:
        """Stop a job: one that does not run ends immediately, a running one at its next node. A finished job is unchanged.

        After a restart, a job that did not end is not run again if the stop was recorded.
        """
        if job.is_final or job.token.cancelled:
            return
        job.stopped_as, job.stop_reason = stopped_as, reason
        job.token.cancel(reason)
        self.on_stop(job)
        task = self._tasks.get(job.job_id)
        if task is None or self._host.withdraw(task):
            self._end_soon(job)
        elif is_recorded:
            self._jobs.record_stop(job.job_id, stopped_as, reason)

    def suspend(self, job: Job) -> None:
        """Remove a waiting job from memory and from the host. Its row is unchanged, so the next start takes it up."""
        task = self._tasks.get(job.job_id)
        if task is None or self._host.withdraw(task):
            self.on_stop(job)
            self._tasks.pop(job.job_id, None)
            self._untrack(job)

    def fail(self, job: Job, error: Exception) -> None:
        """End a job that cannot run, with this error."""
        self._end_soon(job, error)

    async def complete(self, job: Job, output: dict[str, Any]) -> None:
        """End a job that runs in no task, with this output."""
        await self._store_end(job, replace(job, status=COMPLETED, finished=time.time(), output=output, artifacts=(), request={}))

    def finished(self, job: Job, final: Job) -> None:
        """Apply the final, stored form of a job. Called by tasks from their threads."""
        self._call_on_loop(self._apply_final, job, final)

    def emit(self, job: Job, kind: str, data: dict[str, Any], slot: str | None = None) -> None:
        """Emit an event of a job; see `EventHub.emit`. Called by tasks from their threads."""
        self._call_on_loop(self._hub.emit, job.job_id, kind, data, slot)

    def set_waits(self, task: Task, keys: list[str]) -> None:
        """Record the calls that a run waits for. Called from any thread."""
        self._call_on_loop(self._wait_for_graph.set_waits, task, keys)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make the calls of this thread on the loop at the end of the block, so that it wakes once for them. Called from any thread."""
        self._of_thread.is_holding = True
        try:
            yield
        finally:
            self._of_thread.is_holding = False
            self._wake()

    def _fail_queued(self, job: Job, error: Exception) -> None:
        if self._host.withdraw(self._tasks[job.job_id]):
            self._end_soon(job, error)

    def _call_on_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function on the loop soon, in the order of these calls. One wake of the loop serves all calls that wait for it."""
        self._posted.append((function, arguments))
        if not self._of_thread.is_holding:
            self._wake()

    def _wake(self) -> None:
        # the loop is closed when the endpoint has shut down; the row holds the result
        with contextlib.suppress(RuntimeError):
            if self._loop is not None and self._posted and not self._wakes_soon:
                self._wakes_soon = True
                self._loop.call_soon_threadsafe(self._call_posted)

    def _call_posted(self) -> None:
        self._wakes_soon = False
        # what is posted from here on wakes the loop again
        for _ in range(len(self._posted)):
            function, arguments = self._posted.popleft()
            try:
                function(*arguments)
            except Exception:  # noqa: BLE001 - the other calls must be made
                _LOG.exception("A report of a job failed.")

    def _end_soon(self, job: Job, error: Exception | None = None) -> None:
        if job.job_id not in self._ending and not job.is_final:
            self._ending[job.job_id] = ending = asyncio.ensure_future(self._end(job, error))
            ending.add_done_callback(lambda _: self._ending.pop(job.job_id, None))

    async def _end(self, job: Job, error: Exception | None) -> None:
        status = job.stopped_as or CANCELLED if error is None else FAILED
        reported = stop_error(job, Cancelled(job.token.reason), self._redactor) if error is None else job_error(error, self._redactor)
        await self._store_end(job, replace(job, status=status, finished=time.time(), error=reported, artifacts=(), request={}))

    async def _store_end(self, job: Job, final: Job) -> None:
        """Store the end of a job. If its row ended otherwise at the same time, that end counts."""
        final = replace(final, missing=(), lease_owner=None, lease_until=None)
        try:
            if not await asyncio.wrap_future(self._jobs.transition(final)):
                stored = await asyncio.wrap_future(self._jobs.get(job.job_id))
                final = stored if stored is not None and stored.is_final else final
        except Exception:  # noqa: BLE001 - the job must end for its callers, stored or not
            _LOG.exception("The end of job %s could not be stored.", job.job_id)
        self._apply_final(job, final)

    def _apply_final(self, job: Job, final: Job) -> None:
        if job.is_final:
            return
        had_inputs = bool(job.artifacts)
        self._untrack(job)
        for name in _FINAL_FIELDS:
            setattr(job, name, getattr(final, name))
        JOB_LOG.info("Job %s of %r (%s): %s", job.job_id, job.principal, job.graph_id, job.status)
        self._tasks.pop(job.job_id, None)
        self._recent[job.job_id] = job
        while len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        self._release_pins(job, had_inputs=had_inputs)
        self._hub.emit(job.job_id, "status", {"status": job.status, "error": job.error})
        self._report_change(job.job_id)
        self.on_stop(job)

    def _release_pins(self, job: Job, *, had_inputs: bool) -> None:
        """Unpin the inputs of a job that has ended, and keep its output pinned until its row is deleted."""
        if not job.artifacts:
            self._pins.unpin(job.pin_owner)
        elif not had_inputs:
            self._retention.keep(job.job_id, job.artifacts)
        else:
            # a second owner, so that the output is pinned while the inputs are unpinned
            self._pins.keep(f"{job.pin_owner}:output", job.artifacts, lambda _: None)
            self._pins.unpin(job.pin_owner)
            self._retention.keep(job.job_id, job.artifacts)
            self._pins.unpin(f"{job.pin_owner}:output")

    # -- periodic checks ----------------------------------------------------------------------------------------

    async def _check_regularly(self) -> None:
        failures = RepeatedFailures("The check of jobs for timeouts, lost callers and retention failed; it is repeated.")
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            self._jobs.flush()
            for check in (self._check_jobs, self._renew_leases, self._prune_if_due):
                with failures.logged():
                    await check()

    async def _check_jobs(self) -> None:
        now = time.monotonic()
        for job in self.live:
            if job.job_id not in self._inserting:
                self._check_limits(job, now)
        self._wait_for_graph.fail_deadlocked(now)

    async def _renew_leases(self) -> None:
        now = time.monotonic()
        if now > self._next_renewal:
            self._next_renewal = now + LEASE_SECONDS / 4
            if any(job.status == IN_PROGRESS for job in self._live.values()):
                await asyncio.wrap_future(self._jobs.renew_leases(self.lease_owner, time.time() + LEASE_SECONDS))

    async def _prune_if_due(self) -> None:
        now = time.monotonic()
        if now > self._next_prune or self._retention.is_full:
            self._next_prune = now + _PRUNE_SECONDS
            await self.prune()

    def _check_limits(self, job: Job, now: float) -> None:
        if job.timeout is not None and now > job.submitted + job.timeout:
            self.stop_job(job, f"The job did not finish within its timeout of {job.timeout:g} s.", TIMED_OUT)
        elif job.deadline is not None and now > job.submitted + (job.deadline - job.created):
            self.stop_job(job, f"The job did not finish by its deadline, {job.deadline - job.created:g} s after its submission.", TIMED_OUT)
        elif not job.waiters and now - job.last_seen > job.allowed_silence:
            self.stop_job(
                job,
                f"The caller was disconnected for more than {job.allowed_silence:g} s. Submit the job as detached to keep it running without a caller.",
            )

    def make_room(self) -> None:
        """Delete finished jobs beyond the retention limits and wait until their artifacts can be removed. Called by threads that write."""
        # the endpoint may stop at the same time; then the write fails for lack of room
        with contextlib.suppress(RuntimeError, NotInTime, StorageFailed, CancelledError):
            if self._loop is not None and not self._loop.is_closed() and not self._stopped:
                asyncio.run_coroutine_threadsafe(self._make_room(), self._loop).result(_ROOM_SECONDS)

    async def _make_room(self) -> None:
        # results are measured on the thread of the leases
        await self._pins.drain()
        await self.prune()
        await self._pins.drain()

    async def prune(self) -> None:
        """Delete finished jobs beyond the retention limits."""
        removed = await self._retention.prune()
        for job_id in removed:
            self._recent.pop(job_id, None)
        self._keys = {key: job_id for key, job_id in self._keys.items() if job_id not in removed}
