"""The endpoint's service: deploy, describe, start jobs, wait for them, give their outputs. It knows neither HTTP nor any host's insides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import (
    EndpointFailed,
    InvalidConfig,
    JobConflict,
    LimitExceeded,
    QueueFull,
    UnknownArtifact,
    unknown,
)
from yggdrasill.server_ext.board import Board
from yggdrasill.server_ext.calls import check_options
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.events import EventHub
from yggdrasill.server_ext.host import Host
from yggdrasill.server_ext.identity import body_hash, deployment_hash, state_facts
from yggdrasill.server_ext.intake import Fetcher, Intake
from yggdrasill.server_ext.job import FINAL, IN_PROGRESS, STATES, Event, Job, new_job_id
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.model_sources import ModelRequest, ModelSources
from yggdrasill.server_ext.offers import Offers
from yggdrasill.server_ext.redaction import Redactor
from yggdrasill.server_ext.retention import Retention
from yggdrasill.server_ext.signing import Signer
from yggdrasill.server_ext.tasks import RunLog, Task, Workshop
from yggdrasill.values.artifact_refs import ArtifactRef
from yggdrasill.values.artifacts import ArtifactStore
from yggdrasill.values.wire import references, unpack, with_urls

__all__ = ["Limits", "Service", "Submission"]

_LOG = logging.getLogger("yggdrasill.server")
_MOST_ATTEMPTS = 3
_MOST_BUILDS = 64
_PATIENCE_FOR_UPLOADS = 600.0
_STATE_BYTES = 16 << 20
_OFF_THE_LOOP = 256 << 10


@dataclass(frozen=True)
class Limits:
    """What an endpoint takes: bytes of one control message and of one artifact, and jobs that wait or run."""

    max_body_bytes: int = 32 << 20
    max_artifact_bytes: int = 64 << 30
    max_queue: int = 1000


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


class Service:
    """One endpoint, whatever host runs its jobs."""

    def __init__(
        self,
        *,
        host: Host,
        deployments: Deployments,
        jobs: JobStore,
        store: ArtifactStore,
        signer: Signer,
        fetcher: Fetcher,
        redactor: Redactor | None = None,
        limits: Limits | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.host, self.deployments, self.store, self.limits = host, deployments, store, limits or Limits()
        self.signer, self._jobs, self._intake = signer, jobs, Intake(store, fetcher)
        self.redactor = redactor or Redactor()
        self.hub = EventHub(jobs)
        self.board = Board(jobs, self.hub, host, store, self.redactor, retention or Retention())
        self._shop = Workshop(jobs, store, self.redactor, self.board.tell, self.board.finished, self.board.waits)
        self._run_log = RunLog()
        self._resuming: asyncio.Task[None] | None = None
        self._forgetting: asyncio.Task[None] | None = None
        self._taking = False
        # threads of their own, one per id: what is built may wait for another endpoint, which may wait for something built here
        self._builders = ThreadPoolExecutor(_MOST_BUILDS, "yggdrasill-build")
        self._builds: dict[str, asyncio.Future[Deployment]] = {}
        #: Where model files may be fetched from, and where they go; None on a host without model folders.
        self.models: ModelSources | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what an earlier process left, and take jobs."""
        await self.hub.start()
        unfinished = await self.board.start()
        logging.getLogger("yggdrasill.run").addHandler(self._run_log)
        self._resuming = asyncio.create_task(self._resume(unfinished))
        deployments = self.deployments
        self._forgetting = asyncio.create_task(
            deployments.clock.sweep(lambda: {job.graph_id for job in self.board.live}, deployments.remove)
        )
        self._taking = True

    async def close(self, grace: float = 10.0) -> None:
        """Take no more jobs, let running ones finish for ``grace`` seconds, then cancel them; those that wait keep their rows."""
        self._taking = False
        for task in (self._resuming, self._forgetting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for job in self.board.live:
            self.board.shelve(job)
        await self._until_idle(grace)
        for job in self.board.live:
            if job.status == IN_PROGRESS:
                self.board.stop_job(job, "the endpoint is shutting down")
        await self._until_idle(5.0)
        await self.board.stop()
        self.hub.end()
        await self._intake.close()
        logging.getLogger("yggdrasill.run").removeHandler(self._run_log)
        self._builders.shutdown(wait=False)
        self._shop.packers.shutdown(wait=False)
        await asyncio.to_thread(self._jobs.close)

    async def _until_idle(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.05)):
            if not any(job.status == IN_PROGRESS for job in self.board.live):
                return
            await asyncio.sleep(0.05)

    async def _resume(self, unfinished: list[Job]) -> None:
        for job in unfinished:
            try:
                workflow = job.request.get("workflow")
                deployment = await (self._workflow(**workflow) if workflow is not None else self.deployment(job.graph_id))
                _check_resumable(job, deployment)
            except Exception as error:  # noqa: BLE001 - whatever keeps the job from running is how it ends
                self.board.fail(job, error)
            else:
                self.board.run(Task(job, deployment, self._shop))

    # -- graphs -------------------------------------------------------------------------------------------------

    async def deploy(
        self, graph_id: str, kind: str, config: Mapping[str, Any], state: dict[str, Any] | None, idle_after: float | None = None
    ) -> tuple[Deployment, bool]:
        """Serve a config; see `Deployments.put`. ``state`` is a wire value of at most 16 MiB, its artifacts sent before.

        Raises:
            UnknownArtifact: ``details["missing"]`` of the state. LimitExceeded, and as `Deployments.put`.
        """
        value = None
        if state is not None:
            refs = references(state)
            nbytes = sum(int(entry["nbytes"]) for entry in state["payloads"])
            if nbytes > _STATE_BYTES:
                raise LimitExceeded(
                    f"the state of {graph_id!r} has {nbytes} bytes, and at most {_STATE_BYTES} are sent; let its blocks name a checkpoint_ref "
                    "that exists on the endpoint",
                    bound=_STATE_BYTES,
                    found=nbytes,
                )
            await self._intake.gather(refs, f"deploy:{graph_id}")
            value = await asyncio.to_thread(unpack, state, lambda ref: self.store.read(ref.hash))
        graph_hash = deployment_hash(kind, config, None if state is None else state_facts(state))
        try:
            return await asyncio.to_thread(self.deployments.put, graph_id, kind, config, graph_hash, value, idle_after)
        finally:
            self.store.unpin(f"deploy:{graph_id}")

    async def deployment(self, graph_id: str) -> Deployment:
        """What is served under that name.

        Raises:
            UnknownGraph, or whatever keeps it from being built.
        """
        self.deployments.clock.touch(graph_id)
        live = self.deployments.live(graph_id)
        if live is not None:
            return live
        building = self._builds.get(graph_id)
        if building is None:
            building = asyncio.get_running_loop().run_in_executor(self._builders, self.deployments.get, graph_id)
            self._builds[graph_id] = building
            building.add_done_callback(lambda _: self._builds.pop(graph_id, None))
        return await asyncio.shield(building)

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, graph_id: str, call: Submission) -> Job:
        """A new job, or the one that was made with the same key.

        Raises:
            UnknownGraph. InvalidArgument: options. CorruptData, LimitExceeded: inputs.
            JobConflict: the key was used for another call. QueueFull. StorageFailed.
            UnknownArtifact: ``details["missing"]``, the inputs to send first; no job was made.
        """
        return await self._submit(await self.deployment(graph_id), call)

    async def submit_workflow(self, graph_id: str, prompt: Mapping[str, Any], call: Submission) -> Job:
        """A new job of a ComfyUI API prompt with ports, or the one that was made with the same key; nothing stays deployed.

        Raises:
            InvalidConfig: the prompt, or this endpoint is no ComfyUI. Otherwise as `submit`.
        """
        deployment = await self._workflow(graph_id, prompt)
        return await self._submit(deployment, call, {"workflow": {"graph_id": graph_id, "prompt": dict(prompt)}})

    async def fetch_model(self, request: ModelRequest, key: str) -> Job:
        """A job that brings a model file here, or the one that was made with the same key; its caller need not stay.

        Raises:
            InvalidConfig: there are no model folders here. AccessDenied: the source is not allowed. Otherwise as `ModelSources.target`.
        """
        from yggdrasill.server_ext.model_fetch import fetching

        if self.models is None:
            raise InvalidConfig("this endpoint is no ComfyUI and has no model folders; bring the file to one that is")
        if await self.board.find_key(key) is None:
            await asyncio.to_thread(self.models.target, request)
        deployment = fetching(self.models, request)
        nothing: dict[str, Any] = {"skeleton": {}, "payloads": []}
        run: dict[str, Any] = {"seed": None, "path": [], "pass_index": 0}
        return await self._submit(deployment, Submission(key, nothing, {}, run, detached=True))

    async def _workflow(self, graph_id: str, prompt: Mapping[str, Any]) -> Deployment:
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": dict(prompt)}
        return await asyncio.to_thread(self.deployments.passing, graph_id, "comfy", config)

    async def _submit(self, deployment: Deployment, call: Submission, origin: Mapping[str, Any] | None = None) -> Job:
        """``origin`` is what the job's row needs beyond the call to be run again by another process."""
        graph_id = deployment.graph_id
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
                self.board.release_call(known)
                return known
            self._check_room()
        request = {"inputs": call.inputs, "options": options, "run": call.run, **(origin or {})}
        job = Job(
            new_job_id(), call.key, graph_id, deployment.hash, named, request, detached=call.detached, orphan_after=call.orphan_after,
            timeout=call.timeout, timing=timing, artifacts=tuple(ref.hash for ref in refs),
        )  # fmt: skip
        await self.board.add(job)
        self.board.run(Task(job, deployment, self._shop))
        return job

    async def _known(self, call: Submission, named: str) -> Job | None:
        job = await self.board.find_key(call.key)
        if job is not None and job.body_hash != named:
            raise JobConflict(
                f"job key {call.key[:80]!r} belongs to job {job.job_id}, another call; make a new key for every call", job_id=job.job_id
            )
        return job

    def _check_room(self) -> None:
        if not self._taking:
            raise QueueFull("the endpoint is shutting down and takes no more jobs; try another one, or later")
        if len(self.board.live) >= self.limits.max_queue:
            raise QueueFull(f"the endpoint has {self.limits.max_queue} jobs in hand and takes no more for now; try again later")

    async def _inputs(self, refs: list[ArtifactRef], key: str) -> tuple[float, float]:
        """Seconds and bytes that fetching took; what is here stays pinned for the call until it comes again."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            fetched = await self._intake.gather(refs, f"call:{key}")
        except UnknownArtifact:
            self.board.expect(key, _PATIENCE_FOR_UPLOADS)
            raise
        except BaseException:
            self.board.expect(key, 0.0)
            raise
        return loop.time() - started, float(fetched)

    async def result(self, job: Job) -> dict[str, Any]:
        """How a job ended, its output with urls for others to fetch from; just its status while it has not."""
        if not job.is_final:
            return {"job_id": job.job_id, "status": job.status}
        output = job.output
        if output is not None and job.artifacts:
            output = await asyncio.to_thread(with_urls, output, self._url)
        return {"job_id": job.job_id, "status": job.status, "output": output, "error": job.error, "timing": job.timing}

    def _url(self, ref: ArtifactRef) -> str | None:
        return self.signer.url(ref.hash) if self.store.has(ref.hash) else None

    async def jobs(self, graph_id: str | None = None, status: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Rows of jobs, newest first.

        Raises:
            UnknownName: no such status.
        """
        if status is not None and status not in STATES:
            raise unknown("job status", status, STATES)
        return [job.row() for job in await self.board.newest(graph_id, status, max(1, min(limit, 1000)))]

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop. One that has not begun stops at once, a running one at its next node.

        Raises:
            UnknownJob
        """
        job = await self.board.find(job_id)
        self.board.stop_job(job, "cancelled by request")
        return job

    async def events(self, job_id: str | None, after: int | None, pause: float) -> AsyncGenerator[Event | None, None]:
        """Events of one job, up to its last, or of all jobs; None whenever nothing happened for ``pause`` seconds."""
        if job_id is None:
            async with aclosing(self.hub.listen(None, after, pause)) as stream:
                async for event in stream:
                    yield event
            return
        job = await self.board.find(job_id)
        seen = after or 0
        with self.board.attended(job):
            if job.is_final:
                for event in await asyncio.wrap_future(self._jobs.events(job_id, seen)):
                    yield event
                return
            async with aclosing(self.hub.listen(job_id, seen, pause)) as stream:
                async for event in stream:
                    yield event
                    if job.is_final if event is None else event.data.get("status") in FINAL:
                        return

    # -- about --------------------------------------------------------------------------------------------------

    @property
    def offers(self) -> Offers:
        """Artifacts of outputs that are on their way to the store."""
        return self._shop.offers

    def queue_depth(self) -> dict[str, Any]:
        """``{"queued", "running", "slots"}``."""
        return self.host.queue_depth()


def _check_resumable(job: Job, deployment: Deployment) -> None:
    """Raise `EndpointFailed` if a job that an earlier process left must not run (again)."""
    if deployment.hash != job.graph_hash:
        raise EndpointFailed(f"graph {job.graph_id!r} was replaced before the job could run after a restart; call it again")
    if job.status == IN_PROGRESS and deployment.exclusive:
        raise EndpointFailed(
            f"the endpoint was stopped while this job ran, and graph {job.graph_id!r} keeps state between calls, so it is not run twice; "
            "call it again if its state allows",
            graph_id=job.graph_id,
        )
    if job.attempts >= _MOST_ATTEMPTS:
        raise EndpointFailed(f"the endpoint stopped {job.attempts} times while this job ran; it is not tried again", attempts=job.attempts)
