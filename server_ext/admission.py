"""How a call becomes a job: found again by its key, or checked for room, its inputs brought here, stored, and given to the host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import JobConflict, QueueFull, UnknownArtifact
from yggdrasill.server_ext.artifact_resolver import ArtifactResolver
from yggdrasill.server_ext.calls import check_options
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.identity import body_hash
from yggdrasill.server_ext.job import Job, new_job_id
from yggdrasill.server_ext.job_manager import JobManager
from yggdrasill.server_ext.tasks import Task, TaskServices
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.wire import references

__all__ = ["Admission", "Submission"]

_PATIENCE_FOR_UPLOADS = 600.0
_OFF_THE_LOOP = 256 << 10


@dataclass(frozen=True)
class Submission:
    """A call of a served graph, as its caller sent it."""

    key: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    run: dict[str, Any]
    detached: bool = False
    orphan_after: float = 30.0
    timeout: float | None = None
    #: About how many bytes of JSON this was.
    nbytes: int = 0


class Admission:
    """The way to the job_manager, for at most ``max_queue`` jobs at a time."""

    def __init__(self, job_manager: JobManager, artifact_resolver: ArtifactResolver, services: TaskServices, max_queue: int) -> None:
        self._job_manager, self._artifact_resolver, self._services, self._max_queue = job_manager, artifact_resolver, services, max_queue
        #: Whether new jobs are taken.
        self.is_open = False

    async def admit(self, deployment: Deployment, call: Submission, origin: Mapping[str, Any] | None = None) -> Job:
        """A new job, or the one that was made with the same key.

        ``origin`` is what the job's row needs beyond the call to be run again by another process.

        Raises:
            InvalidArgument: options. CorruptData, LimitExceeded: inputs. JobConflict: the key was used for another call. QueueFull. StorageFailed.
            UnknownArtifact: ``details["missing"]``, the inputs to send first; no job was made.
        """
        options = check_options(deployment.kind, call.options)
        large = call.nbytes > _OFF_THE_LOOP
        facts = (deployment, call.inputs, call.run, options)
        named = await asyncio.to_thread(body_hash, *facts) if large else body_hash(*facts)
        known = await self._known(call, named)
        if known is not None:
            return known
        self._check_room()
        refs = references(call.inputs)
        timing = {"fetch_s": 0.0, "bytes_in": 0.0}
        if refs:
            timing["fetch_s"], timing["bytes_in"] = await self._inputs(refs, call.key)
            known = await self._known(call, named)
            if known is not None:
                self._job_manager.release_call(known)
                return known
            self._check_room()
        request = {"inputs": call.inputs, "options": options, "run": call.run, **(origin or {})}
        job = Job(
            new_job_id(), call.key, deployment.graph_id, deployment.hash, named, request, detached=call.detached,
            orphan_after=call.orphan_after, timeout=call.timeout, timing=timing, artifacts=tuple(ref.hash for ref in refs),
        )  # fmt: skip
        await self._job_manager.add(job)
        self._job_manager.run(Task(job, deployment, self._services))
        return job

    async def _known(self, call: Submission, named: str) -> Job | None:
        job = await self._job_manager.find_key(call.key)
        if job is not None and job.body_hash != named:
            raise JobConflict(
                f"job key {call.key[:80]!r} belongs to job {job.job_id}, another call; make a new key for every call", job_id=job.job_id
            )
        return job

    def _check_room(self) -> None:
        if not self.is_open:
            raise QueueFull("the endpoint is shutting down and takes no more jobs; try another one, or later")
        if len(self._job_manager.live) >= self._max_queue:
            raise QueueFull(f"the endpoint has {self._max_queue} jobs in hand and takes no more for now; try again later")

    async def _inputs(self, refs: list[ArtifactRef], key: str) -> tuple[float, float]:
        """Seconds and bytes that fetching took; what is here stays pinned for the call until it comes again."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            fetched = await self._artifact_resolver.gather(refs, f"call:{key}")
        except UnknownArtifact:
            self._job_manager.expect(key, _PATIENCE_FOR_UPLOADS)
            raise
        except BaseException:
            self._job_manager.expect(key, 0.0)
            raise
        return loop.time() - started, float(fetched)
