"""The event stream of a job: server-sent events, read so that a broken connection loses none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import EndpointUnreachable, LimitExceeded
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.retry import Retry

__all__ = ["FINAL", "Event", "follow", "read_events"]

#: States that a job does not leave.
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
MAX_EVENT_BYTES = 1 << 20


@dataclass(frozen=True)
class Event:
    """``kind`` is ``status``, ``progress``, ``log``, ``output``, ``blocked`` or ``comfy``; ``seq`` is what a new connection resumes behind."""

    kind: str
    data: dict[str, Any]
    seq: str | None = None


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """The events in a stream of bytes (WHATWG HTML, 9.2 Server-sent events); comments and events without JSON are left out."""
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


def _event(fields: dict[str, str]) -> Event | None:
    try:
        data = json.loads(fields.get("data", ""))
    except ValueError:
        return None
    return Event(fields.get("event", "message"), data, fields.get("id")) if isinstance(data, dict) else None


async def follow(client: EndpointClient, job_id: str, retry: Retry) -> AsyncIterator[Event]:
    """A job's events in order, each once, up to the one that says how it ended.

    Raises:
        UnknownJob, EndpointUnreachable, TimedOut
    """
    last: str | None = None
    while True:
        try:
            async with client.events(job_id, last) as response:
                retry.answered()
                async for event in read_events(response.chunks()):
                    retry.check_deadline()
                    last = event.seq or last
                    yield event
                    if event.kind == "status" and event.data.get("status") in FINAL:
                        return
            if (await client.job(job_id))["status"] in FINAL:
                return
        except EndpointUnreachable as error:
            await retry.pause(error)
