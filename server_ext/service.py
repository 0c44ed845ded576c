"""The endpoint's service: deploy, describe, start jobs, wait for them, give their outputs. It knows neither HTTP nor any host's insides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from yggdrasill.errors import EndpointFailed, InvalidConfig, LimitExceeded, unknown_name
from yggdrasill.server_ext.admission import Admission, Submission
from yggdrasill.server_ext.artifact_resolver import ArtifactResolver, Fetcher
from yggdrasill.server_ext.deployment import Deployment
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.events import EventHub
from yggdrasill.server_ext.host import Host
from yggdrasill.server_ext.identity import deployment_hash, state_facts
from yggdrasill.server_ext.in_flight import InFlightArtifacts
from yggdrasill.server_ext.job import FINAL, IN_PROGRESS, STATES, Event, Job
from yggdrasill.server_ext.job_manager import JobManager
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.model_sources import ModelRequest, ModelSources
from yggdrasill.server_ext.redaction import Redactor
from yggdrasill.server_ext.retention import Retention
from yggdrasill.server_ext.signing import Signer
from yggdrasill.server_ext.tasks import RunLog, Task, TaskServices
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.stores.base import ArtifactStore
from yggdrasill.values.stores.disk import DiskStore
from yggdrasill.values.wire import references, unpack, with_urls

__all__ = ["Limits", "Service"]

_MOST_ATTEMPTS = 3
_MOST_BUILDS = 64
_STATE_BYTES = 16 << 20


@dataclass(frozen=True)
class Limits:
    """What an endpoint takes: bytes of one control message and of one artifact, and jobs that wait or run."""

    max_body_bytes: int = 32 << 20
    max_artifact_bytes: int = 64 << 30
    max_queue: int = 1000


class Service:
    """One endpoint, whatever host runs its jobs."""

    def __init__(
        self,
        *,
        host: Host,
        deployments: Deployments,
        jobs: JobStore,
        store: ArtifactStore,
        shared: DiskStore | None = None,
        signer: Signer,
        fetcher: Fetcher,
        redactor: Redactor | None = None,
        limits: Limits | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.host, self.deployments, self.store, self.limits = host, deployments, store, limits or Limits()
        #: The store if callers on the same machine may use its folder themselves.
        self.shared = shared
        self.signer, self._jobs, self._artifact_resolver = signer, jobs, ArtifactResolver(store, fetcher)
        self.redactor = redactor or Redactor()
        self.hub = EventHub(jobs)
        self.job_manager = JobManager(jobs, self.hub, host, store, self.redactor, retention or Retention())
        self._services = TaskServices(jobs, store, self.redactor, self.job_manager.tell, self.job_manager.finished, self.job_manager.waits)
        self._admission = Admission(self.job_manager, self._artifact_resolver, self._services, self.limits.max_queue)
        self._run_log = RunLog()
        self._resuming: asyncio.Task[None] | None = None
        self._forgetting: asyncio.Task[None] | None = None
        # threads of their own, one per id: what is built may wait for another endpoint, which may wait for something built here
        self._builders = ThreadPoolExecutor(_MOST_BUILDS, "yggdrasill-build")
        self._builds: dict[str, asyncio.Future[Deployment]] = {}
        #: Where model files may be fetched from, and where they go; None on a host without model folders.
        self.models: ModelSources | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what an earlier process left, and take jobs."""
        await self.hub.start()
        unfinished = await self.job_manager.start()
        logging.getLogger("yggdrasill.run").addHandler(self._run_log)
        self._resuming = asyncio.create_task(self._resume(unfinished))
        self._forgetting = asyncio.create_task(self.deployments.clock.sweep(self._in_use, self.deployments.remove))
        self._admission.is_open = True

    async def close(self, grace: float = 10.0) -> None:
        """Take no more jobs, let running ones finish for ``grace`` seconds, then cancel them; those that wait keep their rows."""
        self._admission.is_open = False
        for task in (self._resuming, self._forgetting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for job in self.job_manager.live:
            self.job_manager.shelve(job)
        await self._until_idle(grace)
        for job in self.job_manager.live:
            if job.status == IN_PROGRESS:
                self.job_manager.stop_job(job, "the endpoint is shutting down; call again when it is back")
        await self._until_idle(5.0)
        await self.job_manager.stop()
        self.hub.end()
        await self._artifact_resolver.close()
        logging.getLogger("yggdrasill.run").removeHandler(self._run_log)
        self._builders.shutdown(wait=False)
        self._services.packers.shutdown(wait=False)
        await asyncio.to_thread(self._jobs.close)

    async def _until_idle(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.05)):
            if not any(job.status == IN_PROGRESS for job in self.job_manager.live):
                return
            await asyncio.sleep(0.05)

    async def _resume(self, unfinished: list[Job]) -> None:
        for job in unfinished:
            try:
                deployment = await self._deployment_of(job)
                _check_resumable(job, deployment)
            except Exception as error:  # noqa: BLE001 - whatever keeps the job from running is how it ends
                self.job_manager.fail(job, error)
            else:
                self.job_manager.run(Task(job, deployment, self._services))

    async def _deployment_of(self, job: Job) -> Deployment:
        """What a job of an earlier process runs: what came along with its call, else what is served under its graph's name."""
        from yggdrasill.server_ext.model_fetch import fetching

        workflow, model = job.request.get("workflow"), job.request.get("model")
        if workflow is not None:
            return await self._workflow(**workflow)
        if model is not None and self.models is not None:
            return fetching(self.models, ModelRequest(**model), job.key)
        return await self.deployment(job.graph_id)

    def _in_use(self) -> set[str]:
        return {job.graph_id for job in self.job_manager.live}

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
            await self._artifact_resolver.gather(refs, f"deploy:{graph_id}")
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
            UnknownGraph. Otherwise as `Admission.admit`.
        """
        return await self._admission.admit(await self.deployment(graph_id), call)

    async def submit_workflow(self, graph_id: str, prompt: Mapping[str, Any], call: Submission) -> Job:
        """A new job of a ComfyUI API prompt with ports, or the one that was made with the same key; nothing stays deployed.

        Raises:
            InvalidConfig: the prompt, or this endpoint is no ComfyUI. Otherwise as `submit`.
        """
        deployment = await self._workflow(graph_id, prompt)
        return await self._admission.admit(deployment, call, {"workflow": {"graph_id": graph_id, "prompt": dict(prompt)}})

    async def fetch_model(self, request: ModelRequest, key: str) -> Job:
        """A job that brings a model file here, or the one that was made with the same key; its caller need not stay.

        Raises:
            InvalidConfig: there are no model folders here. AccessDenied: the source is not allowed. Otherwise as `ModelSources.target`.
        """
        from yggdrasill.server_ext.model_fetch import fetching

        if self.models is None:
            raise InvalidConfig("this endpoint is no ComfyUI and has no model folders; bring the file to one that is")
        if await self.job_manager.find_key(key) is None:
            await asyncio.to_thread(self.models.target, request)
        deployment = fetching(self.models, request, key)
        nothing: dict[str, Any] = {"skeleton": {}, "payloads": []}
        run: dict[str, Any] = {"seed": None, "path": [], "pass_index": 0}
        return await self._admission.admit(deployment, Submission(key, nothing, {}, run, detached=True), {"model": asdict(request)})

    async def _workflow(self, graph_id: str, prompt: Mapping[str, Any]) -> Deployment:
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": dict(prompt)}
        return await asyncio.to_thread(self.deployments.passing, graph_id, "comfy", config)

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
            raise unknown_name("job status", status, STATES)
        return [job.row() for job in await self.job_manager.newest(graph_id, status, max(1, min(limit, 1000)))]

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop. One that has not begun stops at once, a running one at its next node.

        Raises:
            UnknownJob
        """
        job = await self.job_manager.find(job_id)
        self.job_manager.stop_job(job, "cancelled by request")
        return job

    async def events(self, job_id: str | None, after: int | None, pause: float) -> AsyncGenerator[Event | None, None]:
        """Events of one job, up to its last, or of all jobs; None whenever nothing happened for ``pause`` seconds."""
        if job_id is None:
            async with aclosing(self.hub.listen(None, after, pause)) as stream:
                async for event in stream:
                    yield event
            return
        job = await self.job_manager.find(job_id)
        seen = after or 0
        with self.job_manager.attended(job):
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
    def in_flight(self) -> InFlightArtifacts:
        """Artifacts of outputs that are on their way to the store."""
        return self._services.in_flight

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
