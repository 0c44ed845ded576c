"""The service of an endpoint: deployments, job submission, results, events. Independent of HTTP and of the host's implementation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

from yggdrasill.errors import EndpointFailed, InvalidArgument, InvalidConfig, LimitExceeded, unknown_name
from yggdrasill.protocol.states import FINAL, IN_PROGRESS, STATES
from yggdrasill.server_ext.access import Access
from yggdrasill.server_ext.admission import Admission, Submission
from yggdrasill.server_ext.artifacts import ArtifactResolver, Fetcher, InFlightArtifacts, PinThread
from yggdrasill.server_ext.auth import Signer
from yggdrasill.server_ext.deployment import Deployment, deployment_hash, state_facts
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.events import EventHub
from yggdrasill.server_ext.host import Host
from yggdrasill.server_ext.job import Event, Job
from yggdrasill.server_ext.job_manager import JobManager
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.model_fetch import ModelRequest, ModelSources, fetch_deployment
from yggdrasill.server_ext.principals import OWNER, Principal, call_key
from yggdrasill.server_ext.redaction import Redactor
from yggdrasill.server_ext.retention import Retention
from yggdrasill.server_ext.tasks import RunLog, Task, TaskServices
from yggdrasill.values.handles import ArtifactRef
from yggdrasill.values.stores.base import ArtifactStore
from yggdrasill.values.stores.disk import DiskStore
from yggdrasill.values.wire import references, unpack, with_urls

__all__ = ["Limits", "Service"]

_MAX_ATTEMPTS = 3
_MAX_BUILDS = 64
_MAX_KEY_LENGTH = 200
_MAX_STATE_BYTES = 16 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of an endpoint: bytes of a JSON body, bytes of an artifact, number of unfinished jobs, and bytes of their requests together."""

    max_body_bytes: int = 32 << 20
    max_artifact_bytes: int = 64 << 30
    max_queue: int = 1000
    max_queue_bytes: int = 256 << 20


