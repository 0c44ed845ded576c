"""One remote call: the choice of the endpoint, the job from submission to its end, failover, and the endpoints of a part."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from yggdrasill import errors
from yggdrasill.errors import EndpointUnreachable, QueueFull, UnknownArtifact, YggdrasillError
from yggdrasill.executor.context import WaitCallback
from yggdrasill.protocol.states import FINAL, WAITING_INPUTS
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.channel import Response, StreamEvent, read_events
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.observers import TransferMeter
from yggdrasill.remote.retry import Retry, RetryPolicy
from yggdrasill.remote.uploads import Supply
from yggdrasill.values.payload import ArtifactRef

if TYPE_CHECKING:
    from yggdrasill.remote.contract import RemoteContract
    from yggdrasill.remote.deployment import DeploymentSpec, WorkflowSpec

__all__ = ["ORPHAN_AFTER", "Call", "Route", "Watch", "execute_remote_call", "follow", "follow_job", "job_output"]

#: How long the submitting request stays open; short if the caller follows the job's events or many requests are in flight.
WAIT_SECONDS = 2.0
WAIT_SECONDS_WITH_PROGRESS = 0.05
OUTPUT_SECONDS = 20.0
ORPHAN_AFTER = 30.0
"""Seconds after which an endpoint cancels a job whose caller is lost."""
_CANCEL_SECONDS = 3.0
_LOST_CANCEL_SECONDS = 600.0
"""How long the cancel request of a call that went to another endpoint is tried again."""
_LOST_PAUSE = 5.0
_TIMEOUT_GRACE = 1.0
"""The endpoint enforces the timeout too and describes it better, so this process waits a little longer."""
_LOAD_TIMEOUT = 2.0
_SILENCE_SECONDS = 20.0
"""Seconds without a byte of an event stream, which has a comment every 5, after which the connection counts as broken."""

Progress = Callable[[str, float, float, "str | None"], None]
#: Receives kind and data of an event.
Watch = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Call:
    """A request to an endpoint. ``wire`` is the packed ``value``; ``run`` is `RunContext.to_dict`; ``key`` identifies the call.

    ``timeout`` bounds the call in seconds, ``deadline`` the time until the job's end as the endpoint plans it; jobs of a higher
    ``priority`` (-1000 to 1000) run first. Endpoints of protocol 1 receive neither deadline nor priority.
    """

    graph_id: str
    wire: Mapping[str, Any]
    value: Any
    artifact_client: ArtifactClient
    run: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    orphan_after: float = ORPHAN_AFTER
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    priority: int = 0
    deadline: float | None = None
    progress: Progress | None = None
    #: A ComfyUI API prompt with ports, to be run without deployment; otherwise ``graph_id`` must be deployed.
    prompt: Mapping[str, Any] | None = None
    #: Receives kind and data of every event that concerns neither status, progress nor blocking calls.
    watch: Watch | None = None
    #: Receives the artifacts of outputs that are available before the end, and the client of their endpoint.
    arrived: Callable[[EndpointClient, list[ArtifactRef]], None] | None = None
    #: Receives the keys of the calls that the caller waits for: this one and those that block it. Not called for immediate results.
    on_wait: WaitCallback | None = None
    meter: TransferMeter = field(default_factory=TransferMeter)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    #: The hash that the graph must have at the endpoint, if its contract was not read for this call.
    graph_hash: str | None = None

    def body(self, wait: float, protocol: int) -> dict[str, Any]:
        """Return the JSON body of the submitting request."""
        body = {
            "key": self.key,
            "inputs": self.wire,
            "options": dict(self.options),
            "run": dict(self.run),
            "detached": False,
            "orphan_after": self.orphan_after,
            "timeout": self.timeout,
            "wait": wait,
        }
        if self.prompt is not None:
            body |= {"graph_id": self.graph_id, "prompt": self.prompt}
        if protocol >= 2:
            body |= {"priority": self.priority} if self.priority else {}
            body |= {"deadline": self.deadline} if self.deadline is not None else {}
        return body

    def submission(self, client: EndpointClient, wait: float) -> AbstractAsyncContextManager[Response]:
        """Start the job, or find it; see `EndpointClient.submission`. The response arrives at once if many requests are in flight."""
        body = self.body(0.0 if client.channel.in_flight.is_busy else wait, client.protocol)
        return client.submission(self.graph_id if self.prompt is None else None, body, self.graph_hash)

    async def submit(self, client: EndpointClient, wait: float) -> dict[str, Any]:
        """Start the job, or find it. Return the job's row, at once if many requests are in flight."""
        body = self.body(0.0 if client.channel.in_flight.is_busy else wait, client.protocol)
        return (await (client.submit(self.graph_id, body) if self.prompt is None else client.submit_workflow(body)))[1]

    def on_event(self, client: EndpointClient, event: StreamEvent) -> None:
        """Pass an event of the job to the caller's functions. Unknown kinds go to ``watch``."""
        if event.kind == "progress" and self.progress is not None:
            data = event.data
            self.progress(str(data.get("place", "")), float(data.get("done", 0)), float(data.get("total", 0)), data.get("text"))
        if event.kind == "output" and self.arrived is not None:
            self.arrived(client, [ArtifactRef.from_json(entry) for entry in event.data.get("artifacts") or ()])
        if event.kind == "blocked":
            self.waits(event.data.get("by") or ())
        if self.watch is not None and event.kind not in ("status", "progress", "blocked"):
            self.watch(event.kind, event.data)

    def waits(self, blockers: Iterable[Any] = ()) -> None:
        """Report the keys that the caller waits for."""
        if self.on_wait is not None:
            self.on_wait([self.key, *map(str, blockers)])


