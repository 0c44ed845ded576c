"""From a submission to a queued job: known keys, limits, the row, then the inputs and the deployment of jobs that lack one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from yggdrasill.errors import EndpointFailed, EndpointUnreachable, JobConflict, QueueFull, UnknownArtifact, UnknownJob
from yggdrasill.protocol.states import IN_PROGRESS, IN_QUEUE, STAGING, WAITING_INPUTS
from yggdrasill.server_ext.deployment import Deployment, body_hash
from yggdrasill.server_ext.jobs.execution import LEASE_SECONDS, Task, TaskServices, check_options
from yggdrasill.server_ext.jobs.manager import JobManager
from yggdrasill.server_ext.jobs.model import DEPLOY, Job, Submission, new_job_id
from yggdrasill.values.payload import ArtifactRef
from yggdrasill.values.stores.base import LocalStore
from yggdrasill.values.stores.threaded import PinThread, ThreadedStore
from yggdrasill.values.wire import references

__all__ = ["ArtifactResolver", "Builder", "Fetcher", "Staging", "Target"]

_MAX_ATTEMPTS = 3
_THREAD_BYTES = 256 << 10
"""Requests from this size on are hashed and searched for artifacts in a thread."""
_MAX_AWAITED = 200_000


class Builder(Protocol):
    """The part of the service that builds deployments."""

    async def deployment_of(self, job: Job, request: Mapping[str, Any]) -> Deployment:
        """Return the deployment that runs a call, built if necessary."""
        ...

    async def run_deployment(self, job: Job, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do the work of a job of kind "deploy" and return its output. The artifacts of its state are in the store."""
        ...


@dataclass(frozen=True)
class Target:
    """The purpose of a submission: a ``level`` (graph, stage, ...) with its hash, and the deployment if it is built.

    ``origin`` contains further request fields that are needed to run the job.
    """

    kind: str
    graph_id: str
    level: str
    hash: str
    deployment: Deployment | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


class Fetcher(Protocol):
    """A client that downloads artifacts from the endpoints that this endpoint's owner allows."""

    def allows(self, url: str, artifact: str) -> bool:
        """Return whether ``artifact`` may be fetched from ``url``."""
        ...

    async def fetch(self, ref: ArtifactRef) -> bool:
        """Download the bytes into the store. Return False on any failure."""
        ...

    async def close(self) -> None:
        """Cancel running downloads and close connections."""
        ...


class ArtifactResolver:
    """Ensures that all artifacts of a call or deployment are in the store: leases them and fetches missing ones from peers."""

    def __init__(self, store: LocalStore, pins: PinThread, fetcher: Fetcher) -> None:
        self._store, self._pins, self._fetcher = ThreadedStore(store), pins, fetcher

    async def gather(self, refs: list[ArtifactRef], owner: str) -> tuple[int, list[str]]:
        """Lease every artifact for ``owner`` and fetch the missing ones. Return the number of bytes fetched, and the hashes still missing."""
        hashes = [ref.hash for ref in refs]
        await self._pins.pin(owner, hashes)
        missing = set(await self._store.missing(hashes))
        if not missing:
            return 0, []
        fetchable = [ref for ref in refs if ref.hash in missing and ref.url is not None and self._fetcher.allows(ref.url, ref.hash)]
        results = await asyncio.gather(*(self._fetcher.fetch(ref) for ref in fetchable))
        fetched = {ref.hash: ref.nbytes for ref, ok in zip(fetchable, results, strict=True) if ok}
        lacking = [name for name in hashes if name in missing and name not in fetched]
        return sum(fetched.values()), lacking

    async def require(self, refs: list[ArtifactRef], owner: str) -> None:
        """Lease and fetch as `gather`.

        Raises:
            UnknownArtifact: some artifacts could not be fetched; their hashes are in ``details["missing"]``.
        """
        _, missing = await self.gather(refs, owner)
        if missing:
            raise UnknownArtifact(
                f"this endpoint lacks {len(missing)} of the {len(refs)} artifacts; send them, then send the same request again",
                missing=missing,
            )

    async def close(self) -> None:
        """Cancel running downloads."""
        await self._fetcher.close()


