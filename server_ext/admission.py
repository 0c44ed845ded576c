"""Admission control: turns a submission into a job. Deduplicates by key, bounds the queue, resolves inputs and queues the job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import EndpointUnreachable, JobConflict, QueueFull, UnknownArtifact, UnknownJob
from yggdrasill.server_ext.artifacts import ArtifactResolver
from yggdrasill.server_ext.calls import check_options
from yggdrasill.server_ext.deployment import Deployment, body_hash
from yggdrasill.server_ext.job import Job, new_job_id
from yggdrasill.server_ext.job_manager import JobManager
from yggdrasill.server_ext.principals import call_key, principal_of_key
from yggdrasill.server_ext.tasks import Task, TaskServices
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.wire import references

__all__ = ["Admission", "Submission"]

_UPLOAD_SECONDS = 600.0
_HASH_IN_THREAD_BYTES = 256 << 10
_MAX_AWAITED = 200_000


@dataclass(frozen=True)
class Submission:
    """A call of a deployment, as the caller sent it, except for its key, which is that of `private_key`."""

    key: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    run: dict[str, Any]
    detached: bool = False
    orphan_after: float = 30.0
    timeout: float | None = None
    #: Approximate size of the request's JSON in bytes.
    nbytes: int = 0
    #: The most unfinished jobs that its principal may have; None means unbounded.
    max_jobs: int | None = None


class Admission:
    """Admits at most ``max_queue`` unfinished jobs to the job manager, whose requests have at most ``max_bytes`` of JSON together."""

    def __init__(
        self, job_manager: JobManager, artifact_resolver: ArtifactResolver, services: TaskServices, max_queue: int, max_bytes: int
    ) -> None:
        self._job_manager, self._artifact_resolver, self._services = job_manager, artifact_resolver, services
        self._max_queue, self._max_bytes = max_queue, max_bytes
        #: Bytes of the requests of unfinished jobs by job id, and of those whose inputs are being fetched.
        self._queued_bytes: dict[str, int] = {}
        self._arriving_bytes = 0
        #: End of the reservation and number of artifacts, by the key of each call that waits for uploads.
        self._awaited: dict[str, tuple[float, int]] = {}
        #: Whether new jobs are accepted.
        self.is_open = False

    async def admit(self, deployment: Deployment, call: Submission, origin: Mapping[str, Any] | None = None) -> Job:
        """Return a new job, or the existing job with the same key.

        ``origin`` contains further request fields that a restarted process needs to run the job again.

        Raises:
            InvalidArgument: invalid options. CorruptData, LimitExceeded: invalid inputs. JobConflict: the key was used for another call.
            UnknownJob: the key was used for a job whose result is no longer kept.
            QueueFull: too many unfinished jobs or bytes of requests. EndpointUnreachable: the endpoint is shutting down. StorageFailed: the job could not be stored.
            UnknownArtifact: inputs are missing (``details["missing"]``); upload them and repeat the call. No job was created.
        """
        options = check_options(deployment.kind, call.options)
        large = call.nbytes > _HASH_IN_THREAD_BYTES
        hashed = (deployment, call.inputs, call.run, options)
        call_hash = await asyncio.to_thread(body_hash, *hashed) if large else body_hash(*hashed)
        existing = await self._find_existing(call, call_hash)
        if existing is not None:
            return existing
        self._check_room(call)
        self._check_bytes(call.nbytes)
        self._arriving_bytes += call.nbytes
        try:
            return await self._admit_new(deployment, call, call_hash, options, origin or {})
        finally:
            self._arriving_bytes -= call.nbytes

    async def _admit_new(
        self, deployment: Deployment, call: Submission, call_hash: str, options: dict[str, Any], origin: Mapping[str, Any]
    ) -> Job:
        large = call.nbytes > _HASH_IN_THREAD_BYTES
        refs = await asyncio.to_thread(references, call.inputs) if large else references(call.inputs)
        timing = {"fetch_s": 0.0, "bytes_in": 0.0}
        if refs:
            timing["fetch_s"], timing["bytes_in"] = await self._resolve_inputs(refs, call.key)
            try:
                existing = await self._find_existing(call, call_hash)
                if existing is not None:
                    self._job_manager.release_inputs(existing)
                    return existing
                self._check_room(call)
            except BaseException:
                self._job_manager.reserve_inputs(call.key, 0.0)
                raise
        self._awaited.pop(call.key, None)
        request = {"inputs": call.inputs, "options": options, "run": call.run, **origin}
        job = Job(
            new_job_id(), call.key, deployment.graph_id, deployment.hash, call_hash, request, detached=call.detached,
            orphan_after=call.orphan_after, timeout=call.timeout, timing=timing, artifacts=tuple(ref.hash for ref in refs),
        )  # fmt: skip
        await self._job_manager.add(job)
        self._queued_bytes[job.job_id] = call.nbytes
        self._job_manager.run(Task(job, deployment, self._services))
        return job

    async def _find_existing(self, call: Submission, call_hash: str) -> Job | None:
        job = await self._job_manager.find_key(call.key)
        if job is not None and job.body_hash not in ("", call_hash):
            raise JobConflict(
                f"Job key {call_key(call.key)[:80]!r} was used for another call (job {job.job_id}). Use a new key for every call.",
                job_id=job.job_id,
            )
        if job is not None and job.forgotten:
            raise UnknownJob(
                f"Job key {call_key(call.key)[:80]!r} was used for job {job.job_id}, which ended as {job.status}. Its result is no longer kept, and the call is "
                "not run again. To run it again, use a new key.",
                name=job.job_id,
                status=job.status,
            )
        return job

    def _check_room(self, call: Submission) -> None:
        if not self.is_open:
            raise EndpointUnreachable(
                "The endpoint is shutting down and accepts no more jobs. Call again when it is back.", reason="shutdown"
            )
        live = self._job_manager.live
        if len(live) >= self._max_queue:
            raise QueueFull(f"The endpoint has {self._max_queue} unfinished jobs, its limit. Try again later.")
        principal = principal_of_key(call.key)
        if call.max_jobs is not None and sum(job.principal == principal for job in live) >= call.max_jobs:
            raise QueueFull(f"{principal!r} has {call.max_jobs} unfinished jobs, the limit of its token. Try again when one has finished.")

    def _check_bytes(self, nbytes: int) -> None:
        live = {job.job_id for job in self._job_manager.live}
        self._queued_bytes = {job_id: size for job_id, size in self._queued_bytes.items() if job_id in live}
        waiting = sum(self._queued_bytes.values()) + self._arriving_bytes
        # One request is always accepted, whatever its size.
        if waiting and waiting + nbytes > self._max_bytes:
            raise QueueFull(
                f"The requests of the unfinished jobs have {waiting} bytes; with {nbytes} more they would exceed {self._max_bytes}, the "
                "endpoint's limit. Send tensors as artifacts, or try again later."
            )

    async def _resolve_inputs(self, refs: list[ArtifactRef], key: str) -> tuple[float, float]:
        """Pin and fetch the inputs. Return the seconds and bytes of the download."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            fetched = await self._artifact_resolver.gather(refs, f"call:{key}")
        except UnknownArtifact:
            self._await_uploads(key, len(refs))
            raise
        except BaseException:
            self._job_manager.reserve_inputs(key, 0.0)
            raise
        return loop.time() - started, float(fetched)

    def _await_uploads(self, key: str, count: int) -> None:
        """Keep the pins of a call until its caller has uploaded what is missing. Raise `QueueFull` if too many artifacts are awaited."""
        now = asyncio.get_running_loop().time()
        self._awaited = {name: entry for name, entry in self._awaited.items() if entry[0] > now and name != key}
        awaited = sum(number for _, number in self._awaited.values())
        if self._awaited and awaited + count > _MAX_AWAITED:
            self._job_manager.reserve_inputs(key, 0.0)
            raise QueueFull(
                f"Calls that wait for uploads name {awaited} artifacts; the endpoint's limit is {_MAX_AWAITED}. Try again later."
            )
        self._awaited[key] = now + _UPLOAD_SECONDS, count
        self._job_manager.reserve_inputs(key, _UPLOAD_SECONDS)
