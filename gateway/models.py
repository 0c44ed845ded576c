"""The job of a gateway as data: its row, its states and the transitions between them, its events, and the submission that it is made of."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, FINAL, IN_PROGRESS, IN_QUEUE, TIMED_OUT

__all__ = [
    "COMPOSITE",
    "GRAPH",
    "JOB_FIELDS",
    "KINDS",
    "POOL",
    "PREDECESSORS",
    "PROMPT",
    "RETRYABLE",
    "STATES",
    "STATUS",
    "WORKFLOW",
    "Event",
    "Job",
    "NewJob",
    "body_hash",
    "check_name",
    "check_priority",
    "check_seconds",
    "new_job_id",
]

GRAPH, WORKFLOW, PROMPT, POOL, COMPOSITE = "graph", "workflow", "prompt", "pool", "composite"
"""The kinds of jobs: a call of a deployed graph, a ComfyUI prompt with ports, one without ports, a job for the workers of a pool, and a composite
of several calls."""
KINDS = (GRAPH, WORKFLOW, PROMPT, POOL, COMPOSITE)
STATES = (IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED, TIMED_OUT)
STATUS = "status"
"""The kind of an event about a new state."""
RETRYABLE = (FAILED, TIMED_OUT)
"""The states from which a client may return a job to the queue."""

#: The states that may precede each state. A job that is given back, or retried, returns to IN_QUEUE.
PREDECESSORS: dict[str, tuple[str, ...]] = {
    IN_QUEUE: (IN_PROGRESS, *RETRYABLE),
    IN_PROGRESS: (IN_QUEUE,),
    COMPLETED: (IN_PROGRESS,),
    **dict.fromkeys((FAILED, CANCELLED, TIMED_OUT), (IN_QUEUE, IN_PROGRESS)),
}

MAX_PRIORITY = 1000
MAX_NAME = 200
_MAX_SECONDS = 366 * 86400.0


def new_job_id() -> str:
    """Return a unique job id."""
    return str(uuid.uuid4())


def body_hash(document: Any) -> str:
    """Return a hash of a JSON value, for the comparison of two requests with one key."""
    return hashlib.blake2b(json.dumps(document, sort_keys=True, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def check_priority(value: Any) -> int:
    """Return a priority. Raise `InvalidArgument` unless it is an integer from -1000 to 1000."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_PRIORITY:
        raise InvalidArgument(f"priority must be an integer from -{MAX_PRIORITY} to {MAX_PRIORITY}, got {str(value)[:40]!r}.")
    return value


def check_name(value: Any, what: str) -> str:
    """Return a name. Raise `InvalidArgument` unless it is a text of 1 to 200 printable characters, which every database stores."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise InvalidArgument(f"The {what} must be a text of 1 to {MAX_NAME} printable characters, got {str(value)[:40]!r}.")
    return value


def check_seconds(value: Any, name: str, *, least: float = 0.0, most: float = _MAX_SECONDS) -> float:
    """Return a number of seconds. Raise `InvalidArgument` unless it is between ``least`` and ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InvalidArgument(f"{name} must be a number of seconds from {least:g} to {most:g}, got {str(value)[:40]!r}.")
    return float(value)


