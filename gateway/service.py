"""What every dialect of the gateway needs: checked submissions, waiting, results, cancellation, and the pools of workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, LimitExceeded, MissingInput, UnknownJob, unknown_name
from yggdrasill.gateway.endpoints import Fleet, classes_of, target_of_classes
from yggdrasill.gateway.files import Files
from yggdrasill.gateway.hub import Hub
from yggdrasill.gateway.models import COMPOSITE, GRAPH, POOL, PROMPT, WORKFLOW, Event, Job, NewJob, check_name, new_job_id
from yggdrasill.gateway.steps import check_composite
from yggdrasill.gateway.store import JobStore
from yggdrasill.gateway.webhooks import check_webhook
from yggdrasill.gateway.work import Work
from yggdrasill.protocol.states import IN_QUEUE
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, check_prompt, ports_of
from yggdrasill.server_ext.principals import ADMIN, Principal

__all__ = ["Gateway", "Limits", "Options", "only_of"]

_POOL_POLL_SECONDS = 1.0
_MAX_POOLS = 1000
_RESULT_LIMIT = 20 << 20


@dataclass(frozen=True)
class Limits:
    """The bounds of requests and results in bytes, and how long workers may be silent and results are kept, in seconds.

    ``comfy_ttl`` is the lifetime of unfinished jobs of Comfy API v2, whose clients choose none.
    """

    run_bytes: int = 10 << 20
    runsync_bytes: int = 20 << 20
    result_bytes: int = _RESULT_LIMIT
    chunk_bytes: int = 1 << 20
    worker_lease: float = 60.0
    worker_seen: float = 60.0
    run_retention: float = 1800.0
    runsync_retention: float = 60.0
    retention: float = 86400.0
    comfy_ttl: float = 86400.0


@dataclass(frozen=True)
class Options:
    """What a client may choose for a job of any kind; times are in seconds."""

    dialect: str
    principal: Principal
    priority: int = 0
    paused: bool = False
    ttl: float | None = 86400.0
    timeout: float | None = None
    retention: float | None = None
    key: str | None = None
    webhook: str | None = None
    endpoint: str | None = None
    job_id: str | None = None
    assets: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None


def only_of(principal: Principal) -> str | None:
    """Return the name of the principal whose jobs a caller may see, or None for those of all."""
    return None if principal.may(ADMIN) else principal.name


class Gateway:
    """The jobs, endpoints, assets and pools behind all dialects. ``pools`` are names of targets that workers serve."""

    def __init__(
        self,
        store: JobStore,
        work: Work,
        fleet: Fleet,
        hub: Hub,
        *,
        limits: Limits,
        files: Files,
        pools: frozenset[str] = frozenset(),
        private_webhooks: bool = False,
    ) -> None:
        self.store, self.work, self.fleet, self.hub, self.limits, self.files = store, work, fleet, hub, limits, files
        self._pools = set(pools)
        self._private_webhooks = private_webhooks
        self._pulse = asyncio.Event()

    # -- targets ----------------------------------------------------------------------------------------------------

    @property
    def pools(self) -> list[str]:
        """The names of the pools: those that were declared, and those from which a worker has taken jobs."""
        return sorted(self._pools)

    async def is_pool(self, name: str) -> bool:
        """Return whether a name is that of a pool, also of one whose workers use another gateway on the same database."""
        if name not in self._pools:
            found = await asyncio.wrap_future(self.work.pools())
            self._pools.update(found)
        return name in self._pools

    def default_target(self) -> str:
        """Return the only pool or graph of the gateway, for requests that name none. Raise `InvalidArgument` if there are several."""
        graphs = {graph for state in self.fleet.states.values() for graph in state.graphs}
        found = self.pools if len(self._pools) == 1 else sorted(graphs | self._pools)
        if len(found) != 1:
            raise InvalidArgument(
                f"Name the endpoint in the path, as /v2/ENDPOINT/run. Available: {', '.join(map(repr, found[:12])) or 'none'}."
            )
        return found[0]

    # -- submissions --------------------------------------------------------------------------------------------------

    async def submit_graph(self, graph_id: str, request: Mapping[str, Any], options: Options) -> tuple[Job, bool]:
        """Submit a call of a deployed graph; see `yggdrasill.gateway.execution` for the request. Return the job, and whether it is new.

        Raises:
            UnknownGraph, EndpointUnreachable: no endpoint serves it. UnknownName, MissingInput: its inputs are others.
            JobConflict, QueueFull, StorageFailed
        """
        await self.fleet.check(GRAPH, graph_id, place=options.endpoint)
        if "wire" not in request:
            await self._check_inputs(graph_id, request.get("inputs") or {})
        return await self._submit(self._new(GRAPH, graph_id, dict(request), options))

    async def _check_inputs(self, graph_id: str, inputs: Mapping[str, Any], *, given: frozenset[str] = frozenset()) -> None:
        """Compare the names of inputs with the contract of a graph, if an endpoint reports it. ``given`` come from other steps."""
        contract = await self.fleet.contract(graph_id)
        if contract is None or contract.get("kind") in ("stage", "world"):
            return
        specs = {str(entry["name"]): entry for entry in contract.get("inputs") or ()}
        for name in inputs:
            if name not in specs:
                raise unknown_name("input", name, specs, f"These are the inputs of graph {graph_id!r}.")
        missing = [name for name, entry in specs.items() if not entry.get("optional") and name not in inputs and name not in given]
        if missing:
            raise MissingInput(f"Graph {graph_id!r} needs the inputs {', '.join(map(repr, missing))}.", ports=missing)

    async def submit_prompt(self, prompt: Any, request: Mapping[str, Any], options: Options) -> tuple[Job, bool]:
        """Submit a ComfyUI prompt in the API format: with Graph Input or Graph Output nodes as ports, or without, as an editor queues it.

        Raises:
            InvalidConfig, LimitExceeded: not a prompt. UnknownBlockType, UnknownName, EndpointUnreachable: no ComfyUI can run it.
            Otherwise as `submit_graph`.
        """
        kind, target, checked = await self._check_prompt(prompt, request.get("inputs") or {}, options.endpoint)
        return await self._submit(self._new(kind, target, {**request, "prompt": checked}, options))

    async def _check_prompt(self, prompt: Any, inputs: Mapping[str, Any], endpoint: str | None) -> tuple[str, str, dict[str, Any]]:
        checked = check_prompt(prompt, "workflow")
        ports, outputs = ports_of(checked, INPUT_NODE, "workflow"), ports_of(checked, OUTPUT_NODE, "workflow")
        kind = WORKFLOW if ports or outputs else PROMPT
        for name in inputs:
            if name not in ports:
                raise unknown_name("input", name, ports, "These are the Graph Input nodes of the workflow.")
        missing = [name for name, port in ports.items() if not port.optional and name not in inputs]
        if missing:
            raise MissingInput(f"The workflow needs the inputs {', '.join(map(repr, missing))}.", ports=missing)
        classes = classes_of(checked)
        target = target_of_classes(classes)
        self.fleet.remember_classes(target, classes)
        await self.fleet.check(kind, target, classes, endpoint)
        return kind, target, checked

    async def submit_composite(self, composite: Mapping[str, Any], options: Options) -> tuple[Job, bool]:
        """Submit a composite; see `yggdrasill.gateway.steps`. Its steps are jobs of their own.

        Raises:
            InvalidConfig, UnknownName, CycleFound: not a composite. Otherwise as `submit_graph` and `submit_prompt`.
        """
        order = check_composite(composite)
        steps = []
        for name, needed in order.items():
            step = composite["steps"][name]
            inputs = step.get("inputs") or {}
            chosen = step.get("endpoint", options.endpoint)
            request = {key: step[key] for key in ("options", "seed", "extra_data") if key in step} | {"inputs": inputs}
            if step.get("graph"):
                kind, target = GRAPH, str(step["graph"])
                await self.fleet.check(kind, target, place=chosen)
                await self._check_inputs(target, inputs)
            else:
                kind, target, request["prompt"] = await self._check_prompt(step["prompt"], inputs, chosen)
                if kind == PROMPT and any(name in other for other in order.values()):
                    raise InvalidConfig(f"Step {name!r} has no Graph Output nodes, so that other steps cannot use its outputs.")
            extra = {} if chosen is None else {"endpoint": chosen}
            steps.append(
                NewJob(
                    kind, target, request, options.dialect, options.principal.name, priority=options.priority, paused=options.paused, ttl=options.ttl,
                    timeout=options.timeout, retention=self.limits.retention, extra=extra, step=name, needs=needed,
                )
            )  # fmt: skip
        new = self._new(COMPOSITE, "composite", {"steps": composite["steps"], "outputs": composite.get("outputs") or {}}, options)
        new.steps, new.timeout = steps, None
        return await self._submit(new)

    async def submit_to_pool(self, pool: str, request: Mapping[str, Any], options: Options) -> tuple[Job, bool]:
        """Submit a job for the workers of a pool. Raise as `submit_graph`, and `UnknownName` for an unknown pool."""
        if not await self.is_pool(pool):
            raise unknown_name("pool", pool, self._pools, "Start the gateway with --pool NAME.")
        return await self._submit(self._new(POOL, pool, dict(request), options))

    def _new(self, kind: str, target: str, request: dict[str, Any], options: Options) -> NewJob:
        if options.webhook is not None:
            check_webhook(options.webhook, allow_private=self._private_webhooks)
        extra = {**(options.extra or {}), **({} if options.endpoint is None else {"endpoint": options.endpoint})}
        retention = self.limits.retention if options.retention is None else options.retention
        return NewJob(
            kind, target, request, options.dialect, options.principal.name, options.job_id or new_job_id(), options.priority, options.paused,
            options.ttl, options.timeout, retention, key=options.key, webhook=options.webhook, max_jobs=options.principal.max_jobs, extra=extra,
            assets=options.assets,
        )  # fmt: skip

    async def _submit(self, new: NewJob) -> tuple[Job, bool]:
        # a client that closes its connection does not undo what is being stored
        return await asyncio.shield(asyncio.wrap_future(self.store.submit(new)))

    # -- results --------------------------------------------------------------------------------------------------------

    async def wait(self, job_id: str, seconds: float, principal: str | None = None) -> tuple[Job, Any]:
        """Return a job and its output, after waiting up to so many seconds for its end. Raise `UnknownJob`."""
        found: list[tuple[Job, Any]] = []

        async def has_ended() -> bool:
            found[:] = [await asyncio.wrap_future(self.store.result(job_id, principal))]
            return found[0][0].is_final

        if seconds > 0:
            await self.hub.wait(job_id, seconds, has_ended)
        if found and found[0][0].is_final:
            return found[0]
        return await asyncio.wrap_future(self.store.result(job_id, principal))

    async def job(self, job_id: str, principal: str | None = None) -> Job:
        """Return a job. Raise `UnknownJob`."""
        return await asyncio.wrap_future(self.store.get(job_id, principal))

    async def cancel(self, job_id: str, principal: str | None = None, reason: str = "The job was cancelled by its client.") -> Job:
        """Cancel a job; the call at its endpoint is cancelled too. Raise `UnknownJob`."""
        return await asyncio.shield(asyncio.wrap_future(self.store.cancel(job_id, principal, reason)))

    # -- pools ------------------------------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Wake the workers that wait for jobs."""
        if event.data.get("status") == IN_QUEUE:
            self._pulse.set()
            self._pulse = asyncio.Event()

    async def take(self, pool: str, worker: str, count: int, seconds: float) -> list[tuple[Job, dict[str, Any]]]:
        """Return up to ``count`` jobs for a worker, after waiting up to so many seconds for the first."""
        if pool not in self._pools and len(self._pools) >= _MAX_POOLS:
            raise LimitExceeded(f"The gateway has {_MAX_POOLS} pools, its limit.", bound=_MAX_POOLS)
        self._pools.add(check_name(pool, "name of a pool"))
        check_name(worker, "name of a worker")
        end = time.monotonic() + seconds
        while True:
            pulse = self._pulse
            taken = await asyncio.wrap_future(self.work.claim_for_worker(pool, worker, count, self.limits.worker_lease))
            left = end - time.monotonic()
            if taken or left <= 0:
                return taken
            try:
                await asyncio.wait_for(pulse.wait(), min(left, _POOL_POLL_SECONDS))
            except asyncio.TimeoutError:
                continue

    async def worker_job(self, job_id: str, worker: str) -> Job | None:
        """Return the job that a worker runs, or None if it was stopped or given to another worker. Raise `UnknownJob` for an unknown one."""
        job, exists = await asyncio.wrap_future(self.work.worker_job(job_id, worker))
        if not exists:
            raise UnknownJob(f"Unknown job {job_id[:80]!r}. Its row may have been deleted after its retention.", name=job_id[:80])
        return job
