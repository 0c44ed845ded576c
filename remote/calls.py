"""One remote call at one endpoint: the job from its submission to its end, its events, and its cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

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

__all__ = ["ORPHAN_AFTER", "Call", "Watch", "cancel_call", "execute_remote_call", "finish_call", "follow", "follow_job", "job_output"]

#: How long the submitting request stays open; short if the caller follows the job's events or many requests are in flight.
WAIT_SECONDS = 2.0
WAIT_SECONDS_WITH_PROGRESS = 0.05
OUTPUT_SECONDS = 20.0
ORPHAN_AFTER = 30.0
"""Seconds after which an endpoint cancels a job whose caller is lost."""
_CANCEL_SECONDS = 3.0
_LOST_PAUSE = 5.0
_TIMEOUT_GRACE = 1.0
"""The endpoint enforces the timeout too and describes it better, so this process waits a little longer."""
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
    row = await finish_call(client, call, spare=spare)
    job_output(client, row)
    return row


async def finish_call(client: EndpointClient, call: Call, *, spare: bool = False) -> dict[str, Any]:
    """Return the finished job's row, however it ended. Otherwise as `execute_remote_call`."""
    deadline = None if call.timeout is None else time.monotonic() + call.timeout + _TIMEOUT_GRACE
    retry = Retry(call.retry_policy, deadline, spare=spare, budget=client.channel.budget)
    job: list[str] = []
    try:
        return await _bounded(_to_the_end(client, call, retry, job), retry)
    except (asyncio.CancelledError, errors.TimedOut):
        await cancel_call(client, call.key, job)
        raise


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


async def cancel_call(client: EndpointClient, key: str, job: Sequence[str] = (), *, seconds: float = _CANCEL_SECONDS) -> None:
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
