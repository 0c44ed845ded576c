"""The service of an endpoint: deployments, job submission, results, events. Independent of HTTP and of the host's implementation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

from yggdrasill.errors import AccessDenied, InvalidArgument, InvalidConfig, UnknownJob, unknown_name
from yggdrasill.protocol.states import FINAL, IN_PROGRESS, STATES
from yggdrasill.server_ext.auth import Access, Signer
from yggdrasill.server_ext.deployment import Deployment, check_state_size, deployment_hash, state_facts
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.headless import Host
from yggdrasill.server_ext.jobs.events import EventHub
from yggdrasill.server_ext.jobs.execution import RunLog, TaskServices
from yggdrasill.server_ext.jobs.manager import JobManager
from yggdrasill.server_ext.jobs.model import CALL, DEPLOY, MODEL, WORKFLOW, Event, Job, Submission
from yggdrasill.server_ext.jobs.staging import ArtifactResolver, Fetcher, Staging, Target
from yggdrasill.server_ext.jobs.store import JobStore, Retention
from yggdrasill.server_ext.logs import Redactor
from yggdrasill.server_ext.model_fetch import ModelRequest, ModelSources, fetch_deployment
from yggdrasill.server_ext.principals import OWNER, OWNER_NAME, Principal, call_key, private_key
from yggdrasill.values.payload import ArtifactRef
from yggdrasill.values.stores.base import StagingStore
from yggdrasill.values.stores.embedded import EmbeddedStore
from yggdrasill.values.stores.folder import FolderStore
from yggdrasill.values.stores.threaded import InFlightArtifacts, PinThread
from yggdrasill.values.wire import references, unpack, with_urls

__all__ = ["Limits", "Service"]

_MAX_BUILDS = 64
_MAX_KEY_LENGTH = 200
_MAX_WORKFLOWS, _SMALL_WORKFLOW_BYTES = 32, 256 << 10


@dataclass(frozen=True)
class Limits:
    """Limits of an endpoint: bytes of a JSON body, bytes of an artifact, number of unfinished jobs, and bytes of their requests on disk."""

    max_body_bytes: int = 32 << 20
    max_artifact_bytes: int = 64 << 30
    max_queue: int = 10_000
    max_queue_bytes: int = 1 << 30


class Service:
    """The service of one endpoint, on any host."""

    def __init__(
        self,
        *,
        host: Host,
        deployments: Deployments,
        jobs: JobStore,
        store: StagingStore,
        shared: FolderStore | None = None,
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
        lease_owner = secrets.token_hex(8)
        self.job_manager = JobManager(jobs, self.hub, host, self._pins, self.redactor, retention or Retention(), lease_owner)
        if isinstance(store, EmbeddedStore):
            store.on_full = self.job_manager.make_room
        self._services = TaskServices(
            jobs,
            store,
            self.redactor,
            self.job_manager.emit,
            self.job_manager.finished,
            self.job_manager.set_waits,
            self.job_manager.together,
            lease_owner,
        )
        bounds = self.limits.max_queue, self.limits.max_queue_bytes
        self._staging = Staging(self.job_manager, self._artifact_resolver, self._services, self, *bounds)
        self._run_log = RunLog()
        self._reaping: asyncio.Task[None] | None = None
        # separate threads, one per id: a build may wait for another endpoint, which may wait for a build on this one
        self._builders = ThreadPoolExecutor(_MAX_BUILDS, "yggdrasill-build")
        self._builds: dict[str, tuple[object, asyncio.Future[Any]]] = {}
        #: Level and hash of what unfinished jobs deploy, by graph id and job id, newest last.
        self._deploying: dict[str, dict[str, tuple[str, str]]] = {}
        #: Deployments of workflows that are not deployed, by hash, the one that was used last at the end.
        self._workflows: dict[str, Deployment] = {}
        #: The allowed sources of model files; None on a host without model folders.
        self.models: ModelSources | None = None

    # -- start and shutdown -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Resume the unfinished jobs of an earlier process and accept new jobs."""
        await self.hub.start()
        unfinished = await self.job_manager.start()
        logging.getLogger("yggdrasill.run").addHandler(self._run_log)
        for job in unfinished:
            if job.kind == DEPLOY:
                self._announce(job, (await self.job_manager.request(job))["deploy"]["kind"])
            self._staging.resume(job)
        self.access.start(lambda: self.job_manager.live, self.job_manager.stop_job)
        self._reaping = asyncio.create_task(self.deployments.reaper.sweep(self._in_use, self.deployments.remove))
        self._staging.is_open = True

    async def close(self, grace: float = 10.0) -> None:
        """Stop accepting jobs, wait ``grace`` seconds for running ones, then cancel them. Queued jobs keep their rows for the next start."""
        await self._staging.close()
        if self._reaping is not None:
            self._reaping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reaping
        for job in self.job_manager.live:
            self.job_manager.suspend(job)
        await self._wait_until_idle(grace)
        for job in self.job_manager.live:
            if job.status == IN_PROGRESS:
                self.job_manager.stop_job(job, "The endpoint is shutting down. Call again when it is back.", is_recorded=False)
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
        check_state_size(graph_id, state)
        # an owner of its own: another request for the same id must not release these artifacts
        owner = f"deploy:{graph_id}:{secrets.token_hex(8)}"
        try:
            await self._artifact_resolver.require(references(state), owner)
            value = await self._unpack(state)
            return await self._put(graph_id, kind, config, state_facts(state), value, idle_after, principal)
        finally:
            self._pins.unpin(owner)

    async def submit_deployment(
        self,
        graph_id: str,
        kind: str,
        config: Mapping[str, Any],
        state: dict[str, Any] | None,
        idle_after: float | None,
        call: Submission,
        principal: Principal = OWNER,
    ) -> Job | dict[str, Any]:
        """Return a job that deploys a config, or the summary of the equal deployment that exists. Nothing is built before the return.

        The key of ``call`` may be empty. ``state`` is as in `deploy`.

        Raises:
            InvalidArgument: invalid id or kind. LimitExceeded: the state is too large. AccessDenied: another principal deployed another
            config under this id. Otherwise as `Staging.submit`.
        """
        self.deployments.check_name(graph_id, kind)
        if state is not None:
            check_state_size(graph_id, state)
        graph_hash = await asyncio.to_thread(lambda: deployment_hash(kind, config, None if state is None else state_facts(state)))
        if not call.key or await self.job_manager.find_key(call.key) is None:
            kept = await self._keep_equal(graph_id, graph_hash, idle_after, principal)
            if kept is not None:
                return kept
            await asyncio.to_thread(self.deployments.check_deployer, graph_id, principal)
        origin = {"graph_id": graph_id, "kind": kind, "config": dict(config), "idle_after": idle_after, "has_state": state is not None}
        call = replace(
            call,
            key=call.key or private_key(call.principal, f"deploy:{graph_hash[:32]}:{secrets.token_hex(8)}"),
            inputs={"skeleton": {}, "payloads": []} if state is None else state,
            options={"idle_after": idle_after},
            detached=True,
        )
        job = await self._staging.submit(call, Target(DEPLOY, graph_id, kind, graph_hash, origin={"deploy": origin}))
        self._announce(job, kind)
        return job

    async def _keep_equal(self, graph_id: str, graph_hash: str, idle_after: float | None, principal: Principal) -> dict[str, Any] | None:
        """Return the summary of the deployment with this id and hash, or None; see `Deployments.keep_equal`."""
        if graph_id in self._builds:
            return None
        keep = partial(self.deployments.keep_equal, graph_id, graph_hash, idle_after, principal)
        found: dict[str, Any] | None = (await self._build(graph_id, ("keep", graph_hash, idle_after, principal.name), keep))[0]
        return None if found is None else {**found, "created": False}

    async def run_deployment(self, job: Job, request: Mapping[str, Any]) -> dict[str, Any]:
        """Deploy what a job of kind "deploy" requests, and return its output."""
        principal = self.access.principals.get(job.principal)
        if principal is None:
            raise AccessDenied(f"The principal {job.principal!r} that deploys {job.graph_id!r} was deleted.", reason="owner")
        wanted, state = request["deploy"], request["inputs"]
        facts = value = None
        if wanted["has_state"]:
            facts, value = state_facts(state), await self._unpack(state)
        place = wanted["graph_id"], wanted["kind"], wanted["config"]
        deployment, created = await self._put(*place, facts, value, wanted["idle_after"], principal)
        return {**deployment.summary(), "created": created}

    async def _unpack(self, state: dict[str, Any]) -> Any:
        return await asyncio.to_thread(unpack, state, lambda ref: self.store.read(ref.hash))

    def _announce(self, job: Job, level: str) -> None:
        """Accept calls of what an unfinished job deploys."""
        if not job.is_final:
            self._deploying.setdefault(job.graph_id, {})[job.job_id] = level, job.graph_hash

    def _announced(self, graph_id: str) -> tuple[str, str] | None:
        """Return level and hash of what is being deployed under an id, or None."""
        jobs = self._deploying.get(graph_id, {})
        for job_id in [job_id for job_id in jobs if not self.job_manager.is_live(job_id)]:
            del jobs[job_id]
        if jobs:
            return next(reversed(jobs.values()))
        self._deploying.pop(graph_id, None)
        building = self._builds[graph_id][0] if graph_id in self._builds else None
        is_deployment = isinstance(building, tuple) and building[0] not in ("keep", "remove")
        return cast("tuple[str, str]", building[:2]) if is_deployment and isinstance(building, tuple) else None

    async def _put(
        self, graph_id: str, kind: str, config: Mapping[str, Any], facts: Any, value: Any, idle_after: float | None, principal: Principal
    ) -> tuple[Deployment, bool]:
        graph_hash = deployment_hash(kind, config, facts)
        put = partial(self.deployments.put, graph_id, kind, config, graph_hash, value, idle_after, principal)
        (deployment, created), started = await self._build(graph_id, (kind, graph_hash, idle_after, principal.name), put)
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
        live = self.deployments.live.get(graph_id)
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

    async def deployment_of(self, job: Job, request: Mapping[str, Any]) -> Deployment:
        """Return the deployment that runs a job: built from its request, or the one with its graph id."""
        workflow, model = request.get("workflow"), request.get("model")
        if workflow is not None:
            return await self._workflow(**workflow)
        if model is not None and self.models is not None:
            return fetch_deployment(self.models, ModelRequest(**model), job.key)
        await self._wait_until_deployed(job)
        return await self.deployment(job.graph_id)

    async def _wait_until_deployed(self, call: Job) -> None:
        """Wait while an unfinished job deploys the graph of a call, unless that graph is live."""
        while (live := self.deployments.live.get(call.graph_id)) is None or live.hash != call.graph_hash:
            found = self._announced(call.graph_id) and self._deploying.get(call.graph_id, {})
            job_id = next((job_id for job_id, (_, graph_hash) in (found or {}).items() if graph_hash == call.graph_hash), None)
            if job_id is None:
                return
            job = await self.job_manager.find(job_id)
            if not job.is_final:
                await asyncio.shield(self.job_manager.next_change(job))

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, graph_id: str, call: Submission) -> Job:
        """Return a new job, or the existing job with the same key. For a caller in protocol 1 (``blocking``) the deployment is built first.

        Raises:
            UnknownGraph: there is no such deployment. Otherwise as `Staging.submit`.
        """
        self.deployments.reaper.touch(graph_id)
        live = self.deployments.live.get(graph_id)
        if live is None and call.blocking:
            live = await self.deployment(graph_id)
        if live is not None:
            return await self._staging.submit(call, Target(CALL, graph_id, live.kind, live.hash, live))
        announced = self._announced(graph_id)
        if announced is None:
            announced = await asyncio.to_thread(self.deployments.level_and_hash, graph_id)
        level, graph_hash = announced
        return await self._staging.submit(call, Target(CALL, graph_id, level, graph_hash))

    async def submit_workflow(self, graph_id: str, prompt: Mapping[str, Any], call: Submission) -> Job:
        """Return a new job that runs a ComfyUI API prompt with ports, or the existing job with the same key. Nothing is deployed.

        Raises:
            InvalidConfig: the prompt is invalid, or this endpoint is not a ComfyUI. Otherwise as `submit`.
        """
        deployment = await self._workflow(graph_id, prompt, is_small=call.nbytes <= _SMALL_WORKFLOW_BYTES)
        origin = {"workflow": {"graph_id": graph_id, "prompt": dict(prompt)}}
        return await self._staging.submit(call, Target(WORKFLOW, graph_id, deployment.kind, deployment.hash, deployment, origin))

    async def fetch_model(self, request: ModelRequest, key: str, principal: Principal = OWNER) -> Job:
        """Return a detached job that downloads a model file, or the existing job with the same key.

        Raises:
            InvalidConfig: this endpoint has no model folders. AccessDenied: the source is not allowed. Otherwise as `ModelSources.target`.
        """
        if self.models is None:
            raise InvalidConfig("This endpoint is not a ComfyUI and has no model folders. Send the file to a ComfyUI endpoint.")
        if await self.job_manager.find_key(key) is None:
            await asyncio.to_thread(self.models.target, request)
        found = fetch_deployment(self.models, request, key)
        run: dict[str, Any] = {"seed": None, "path": [], "pass_index": 0}
        call = Submission(
            key, {"skeleton": {}, "payloads": []}, {}, run, detached=True, principal=principal.name, max_jobs=principal.max_jobs
        )
        return await self._staging.submit(call, Target(MODEL, found.graph_id, found.kind, found.hash, found, {"model": asdict(request)}))

    async def _workflow(self, graph_id: str, prompt: Mapping[str, Any], *, is_small: bool = False) -> Deployment:
        """Return a deployment of a prompt. The newest small ones are kept, because a part is called many times with the same prompt."""
        config = {"kind": "comfy", "graph_id": graph_id, "prompt": dict(prompt)}
        graph_hash = deployment_hash("comfy", config) if is_small else ""
        deployment = self._workflows.pop(graph_hash, None)
        if deployment is None:
            build = partial(self.deployments.build_once, graph_id, "comfy", config)
            deployment = await asyncio.get_running_loop().run_in_executor(self._builders, build)
        if is_small:
            self._workflows[graph_hash] = deployment
            if len(self._workflows) > _MAX_WORKFLOWS:
                del self._workflows[next(iter(self._workflows))]
        return deployment

    async def check_inputs(self, job_id: str, principal: str | None = None) -> Job:
        """Look again for the missing inputs of a job, in the background. A job that does not wait for inputs is unchanged.

        Raises:
            UnknownJob: there is no such job.
        """
        return await self._staging.check_inputs(await self.job_manager.find(job_id, principal))

    async def result(self, job: Job, called_at: str | None = None) -> dict[str, Any]:
        """Return the row of a job, and if it has ended also its output, with signed urls for its artifacts.

        ``called_at`` is the url at which the caller reached this endpoint.
        """
        output = job.output
        if output is not None and job.artifacts:
            output = await asyncio.to_thread(with_urls, output, partial(self._url, called_at=called_at))
        return {**job.row(), "output": output} if job.is_final else job.row()

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
        return [job.row() for job in await self.job_manager.newest(graph_id, status, principal, max(1, min(limit, 1000)))]

    async def job_of_key(self, key: str, principal: str | None = None) -> Job:
        """Return the job with this key, of any principal or of ``principal``.

        Raises:
            UnknownJob: the key is unused, or another principal used it.
        """
        job = await self.job_manager.find_key(key)
        if job is None or principal not in (None, job.principal):
            raise UnknownJob(
                f"Job key {call_key(key)[:80]!r} is unused on this endpoint, or its job finished long ago.", name=call_key(key)[:80]
            )
        return job

    async def cancel(self, job_id: str, principal: str | None = None) -> Job:
        """Cancel a job of ``principal`` (None: of any). One that does not run ends immediately, a running one at its next node.

        Raises:
            UnknownJob: there is no such job.
        """
        job = await self.job_manager.find(job_id, principal)
        await self.job_manager.cancel(job, "Cancelled by request.")
        return job

    async def cancel_key(self, key: str, principal: str | None = None) -> Job:
        """Cancel the job with this key, as `cancel`. If the key is unused, a call with it is answered as cancelled and never runs.

        Raises:
            InvalidArgument: the key is empty or longer than 200 characters. UnknownJob: another principal used it.
        """
        if not 0 < len(call_key(key)) <= _MAX_KEY_LENGTH:
            raise InvalidArgument(f"A job key must have 1 to {_MAX_KEY_LENGTH} characters, got {len(call_key(key))}.")
        if principal is not None and await self.job_manager.find_key(key) is not None:
            await self.job_of_key(key, principal)
        return await self.job_manager.cancel_key(key, "Cancelled by request.", principal or OWNER_NAME)

    async def events(
        self, job_id: str | None, after: int | None, pause: float, principal: str | None = None
    ) -> AsyncGenerator[Event | None, None]:
        """Yield the events of one job until its last, or of all jobs of ``principal`` (None: of any) without end.

        Yields None after each ``pause`` seconds of silence.
        """
        if job_id is None:
            last = time.monotonic()
            async with aclosing(self.hub.listen(None, after, pause)) as stream:
                async for event in stream:
                    is_visible = event is None or principal is None or await self.job_manager.principal_of(event.job_id) == principal
                    # while only others have events, the stream is silent
                    if is_visible or time.monotonic() - last >= pause:
                        yield event if is_visible else None
                        last = time.monotonic()
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