@dataclass(slots=True)
class Job:
    """The row of a job, without its request and output. Times are seconds since the epoch by the clock of the store.

    ``target`` groups the jobs that the same endpoints can run: a graph id, a pool, or a digest of node classes. ``place`` is the name of the
    endpoint or worker that runs it, ``call_key`` the key of the call there, and ``owner`` the gateway that promised to follow it until
    ``lease_until``. ``waits_for`` is the number of steps of the same composite that must end before.
    """

    job_id: str
    dialect: str
    kind: str
    target: str
    principal: str
    status: str
    created: float
    queued: float
    priority: int = 0
    #: The place in the queue among jobs of one priority; the smallest number comes first.
    position: int = 0
    paused: bool = False
    started: float | None = None
    finished: float | None = None
    #: When an unfinished job is given up, counted from its submission, and the seconds that it may run.
    ttl_at: float | None = None
    timeout: float | None = None
    #: A job that was given back is not taken before this time.
    not_before: float = 0.0
    attempts: int = 0
    retries: int = 0
    max_attempts: int = 3
    owner: str | None = None
    lease_until: float | None = None
    place: str | None = None
    call_key: str | None = None
    parent: str | None = None
    step: str | None = None
    waits_for: int = 0
    key: str | None = None
    body_hash: str | None = None
    #: Seconds for which the row is kept after its end, and when it is deleted.
    retention: float = 86400.0
    expires: float | None = None
    webhook: str | None = None
    webhook_state: str | None = None
    webhook_attempts: int = 0
    webhook_at: float | None = None
    #: The number of the last chunk of output that a reader of the stream received.
    streamed: int = 0
    progress: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    #: What a dialect stores with the job, such as a name; not for secrets.
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL

    @property
    def deadline(self) -> float | None:
        """When a running job is stopped: the earlier of its lifetime and its execution timeout."""
        ends = [self.ttl_at] if self.ttl_at is not None else []
        if self.timeout is not None and self.started is not None:
            ends.append(self.started + self.timeout)
        return min(ends) if ends else None

    def summary(self) -> dict[str, Any]:
        """Return the row as JSON for clients: no key of a call, no webhook and no lease."""
        return {
            "job_id": self.job_id,
            "kind": self.kind,
            "target": self.target,
            "status": self.status,
            "paused": self.paused,
            "priority": self.priority,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "expires": self.expires,
            "ttl_at": self.ttl_at,
            "timeout": self.timeout,
            "attempts": self.attempts,
            "retries": self.retries,
            "endpoint": self.place,
            "principal": self.principal,
            "dialect": self.dialect,
            "parent": self.parent,
            "step": self.step,
            "key": self.key,
            "progress": self.progress,
            "error": self.error,
            "extra": self.extra,
        }


#: The names of the columns of a job, in order.
JOB_FIELDS = tuple(item.name for item in fields(Job))


@dataclass
class NewJob:
    """A submission: what a dialect gives to `Gateway.submit`. ``ttl``, ``timeout`` and ``retention`` are in seconds.

    ``request`` is the JSON that `execution` reads for the ``kind``, stored until the job is deleted. ``steps`` are the parts of a composite; a
    step names the ``needs`` that must end before it.
    """

    kind: str
    target: str
    request: dict[str, Any]
    dialect: str
    principal: str
    job_id: str = field(default_factory=new_job_id)
    priority: int = 0
    paused: bool = False
    ttl: float | None = 86400.0
    timeout: float | None = None
    retention: float = 86400.0
    max_attempts: int | None = None
    key: str | None = None
    webhook: str | None = None
    max_jobs: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    #: The ids of assets that are inputs; they are kept until the job has ended.
    assets: tuple[str, ...] = ()
    steps: list[NewJob] = field(default_factory=list)
    step: str | None = None
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_priority(self.priority)
        if self.kind not in KINDS:
            raise InvalidArgument(f"Invalid kind {self.kind!r} of a job. Available: {', '.join(map(repr, KINDS))}.")
        check_name(self.target, "target of a job")
        if self.key is not None:
            check_name(self.key, "idempotency key")

    def row(self, now: float, position: int, max_attempts: int) -> Job:
        """Return the row of the new job."""
        return Job(
            self.job_id, self.dialect, self.kind, self.target, self.principal, IN_QUEUE, now, now, self.priority, position, self.paused,
            ttl_at=None if self.ttl is None else now + self.ttl,
            timeout=self.timeout,
            max_attempts=self.max_attempts or max_attempts,
            waits_for=len(self.needs),
            step=self.step,
            key=self.key,
            body_hash=None if self.key is None else body_hash([self.kind, self.target, self.request]),
            retention=self.retention,
            webhook=self.webhook,
            webhook_state=None if self.webhook is None else "waiting",
            extra=self.extra,
        )  # fmt: skip


@dataclass(frozen=True)
class Event:
    """An event of a job. ``seq`` increases over all events of one store; an event that is not stored has the ``seq`` 0."""

    seq: int
    job_id: str
    principal: str
    kind: str
    data: Mapping[str, Any]
    created: float = 0.0

    @property
    def message(self) -> bytes:
        """The event as a server-sent event; ``data`` has the job's id."""
        text = json.dumps({"job_id": self.job_id, "time": self.created, **self.data}, separators=(",", ":"))
        number = f"id: {self.seq}\n" if self.seq else ""
        return f"{number}event: {self.kind}\ndata: {text}\n\n".encode()