async def execute_remote_call(client: EndpointClient, call: Call, *, spare: bool = False) -> dict[str, Any]:
    """Return the finished job's row with its ``output``. Cancelling the coroutine cancels the job before the coroutine ends.

    ``spare``: see `Retry`.

    Raises:
        YggdrasillError: the error of the remote run, of the same class as in a local run, with ``details["job"]``.
        EndpointUnreachable: ``details["reached"]`` is True if the endpoint ever answered this call.
        TimedOut
    """
    deadline = None if call.timeout is None else time.monotonic() + call.timeout + _TIMEOUT_GRACE
    retry = Retry(call.retry_policy, deadline, spare=spare, budget=client.channel.budget)
    job: list[str] = []
    try:
        row = await _bounded(_to_the_end(client, call, retry, job), retry)
    except (asyncio.CancelledError, errors.TimedOut):
        await _cancel(client, call.key, job)
        raise
    job_output(client, row)
    return row


def job_output(client: EndpointClient, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the output of a finished job.

    Raises:
        YggdrasillError: the job's error.
        EndpointFailed: it ended without output or error.
    """
    error, output = row.get("error"), row.get("output")
    if isinstance(error, Mapping):
        failure = errors.error_from_dict(error)
        failure.details.setdefault("endpoint", client.name)
        failure.details["job"] = row.get("job_id")
        raise failure
    if row.get("status") != "COMPLETED" or not isinstance(output, Mapping):
        raise errors.EndpointFailed(
            f"endpoint {client.name!r} ended job {row.get('job_id')!r} as {row.get('status')!r} without output or error",
            endpoint=client.name,
        )
    return output


async def _bounded(running: Coroutine[Any, Any, dict[str, Any]], retry: Retry) -> dict[str, Any]:
    """Return the result of a coroutine, or raise `TimedOut` once the deadline of ``retry`` has passed."""
    if retry.deadline is None:
        return await running
    try:
        return await asyncio.wait_for(running, retry.deadline - time.monotonic())
    except asyncio.TimeoutError:
        raise retry.timed_out() from None


async def _to_the_end(client: EndpointClient, call: Call, retry: Retry, job: list[str]) -> dict[str, Any]:
    supply = Supply(client, call.value, call.artifact_client, retry, call.meter)
    follows = bool(call.progress or call.watch or call.on_wait)
    started = await _submit(client, call, retry, supply, job, follows=follows)
    row = started.row
    if row.get("status") == WAITING_INPUTS:
        row = await supply.send_to_job(row, call.orphan_after)
        if not follows or row.get("status") in FINAL:
            _, row = await retry.persist(lambda: client.output(job[0], retry.left(WAIT_SECONDS)))
    if row.get("status") in FINAL and (started.followed or call.watch is None):
        return row if "output" in row or not started.followed else await _output(client, job[0], retry)
    call.waits()
    return await follow_job(client, row, retry, supply, lambda event: call.on_event(client, event), call.orphan_after, started.last)


@dataclass
class _Started:
    """A submitted job: its row, whether its events were received with the row, and the number of the last one."""

    row: dict[str, Any] = field(default_factory=dict)
    followed: bool = False
    last: str | None = None


async def _submit(client: EndpointClient, call: Call, retry: Retry, supply: Supply, job: list[str], *, follows: bool) -> _Started:
    """Submit the job, and with ``follows`` receive its events. Its id is added to ``job`` as soon as it is known.

    An endpoint of protocol 1 refuses the job while artifacts are missing; it is then submitted again with the same key.
    """
    while True:
        started = _Started()
        try:
            if follows or call.graph_hash is not None:
                await _follow_submission(client, call, retry, job, started, WAIT_SECONDS_WITH_PROGRESS if follows else WAIT_SECONDS)
            else:
                started.row = await retry.persist(lambda: call.submit(client, retry.left(WAIT_SECONDS)))
        except UnknownArtifact as error:
            retry.answered()
            missing = error.details.get("missing")
            if not isinstance(missing, list) or not missing or "job" in error.details:
                raise
            await supply.send(missing)
        else:
            if not job:
                job.append(str(started.row["job_id"]))
            return started


async def _follow_submission(client: EndpointClient, call: Call, retry: Retry, job: list[str], started: _Started, wait: float) -> None:
    """Submit the job and handle its events until the response ends. If the connection breaks, the rest of the events is not received."""
    while not started.row:
        try:
            async with call.submission(client, retry.left(wait)) as response:
                retry.answered()
                if not response.is_event_stream:
                    started.row = await response.json(client.name, client.url)
                    return
                async for event in read_events(response.chunks(_SILENCE_SECONDS)):
                    retry.check_deadline()
                    if event.kind == "status" and event.data.get("status") == WAITING_INPUTS:
                        # `follow_job` receives it again and uploads the inputs
                        return
                    _handle_followed(client, call, job, started, event)
        except (EndpointUnreachable, QueueFull) as error:
            await retry.pause(error)


def _handle_followed(client: EndpointClient, call: Call, job: list[str], started: _Started, event: StreamEvent) -> None:
    """Handle an event that follows a submission."""
    if event.kind == "result":
        started.row = event.data
    elif event.kind == "job":
        started.row, started.followed = event.data, True
        job.append(str(event.data["job_id"]))
        if event.data.get("status") not in FINAL:
            call.waits()
    else:
        started.last = event.seq or started.last
        if event.kind == "status" and event.data.get("status") in FINAL:
            started.row = {**started.row, "status": event.data["status"]}
        call.on_event(client, event)


async def follow_job(
    client: EndpointClient,
    row: Mapping[str, Any],
    retry: Retry,
    supply: Supply,
    on_event: Callable[[StreamEvent], None],
    orphan_after: float = ORPHAN_AFTER,
    after: str | None = None,
) -> dict[str, Any]:
    """Follow a job, from its event ``after`` on, to its end and return its row with output or error. Artifacts that it waits for are uploaded."""
    job_id = str(row["job_id"])
    async for event in follow(client, job_id, retry, after):
        on_event(event)
        if event.kind == "status" and event.data.get("status") == WAITING_INPUTS:
            # The event may be one of those before the last upload.
            present = await retry.persist(lambda: client.job(job_id))
            if present.get("status") == WAITING_INPUTS:
                await supply.send_to_job(present, orphan_after)
    if row.get("status") in FINAL and ("output" in row or row.get("error") is not None):
        return dict(row)
    return await _output(client, job_id, retry)


async def _output(client: EndpointClient, job_id: str, retry: Retry) -> dict[str, Any]:
    """Wait for the end of a job and return its row with output or error."""
    while True:
        _, found = await retry.persist(lambda: client.output(job_id, retry.left(OUTPUT_SECONDS)))
        if found.get("status") in FINAL:
            return found
        retry.check_deadline()


async def follow(client: EndpointClient, job_id: str, retry: Retry, after: str | None = None) -> AsyncIterator[StreamEvent]:
    """Yield a job's events after the event ``after`` in order, each once, up to its final status.

    Raises:
        UnknownJob, EndpointUnreachable, TimedOut
    """
    last = after
    while True:
        begun_after = last
        try:
            async with client.events(job_id, last) as response:
                retry.answered()
                async for event in read_events(response.chunks()):
                    retry.check_deadline()
                    last = event.seq or last
                    yield event
                    if event.kind == "status" and event.data.get("status") in FINAL:
                        return
            # a stream may end early, because its reader is slow: the rest of the events follows in the next one
            if last == begun_after and (await client.job(job_id))["status"] in FINAL:
                return
        except EndpointUnreachable as error:
            await retry.pause(error)


async def _cancel(client: EndpointClient, key: str, job: Sequence[str] = (), *, seconds: float = _CANCEL_SECONDS) -> None:
    """Send a cancel request: by key if the job's id is unknown, so that a call still on its way does not run.

    If the endpoint does not answer within ``seconds``, or is too old to know keys, it cancels the job itself after ``orphan_after`` seconds.
    """
    with contextlib.suppress(YggdrasillError, asyncio.TimeoutError):
        await asyncio.wait_for(_request_cancel(client, key, job, 0.05 if seconds == _CANCEL_SECONDS else _LOST_PAUSE), seconds)


async def _request_cancel(client: EndpointClient, key: str, job: Sequence[str], most: float) -> None:
    delay = 0.05
    while True:
        try:
            await (client.cancel(job[0]) if job else client.cancel_key(key))
        except EndpointUnreachable:
            await asyncio.sleep(max(delay, min(most, client.channel.breaker.remaining)))
            delay = min(2 * delay, most)
        else:
            return


class Route:
    """The clients of a part, in the order in which they were named.

    ``deployment`` is deployed on an endpoint before its first call there, ``workflow`` is sent with every call and stored nowhere; without
    either, ``graph_id`` must be deployed. An endpoint with more than ``max_queued`` queued jobs is skipped like one with a full queue.
    A stateful part stays with the first endpoint, because another one would have different state. ``has_fallback``: the caller runs the
    part itself if no endpoint accepts the call.
    """

    def __init__(
        self,
        clients: Sequence[EndpointClient],
        graph_id: str,
        *,
        deployment: DeploymentSpec | None = None,
        workflow: WorkflowSpec | None = None,
        policy: str = "first",
        max_queued: int | None = None,
        retry_policy: RetryPolicy | None = None,
        strict_build: bool = False,
        priority: int = 0,
        deadline: float | None = None,
    ) -> None:
        self.clients = tuple(clients)
        self.graph_id = graph_id
        self.deployment = deployment
        self.workflow = workflow
        self.policy = policy
        self.max_queued = max_queued
        self.retry_policy = retry_policy or RetryPolicy()
        self.strict_build = strict_build
        self.priority = priority
        self.deadline = deadline
        self.has_fallback = False
        self._contracts: dict[EndpointClient, RemoteContract] = {}
        #: Contracts that were read before: their endpoints check that they are still valid.
        self._earlier: set[EndpointClient] = set()
        self._turn = itertools.count()

    @property
    def names(self) -> list[str]:
        """Return the endpoints' names."""
        return [client.name for client in self.clients]

    @property
    def contracts(self) -> dict[EndpointClient, RemoteContract]:
        """Return the fetched contracts, by client."""
        return dict(self._contracts)

    def use(self, contracts: Mapping[EndpointClient, RemoteContract]) -> None:
        """Use contracts that were read before. A call is refused with `JobConflict` if the graph was replaced since."""
        self._contracts.update(contracts)
        self._earlier.update(contracts)

    def known_contract(self) -> RemoteContract | None:
        """Return a contract that was fetched before, or the workflow's, or None."""
        if self.workflow is not None:
            return self.workflow.contract
        return next(iter(self._contracts.values()), None)

    async def contract(self) -> RemoteContract:
        """Return the part's contract, from the first endpoint that answers. Raise as `DeploymentSpec.ensure`."""
        contract = self.known_contract()
        if contract is not None:
            return contract
        for number, client in enumerate(self.clients):
            try:
                return await self._contract_at(client, spare=self._spare(number, self.clients))
            except EndpointUnreachable:
                if number == len(self.clients) - 1:
                    raise
        raise EndpointUnreachable(f"graph {self.graph_id!r} has no endpoint")

    async def call(self, call: Call) -> tuple[EndpointClient, dict[str, Any]]:
        """Return the client that ran the call, and the row of the finished job.

        If an endpoint is lost or full, the call goes to the next one, and the call at a lost endpoint is cancelled once that answers
        again. Errors of the run itself are raised.

        Raises:
            EndpointUnreachable, QueueFull: of the last endpoint, if none accepts the call; ``details["reached"]`` is True if any endpoint
                had answered before it was lost.
            Otherwise as `execute_remote_call`.
        """
        order = await self._order()
        reached = False
        for number, client in enumerate(order):
            client.channel.calls += 1
            try:
                return client, await self._call_at(client, call, self._spare(number, order))
            except (EndpointUnreachable, QueueFull) as error:
                if "job" in error.details:
                    raise
                if error.details.get("reached") and isinstance(error, EndpointUnreachable):
                    reached = True
                    client.channel.start(_cancel(client, call.key, seconds=_LOST_CANCEL_SECONDS))
                if number == len(order) - 1:
                    error.details["reached"] = reached
                    raise
            finally:
                client.channel.calls -= 1
        raise EndpointUnreachable(f"graph {self.graph_id!r} has no endpoint")

    def _spare(self, number: int, order: Sequence[EndpointClient]) -> bool:
        return self.has_fallback or number < len(order) - 1

    async def _call_at(self, client: EndpointClient, call: Call, spare: bool) -> dict[str, Any]:
        await self._check_queue(client, spare)
        contract = await self._contract_at(client, call, spare=spare)
        if self.workflow is not None:
            return await execute_remote_call(client, replace(call, prompt=self.workflow.prompt), spare=spare)
        expected = contract.hash if client in self._earlier else None
        try:
            return await execute_remote_call(client, replace(call, graph_id=contract.graph_id, graph_hash=expected), spare=spare)
        except errors.UnknownGraph as error:
            # A stateful part would be deployed again without its state.
            if self.deployment is None or contract.stateful or "job" in error.details:
                raise
        self._contracts.pop(client, None)
        contract = await self._contract_at(client, call, spare=spare)
        return await execute_remote_call(client, replace(call, graph_id=contract.graph_id), spare=spare)

    async def _check_queue(self, client: EndpointClient, spare: bool) -> None:
        if self.max_queued is None:
            return
        waiting = int((await self._retry(client, spare).persist(client.load))[0])
        if waiting > self.max_queued:
            raise QueueFull(
                f"endpoint {client.name!r} has {waiting} jobs waiting, and the limit for {self.graph_id!r} is {self.max_queued}; call again later, "
                "or name more replicas",
                endpoint=client.name,
                queued=waiting,
            )

    def _retry(self, client: EndpointClient, spare: bool, deadline: float | None = None) -> Retry:
        return Retry(self.retry_policy, deadline, spare=spare, budget=client.channel.budget)

    async def _contract_at(self, client: EndpointClient, call: Call | None = None, *, spare: bool = False) -> RemoteContract:
        """Return the contract at one endpoint, after deploying the part there. ``call`` receives the events of the deploying job."""
        contract = self._contracts.get(client)
        if contract is None:
            deadline = None if call is None or call.timeout is None else time.monotonic() + call.timeout
            retry = self._retry(client, spare, deadline)
            if self.workflow is not None:
                contract = await self.workflow.check(client, retry, strict_build=self.strict_build)
            elif self.deployment is None:
                from yggdrasill.remote.contract import fetch_contract

                contract = await fetch_contract(client, self.graph_id, retry, strict_build=self.strict_build)
            else:
                on_event = None if call is None else lambda event: call.on_event(client, event)
                contract = await self.deployment.ensure(client, retry, strict_build=self.strict_build, on_event=on_event)
            self._contracts[client] = contract
        return contract

    async def _order(self) -> list[EndpointClient]:
        """Return the clients as the policy orders them; endpoints that count as down come last."""
        clients = list(self.clients)
        contract = self.known_contract()
        if contract is not None and contract.stateful:
            return [client for client in clients if client in self._contracts][:1]
        if len(clients) == 1:
            return clients
        if self.policy == "round_robin":
            start = next(self._turn) % len(clients)
            clients = clients[start:] + clients[:start]
        elif self.policy != "first":
            known = dict(zip(clients, await asyncio.gather(*map(_has_load, clients)), strict=True))
            # Calls that chose an endpoint while this one waited are part of its load.
            clients.sort(key=lambda client: _jobs_per_slot(client) if known[client] else float("inf"))
        return sorted(clients, key=lambda client: client.channel.breaker.is_open)


async def _has_load(client: EndpointClient) -> bool:
    """Return whether the endpoint reports its load."""
    try:
        await asyncio.wait_for(client.load(), _LOAD_TIMEOUT)
    except (YggdrasillError, asyncio.TimeoutError):
        return False
    return True


def _jobs_per_slot(client: EndpointClient) -> float:
    queued, running, slots = client.known_load()
    return (queued + running) / max(slots, 1.0)
