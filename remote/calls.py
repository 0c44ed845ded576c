"""One remote call: submit, upload missing artifacts, follow the job's events, return the output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.errors import (
    EndpointFailed,
    EndpointUnreachable,
    LimitExceeded,
    TimedOut,
    UnknownArtifact,
    YggdrasillError,
    error_from_dict,
)
from yggdrasill.protocol.states import FINAL
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.observers import TransferMeter, WaitCallback
from yggdrasill.remote.retry import Retry, RetryPolicy
from yggdrasill.remote.uploads import upload
from yggdrasill.values.handles import ArtifactRef

__all__ = ["ORPHAN_AFTER", "Call", "StreamEvent", "Watch", "execute_remote_call", "follow", "read_events"]

#: How long the submitting request stays open; short if the caller follows the job's events.
WAIT_SECONDS = 20.0
WAIT_SECONDS_WITH_PROGRESS = 0.05
_CANCEL_SECONDS = 3.0
ORPHAN_AFTER = 30.0
"""Seconds after which an endpoint cancels a job whose caller is lost."""
#: Uploads of one artifact in one call: an artifact may be deleted between upload and submission, but the number of attempts is bounded.
MAX_UPLOADS = 5

Progress = Callable[[str, float, float, "str | None"], None]
#: Receives kind and data of an event.
Watch = Callable[[str, Mapping[str, Any]], None]
MAX_EVENT_BYTES = 1 << 20


@dataclass(frozen=True)
class Call:
    """A request to an endpoint. ``wire`` is the packed ``value``; ``run`` is `RunContext.to_dict`; ``key`` identifies the call."""

    graph_id: str
    wire: Mapping[str, Any]
    value: Any
    artifact_client: ArtifactClient
    run: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    orphan_after: float = ORPHAN_AFTER
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
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

    def body(self, wait: float) -> dict[str, Any]:
        """Return the JSON body of the submitting request."""
        return {
            "key": self.key,
            "inputs": self.wire,
            "options": dict(self.options),
            "run": dict(self.run),
            "detached": False,
            "orphan_after": self.orphan_after,
            "timeout": self.timeout,
            "wait": wait,
        }

    async def submit(self, client: EndpointClient, wait: float) -> tuple[int, dict[str, Any]]:
        """Start the job, or find it. Return the status (200 finished, 202 not yet) and the job's row."""
        if self.prompt is None:
            return await client.submit(self.graph_id, self.body(wait))
        return await client.submit_workflow({**self.body(wait), "graph_id": self.graph_id, "prompt": self.prompt})


async def execute_remote_call(client: EndpointClient, call: Call) -> dict[str, Any]:
    """Return the finished job's row with its ``output``. Cancelling the coroutine cancels the job before the coroutine ends.

    Raises:
        YggdrasillError: the error of the remote run, of the same class as in a local run, with ``details["job"]``.
        EndpointUnreachable: ``details["reached"]`` is True if the endpoint ever answered this call.
        TimedOut
    """
    deadline = None if call.timeout is None else time.monotonic() + call.timeout
    retry = Retry(call.retry_policy, deadline)
    job: list[str] = []
    try:
        row = await _to_the_end(client, call, retry, job)
    except (asyncio.CancelledError, TimedOut):
        await _cancel(client, call, job)
        raise
    error = row.get("error")
    if isinstance(error, Mapping):
        failure = error_from_dict(error)
        failure.details.setdefault("endpoint", client.name)
        failure.details["job"] = row.get("job_id")
        raise failure
    if row.get("status") != "COMPLETED" or not isinstance(row.get("output"), Mapping):
        raise EndpointFailed(
            f"endpoint {client.name!r} ended job {row.get('job_id')!r} as {row.get('status')!r} without output or error",
            endpoint=client.name,
        )
    return row