class Staging:
    """Makes jobs of submissions, at most ``max_queue`` unfinished ones whose requests have at most ``max_bytes`` of JSON together.

    A job whose inputs are in the store and whose deployment is built is queued at once. Others are staged in the background.
    """

    def __init__(
        self, manager: JobManager, resolver: ArtifactResolver, services: TaskServices, builder: Builder, max_queue: int, max_bytes: int
    ) -> None:
        self._manager, self._resolver, self._services, self._builder = manager, resolver, services, builder
        self._max_queue, self._max_bytes = max_queue, max_bytes
        self._running: dict[str, asyncio.Task[None]] = {}
        #: The number of artifacts of each job that is staged or waits for uploads.
        self._awaited: dict[str, int] = {}
        #: Whether new jobs are accepted.
        self.is_open = False
        manager.on_stop = self._forget

    # -- submission ---------------------------------------------------------------------------------------------

    async def submit(self, call: Submission, target: Target) -> Job:
        """Return a new job, whose row is stored, or the existing job with the same key. A waiting job's inputs are checked again.

        Raises:
            InvalidArgument: invalid options. CorruptData, LimitExceeded: invalid inputs. JobConflict: the key was used for another call,
            or the graph does not have the hash that the caller expects (``details["reason"]`` is "contract").
            UnknownJob: the key was used for a job whose result is no longer kept. StorageFailed: the job could not be stored.
            QueueFull: too many unfinished jobs or bytes of requests. EndpointUnreachable: the endpoint is shutting down.
        """
        options = call.options if target.kind == DEPLOY else check_options(target.level, call.options)
        hashed = (target.graph_id, target.hash, call.inputs, call.run, options)
        if call.nbytes > _THREAD_BYTES:
            call_hash, refs = await asyncio.to_thread(lambda: (body_hash(*hashed), references(call.inputs)))
        else:
            call_hash, refs = body_hash(*hashed), references(call.inputs)
        existing = await self._manager.find_live_key(call.key)
        if existing is not None:
            _check_same(existing, call, call_hash)
            return await self.check_inputs(existing)
        if call.graph_hash not in (None, target.hash):
            raise JobConflict(
                f"Graph {target.graph_id!r} was replaced since the caller read its contract. Read the contract again.",
                reason="contract",
                hash=target.hash,
            )
        self._check_room(call)
        request = {"inputs": call.inputs, "options": options, "run": call.run, **target.origin}
        created = time.time()
        job = Job(
            new_job_id(), call.key, target.graph_id, target.hash, call_hash, request, target.kind, IN_QUEUE, created,
            detached=call.detached, orphan_after=call.orphan_after, timeout=call.timeout, priority=call.priority,
            deadline=None if call.deadline is None else created + call.deadline, principal=call.principal,
            artifacts=tuple(ref.hash for ref in refs), timing={"fetch_s": 0.0, "bytes_in": 0.0},
            slow_uploads=call.blocking, nbytes=call.nbytes,
        )  # fmt: skip
        self._manager.reserve(job)
        try:
            is_at_hand = (target.deployment is not None or job.kind == DEPLOY) and await self._are_stored(refs, job)
            if not is_at_hand:
                job.status = STAGING
                self._check_awaited(job)
            record = await self._manager.insert(job)
        except BaseException:
            self._manager.discard(job)
            self._forget(job)
            raise
        if record is not None:
            self._manager.discard(job)
            self._forget(job)
            _check_same(record.job(), call, call_hash)
            return record.job()
        if is_at_hand and target.deployment is not None:
            self._manager.run(Task(job, target.deployment, self._services))
        else:
            self._start(job)
        return job

    async def check_inputs(self, job: Job) -> Job:
        """Look again for the inputs of a job that waits for them, in the background. Any other job is unchanged."""
        if job.status == WAITING_INPUTS and not job.token.cancelled and await self._manager.move(job, STAGING):
            self._start(job)
        return job

    async def _are_stored(self, refs: list[ArtifactRef], job: Job) -> bool:
        """Pin the inputs, and return whether all of them are in the store."""
        if not refs:
            return True
        _, missing = await self._resolver.gather([replace(ref, url=None) for ref in refs], job.pin_owner)
        return not missing

    def _check_room(self, call: Submission) -> None:
        if not self.is_open:
            raise EndpointUnreachable(
                "The endpoint is shutting down and accepts no more jobs. Call again when it is back.", reason="shutdown"
            )
        if len(self._manager) >= self._max_queue:
            raise QueueFull(f"The endpoint has {self._max_queue} unfinished jobs, its limit. Try again later.")
        if call.max_jobs is not None and sum(job.principal == call.principal for job in self._manager.live) >= call.max_jobs:
            raise QueueFull(
                f"{call.principal!r} has {call.max_jobs} unfinished jobs, the limit of its token. Try again when one has finished."
            )
        waiting, nbytes = self._manager.queued_bytes, call.nbytes
        # One request is always accepted, whatever its size.
        if waiting and waiting + nbytes > self._max_bytes:
            raise QueueFull(
                f"The requests of the unfinished jobs have {waiting} bytes; with {nbytes} more they would exceed {self._max_bytes}, the "
                "endpoint's limit. Send tensors as artifacts, or try again later."
            )

    def _check_awaited(self, job: Job) -> None:
        """Count the artifacts of a job that lacks some. Raise `QueueFull` if such jobs name too many."""
        awaited, count = sum(self._awaited.values()), len(job.artifacts)
        if count and self._awaited and awaited + count > _MAX_AWAITED:
            raise QueueFull(
                f"Calls that wait for uploads name {awaited} artifacts; the endpoint's limit is {_MAX_AWAITED}. Try again later."
            )
        if count:
            self._awaited[job.job_id] = count

    # -- staging ------------------------------------------------------------------------------------------------

    def resume(self, job: Job) -> None:
        """Take up an unfinished job of an earlier process. One that waits for uploads waits on."""
        if job.status != WAITING_INPUTS:
            self._start(job)
        elif job.artifacts:
            self._awaited[job.job_id] = len(job.artifacts)

    async def close(self) -> None:
        """Stop staging. The rows are unchanged."""
        self.is_open = False
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _start(self, job: Job) -> None:
        self._running[job.job_id] = task = asyncio.create_task(self._stage(job))

        def remove(ended: asyncio.Task[None]) -> None:
            if self._running.get(job.job_id) is ended:
                del self._running[job.job_id]

        task.add_done_callback(remove)

    def _forget(self, job: Job) -> None:
        """Stop the staging of a job that was stopped or has ended."""
        self._awaited.pop(job.job_id, None)
        task = self._running.pop(job.job_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _stage(self, job: Job) -> None:
        """Bring a job to the queue, or to the state that waits for uploads. Its errors become its result."""
        manager = self._manager
        try:
            request = await manager.request(job)
            if missing := await self._fetch(job, request):
                if await self._move_to_staging(job):
                    await manager.move(job, WAITING_INPUTS, missing=tuple(missing))
                return
            if job.kind == DEPLOY:
                await self._deploy(job, request)
                return
            deployment = await self._builder.deployment_of(job, request)
            _check_resumable(job, deployment)
        except Exception as error:  # noqa: BLE001 - any error becomes the result of the job
            manager.fail(job, error)
        else:
            self._awaited.pop(job.job_id, None)
            # a job of an earlier process is in the queue already, or leaves the state of its run first
            if job.status == IN_QUEUE or (await self._move_to_staging(job) and await manager.move(job, IN_QUEUE)):
                manager.run(Task(job, deployment, self._services))

    async def _move_to_staging(self, job: Job) -> bool:
        return job.status == STAGING or await self._manager.move(job, STAGING)

    async def _fetch(self, job: Job, request: Mapping[str, Any]) -> list[str]:
        """Pin the inputs and fetch those that other endpoints have. Return the hashes of those that the caller must upload."""
        if not job.artifacts:
            return []
        inputs = request["inputs"]
        refs = await asyncio.to_thread(references, inputs) if job.nbytes > _THREAD_BYTES else references(inputs)
        started = time.monotonic()
        fetched, missing = await self._resolver.gather(refs, job.pin_owner)
        if not missing:
            job.timing = {**job.timing, "fetch_s": time.monotonic() - started, "bytes_in": float(fetched)}
        return missing

    async def _deploy(self, job: Job, request: Mapping[str, Any]) -> None:
        """Run a job of kind "deploy", which needs no slot. If it is stopped during the build, the build ends without it."""
        manager = self._manager
        if job.attempts >= _MAX_ATTEMPTS:
            raise _too_many_attempts(job)
        if job.status != IN_QUEUE and not (await self._move_to_staging(job) and await manager.move(job, IN_QUEUE)):
            return
        lease = {"lease_owner": manager.lease_owner, "lease_until": time.time() + LEASE_SECONDS}
        if await manager.move(job, IN_PROGRESS, started=time.time(), attempts=job.attempts + 1, **lease):
            await manager.complete(job, await self._builder.run_deployment(job, request))


def _check_same(job: Job, call: Submission, call_hash: str) -> None:
    """Raise `JobConflict` or `UnknownJob` unless the job with the key of ``call`` is that of this call."""
    if job.principal != call.principal:
        raise JobConflict(f"Job key {call.call_key[:80]!r} was used by another caller. Use a new key for every call.")
    if job.body_hash not in ("", call_hash):
        raise JobConflict(
            f"Job key {call.call_key[:80]!r} was used for another call (job {job.job_id}). Use a new key for every call.", job_id=job.job_id
        )
    if job.forgotten:
        raise UnknownJob(
            f"Job key {call.call_key[:80]!r} was used for job {job.job_id}, which ended as {job.status}. Its result is no longer kept, and the call is "
            "not run again. To run it again, use a new key.",
            name=job.job_id,
            status=job.status,
        )


def _check_resumable(job: Job, deployment: Deployment) -> None:
    """Raise `EndpointFailed` if a job must not be run (again): its graph was replaced, or an earlier process was stopped while it ran."""
    if deployment.hash != job.graph_hash:
        raise EndpointFailed(f"Graph {job.graph_id!r} was replaced before the job could run. Call it again.")
    if job.status == IN_PROGRESS and deployment.exclusive:
        raise EndpointFailed(
            f"The endpoint was stopped while this job ran. Graph {job.graph_id!r} keeps state between calls, so the job is not run again; "
            "call the graph again if its state allows.",
            graph_id=job.graph_id,
        )
    if job.attempts >= _MAX_ATTEMPTS:
        raise _too_many_attempts(job)


def _too_many_attempts(job: Job) -> EndpointFailed:
    return EndpointFailed(f"The endpoint stopped {job.attempts} times while this job ran. It is not tried again.", attempts=job.attempts)