class Service:
    """The service of one endpoint, on any host."""

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
        access: Access,
        redactor: Redactor | None = None,
        limits: Limits | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.host, self.deployments, self.store, self.limits = host, deployments, store, limits or Limits()
        #: The store, if callers on the same machine may use its folder directly.
        self.shared = shared
        self._pins = PinThread(store)
        self.signer, self.job_store, self._artifact_resolver = signer, jobs, ArtifactResolver(store, self._pins, fetcher)
        self.redactor = redactor or Redactor()
        self.access = access
        self.hub = EventHub(jobs)
        self.job_manager = JobManager(jobs, self.hub, host, self._pins, self.redactor, retention or Retention())
        self._services = TaskServices(
            jobs, store, self.redactor, self.job_manager.emit, self.job_manager.finished, self.job_manager.set_waits
        )
        bounds = self.limits.max_queue, self.limits.max_queue_bytes
        self._admission = Admission(self.job_manager, self._artifact_resolver, self._services, *bounds)
        self._run_log = RunLog()
        self._resuming: asyncio.Task[None] | None = None
        self._reaping: asyncio.Task[None] | None = None
        # separate threads, one per id: a build may wait for another endpoint, which may wait for a build on this one
        self._builders = ThreadPoolExecutor(_MAX_BUILDS, "yggdrasill-build")
        self._builds: dict[str, tuple[object, asyncio.Future[Any]]] = {}
        #: The allowed sources of model files; None on a host without model folders.
        self.models: ModelSources | None = None

    # -- start and shutdown -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Resume the unfinished jobs of an earlier process and accept new jobs."""
        await self.hub.start()
        unfinished = await self.job_manager.start()
        logging.getLogger("yggdrasill.run").addHandler(self._run_log)
        self._resuming = asyncio.create_task(self._resume(unfinished))
        self.access.start(lambda: self.job_manager.live, self.job_manager.stop_job)
        self._reaping = asyncio.create_task(self.deployments.reaper.sweep(self._in_use, self.deployments.remove))
        self._admission.is_open = True

    async def close(self, grace: float = 10.0) -> None:
        """Stop accepting jobs, wait ``grace`` seconds for running ones, then cancel them. Queued jobs keep their rows for the next start."""
        self._admission.is_open = False
        for task in (self._resuming, self._reaping):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for job in self.job_manager.live:
            self.job_manager.suspend(job)
        await self._wait_until_idle(grace)
        for job in self.job_manager.live:
            if job.status == IN_PROGRESS:
                self.job_manager.stop_job(job, "The endpoint is shutting down. Call again when it is back.")
        await self._wait_until_idle(5.0)
        await self.job_manager.stop()
        self.hub.close()
        await self._artifact_resolver.close()
        logging.getLogger("yggdrasill.run").removeHandler(self._run_log)
        self._builders.shutdown(wait=False)
        self._services.packers.shutdown(wait=False)
        await asyncio.to_thread(self.job_store.close)
        await asyncio.to_thread(self._pins.close)
        await self.access.close()

    async def _wait_until_idle(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.05)):
            if not any(job.status == IN_PROGRESS for job in self.job_manager.live):
                return
            await asyncio.sleep(0.05)

    async def _resume(self, unfinished: list[Job]) -> None:
        # in parallel: a graph that builds slowly must not delay the jobs of others
        await asyncio.gather(*(self._resume_job(job) for job in unfinished))

    async def _resume_job(self, job: Job) -> None:
        try:
            deployment = await self._deployment_of(job)
            _check_resumable(job, deployment)
        except Exception as error:  # noqa: BLE001 - any error becomes the result of the job
            self.job_manager.fail(job, error)
        else:
            self.job_manager.run(Task(job, deployment, self._services))

    async def _deployment_of(self, job: Job) -> Deployment:
        """Return the deployment of a job of an earlier process: built from its request, or the one with its graph id."""
        workflow, model = job.request.get("workflow"), job.request.get("model")
        if workflow is not None:
            return await self._workflow(**workflow)
        if model is not None and self.models is not None:
            return fetch_deployment(self.models, ModelRequest(**model), job.key)
        return await self.deployment(job.graph_id)

    def _in_use(self) -> set[str]:
        return {job.graph_id for job in self.job_manager.live}

    # -- graphs -------------------------------------------------------------------------------------------------

    async def deploy(
        self,
        graph_id: str,
        kind: str,
        config: Mapping[str, Any],
        state: dict[str, Any] | None,
        idle_after: float | None = None,
        principal: Principal = OWNER,
    ) -> tuple[Deployment, bool]:
        """Deploy a config for ``principal``; see `Deployments.put`. ``state`` is in wire form, at most 16 MiB, with its artifacts uploaded before.

        Raises:
            UnknownArtifact: artifacts of the state are missing (``details["missing"]``). LimitExceeded: the state is too large.
            Otherwise as `Deployments.put`.
        """
        if state is None:
            return await self._put(graph_id, kind, config, None, None, idle_after, principal)
        refs = references(state)
        nbytes = sum(int(entry["nbytes"]) for entry in state["payloads"])
        if nbytes > _MAX_STATE_BYTES:
            raise LimitExceeded(
                f"The state of {graph_id!r} has {nbytes} bytes; at most {_MAX_STATE_BYTES} can be sent. Give its blocks a checkpoint_ref "
                "that exists on the endpoint.",
                bound=_MAX_STATE_BYTES,
                found=nbytes,
            )
        # an owner of its own: another request for the same id must not release these artifacts
        owner = f"deploy:{graph_id}:{secrets.token_hex(8)}"
        try:
            await self._artifact_resolver.gather(refs, owner)
            value = await asyncio.to_thread(unpack, state, lambda ref: self.store.read(ref.hash))
            return await self._put(graph_id, kind, config, state_facts(state), value, idle_after, principal)
        finally:
            self._pins.unpin(owner)

    async def _put(
        self, graph_id: str, kind: str, config: Mapping[str, Any], facts: Any, value: Any, idle_after: float | None, principal: Principal
    ) -> tuple[Deployment, bool]:
        graph_hash = deployment_hash(kind, config, facts)
        put = partial(self.deployments.put, graph_id, kind, config, graph_hash, value, idle_after, principal)
        (deployment, created), started = await self._build(graph_id, (graph_hash, idle_after, principal.name), put)
        return deployment, created and started

    async def _build(self, graph_id: str, request: object, act: Callable[[], Any]) -> tuple[Any, bool]:
        """Return the result of ``act()`` in a build thread, and whether this call started it.

        There is one build per id at a time, and no thread waits for it. Equal requests at the same time share one.
        """
        while (running := self._builds.get(graph_id)) is not None:
            if running[0] == request:
                return await asyncio.shield(running[1]), False
            await asyncio.wait([running[1]])
        future = asyncio.get_running_loop().run_in_executor(self._builders, act)
        self._builds[graph_id] = request, future
        future.add_done_callback(lambda _: self._builds.pop(graph_id, None))
        return await asyncio.shield(future), True

    async def deployment(self, graph_id: str) -> Deployment:
        """Return the deployment with this id, built if necessary. Concurrent requests share one build.

        Raises:
            UnknownGraph: there is no such deployment. Otherwise any error of its construction.
        """
        self.deployments.reaper.touch(graph_id)
        live = self.deployments.live(graph_id)
        if live is not None:
            return live
        deployment, _ = await self._build(graph_id, None, partial(self.deployments.get, graph_id))
        return cast("Deployment", deployment)

    async def remove(self, graph_id: str, principal: Principal = OWNER) -> None:
        """Remove a deployment for ``principal``, after a build of it that is running.

        Raises:
            As `Deployments.remove`.
        """
        await self._build(graph_id, ("remove", principal.name), partial(self.deployments.remove, graph_id, principal))

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, graph_id: str, call: Submission) -> Job:
        """Return a new job, or the existing job with the same key.

        Raises:
            UnknownGraph: there is no such deployment. Otherwise as `Admission.admit`.
        """
        return await self._admission.admit(await self.deployment(graph_id), call)

    async def submit_workflow(self, graph_id: str, prompt: Mapping[str, Any], call: Submission) -> Job:
        """Return a new job that runs a ComfyUI API prompt with ports, or the existing job with the same key. Nothing is deployed.

        Raises:
            InvalidConfig: the prompt is invalid, or this endpoint is not a ComfyUI. Otherwise as `submit`.
        """
        deployment = await self._workflow(graph_id, prompt)
        return await self._admission.admit(deployment, call, {"workflow": {"graph_id": graph_id, "prompt": dict(prompt)}})

    async def fetch_model(self, request: ModelRequest, key: str, max_jobs: int | None = None) -> Job:
        """Return a detached job that downloads a model file, or the existing job with the same key.

        Raises:
            InvalidConfig: this endpoint has no model folders. AccessDenied: the source is not allowed. Otherwise as `ModelSources.target`.
        """
        if self.models is None:
            raise InvalidConfig("This endpoint is not a ComfyUI and has no model folders. Send the file to a ComfyUI endpoint.")
        if await self.job_manager.find_key(key) is None:
            await asyncio.to_thread(self.models.target, request)
        deployment = fetch_deployment(self.models, request, key)
        no_inputs: dict[str, Any] = {"skeleton": {}, "payloads": []}
        run: dict[str, Any] = {"seed": None, "path": [], "pass_index": 0}
        return await self._admission.admit(
            deployment, Submission(key, no_inputs, {}, run, detached=True, max_jobs=max_jobs), {"model": asdict(request)}
        )

    async def _workflow(self, graph_id: str, prompt: Mapping[str, Any]) -> Deployment:
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": dict(prompt)}
        build = partial(self.deployments.build_once, graph_id, "comfy", config)
        return await asyncio.get_running_loop().run_in_executor(self._builders, build)

    async def result(self, job: Job, called_at: str | None = None) -> dict[str, Any]:
        """Return the result of a job, with signed urls for its artifacts, or only its status while it is unfinished.

        ``called_at`` is the url at which the caller reached this endpoint.
        """
        if not job.is_final:
            return {"job_id": job.job_id, "status": job.status}
        output = job.output
        if output is not None and job.artifacts:
            output = await asyncio.to_thread(with_urls, output, partial(self._url, called_at=called_at))
        return {"job_id": job.job_id, "status": job.status, "output": output, "error": job.error, "timing": job.timing}

    def _url(self, ref: ArtifactRef, called_at: str | None) -> str | None:
        return self.signer.url(ref.hash, called_at) if self.store.has(ref.hash) else None

    async def jobs(
        self, graph_id: str | None = None, status: str | None = None, limit: int = 100, principal: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows of jobs of ``principal`` (None: of all), newest first.

        Raises:
            UnknownName: the status does not exist.
        """
        if status is not None and status not in STATES:
            raise unknown_name("job status", status, STATES)
        return [job.row() for job in await self.job_manager.newest(graph_id, status, max(1, min(limit, 1000)), principal)]

    async def cancel(self, job_id: str, principal: str | None = None) -> Job:
        """Cancel a job of ``principal`` (None: of any). A queued job ends immediately, a running one at its next node.

        Raises:
            UnknownJob: there is no such job.
        """
        job = await self.job_manager.find(job_id, principal)
        self.job_manager.stop_job(job, "Cancelled by request.")
        return job

    async def cancel_key(self, key: str) -> Job:
        """Cancel the job with this key, as `cancel`. If the key is unused, a call with it is answered as cancelled and never runs.

        Raises:
            InvalidArgument: the key is empty or longer than 200 characters.
        """
        if not 0 < len(call_key(key)) <= _MAX_KEY_LENGTH:
            raise InvalidArgument(f"A job key must have 1 to {_MAX_KEY_LENGTH} characters, got {len(call_key(key))}.")
        return await self.job_manager.cancel_key(key, "Cancelled by request.")

    async def events(
        self, job_id: str | None, after: int | None, pause: float, principal: str | None = None
    ) -> AsyncGenerator[Event | None, None]:
        """Yield the events of one job until its last, or of all jobs of ``principal`` (None: of any) without end.

        Yields None after each ``pause`` seconds of silence.
        """
        if job_id is None:
            async with aclosing(self.hub.listen(None, after, pause)) as stream:
                async for event in stream:
                    is_visible = event is None or principal is None or await self.job_manager.principal_of(event.job_id) == principal
                    yield event if is_visible else None
            return
        job = await self.job_manager.find(job_id, principal)
        seen = after or 0
        with self.job_manager.attend(job):
            if job.is_final:
                async with aclosing(self.hub.stored(job_id, seen)) as stored:
                    async for event in stored:
                        yield event
                return
            async with aclosing(self.hub.listen(job_id, seen, pause)) as stream:
                async for event in stream:
                    yield event
                    if job.is_final if event is None else event.data.get("status") in FINAL:
                        return

    # -- status -------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> InFlightArtifacts:
        """Output artifacts that are being written to the store."""
        return self._services.in_flight

    def queue_depth(self) -> dict[str, Any]:
        """Return ``{"queued", "running", "slots"}``."""
        return self.host.queue_depth()


def _check_resumable(job: Job, deployment: Deployment) -> None:
    """Raise `EndpointFailed` if a job of an earlier process must not be run (again)."""
    if deployment.hash != job.graph_hash:
        raise EndpointFailed(f"Graph {job.graph_id!r} was replaced before the job could run after a restart. Call it again.")
    if job.status == IN_PROGRESS and deployment.exclusive:
        raise EndpointFailed(
            f"The endpoint was stopped while this job ran. Graph {job.graph_id!r} keeps state between calls, so the job is not run again; "
            "call the graph again if its state allows.",
            graph_id=job.graph_id,
        )
    if job.attempts >= _MAX_ATTEMPTS:
        raise EndpointFailed(f"The endpoint stopped {job.attempts} times while this job ran. It is not tried again.", attempts=job.attempts)