async def _to_the_end(client: EndpointClient, call: Call, retry: Retry, job: list[str]) -> dict[str, Any]:
    status, row = await _submit(client, call, retry)
    if status == 200 and call.watch is None:
        return row
    job.append(str(row["job_id"]))
    _learn(call)
    # For a finished job, deliver the events that occurred before.
    async for event in follow(client, job[0], retry):
        if event.kind == "progress" and call.progress is not None:
            data = event.data
            call.progress(str(data.get("place", "")), float(data.get("done", 0)), float(data.get("total", 0)), data.get("text"))
        if event.kind == "output" and call.arrived is not None:
            call.arrived(client, [ArtifactRef.from_json(entry) for entry in event.data.get("artifacts") or ()])
        if event.kind == "blocked":
            _learn(call, event.data.get("by") or ())
        if call.watch is not None and event.kind not in ("status", "progress", "blocked"):
            call.watch(event.kind, event.data)
    if status == 200:
        return row
    while True:
        status, row = await retry.persist(lambda: client.output(job[0], retry.left(WAIT_SECONDS)))
        if status == 200:
            return row
        retry.check_deadline()


def _learn(call: Call, blockers: Iterable[Any] = ()) -> None:
    if call.on_wait is not None:
        call.on_wait([call.key, *map(str, blockers)])


async def _submit(client: EndpointClient, call: Call, retry: Retry) -> tuple[int, dict[str, Any]]:
    most = WAIT_SECONDS_WITH_PROGRESS if call.progress or call.watch or call.on_wait else WAIT_SECONDS
    sent: dict[str, int] = {}
    while True:
        try:
            return await retry.persist(lambda: call.submit(client, retry.left(most)))
        except UnknownArtifact as error:
            retry.answered()
            missing = error.details.get("missing")
            if not isinstance(missing, list) or not missing or any(sent.get(name, 0) >= MAX_UPLOADS for name in missing):
                raise
            if any(map(sent.get, missing)):
                # The artifact written to the folder did not reach the endpoint: the folder is another one by now, or its quota is too small.
                client.local_peer.disable()
            for name in missing:
                sent[name] = sent.get(name, 0) + 1
            with call.meter.sending():
                call.meter.bytes_sent += await upload(client, missing, call.value, call.artifact_client, retry)


async def _cancel(client: EndpointClient, call: Call, job: list[str]) -> None:
    """Send a cancel request: by key if the job's id is unknown, so that a call still on its way does not run.

    If the endpoint does not answer, or is too old to know keys, it cancels the job itself after ``orphan_after`` seconds.
    """
    with contextlib.suppress(YggdrasillError, asyncio.TimeoutError):
        await asyncio.wait_for(_request_cancel(client, call, job), _CANCEL_SECONDS)


async def _request_cancel(client: EndpointClient, call: Call, job: list[str]) -> None:
    while True:
        try:
            await (client.cancel(job[0]) if job else client.cancel_key(call.key))
        except EndpointUnreachable:
            await asyncio.sleep(0.05)
        else:
            return


@dataclass(frozen=True)
class StreamEvent:
    """A job's event. ``kind``: ``status``, ``progress``, ``log``, ``output``, ``blocked`` or ``comfy``. A new connection resumes after
    ``seq``.
    """

    kind: str
    data: dict[str, Any]
    seq: str | None = None


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[StreamEvent]:
    """Parse a stream of server-sent events (WHATWG HTML, 9.2). Comments and events without JSON are skipped."""
    rest = b""
    fields: dict[str, str] = {}
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise LimitExceeded(f"a line of an event stream is longer than {MAX_EVENT_BYTES} bytes", bound=MAX_EVENT_BYTES)
        for line in lines:
            text = line.rstrip(b"\r").decode("utf-8", "replace")
            if text:
                name, _, value = text.partition(":")
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
            elif fields:
                event = _event(fields)
                fields = {}
                if event is not None:
                    yield event


def _event(fields: dict[str, str]) -> StreamEvent | None:
    try:
        data = json.loads(fields.get("data", ""))
    except ValueError:
        return None
    return StreamEvent(fields.get("event", "message"), data, fields.get("id")) if isinstance(data, dict) else None


async def follow(client: EndpointClient, job_id: str, retry: Retry) -> AsyncIterator[StreamEvent]:
    """Yield a job's events in order, each once, up to its final status.

    Raises:
        UnknownJob, EndpointUnreachable, TimedOut
    """
    last: str | None = None
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
