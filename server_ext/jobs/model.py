"""The job as data: its row, its states and the transitions between them, its events, and the submission that it is made of."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken
from yggdrasill.protocol.states import FINAL, IN_QUEUE, STATES, TRANSITIONS, WAITING_INPUTS
from yggdrasill.server_ext.principals import OWNER_NAME, call_key

__all__ = [
    "CALL",
    "DEPLOY",
    "MODEL",
    "PREDECESSORS",
    "WORKFLOW",
    "Event",
    "Job",
    "KeyRecord",
    "Submission",
    "new_job_id",
]

CALL, WORKFLOW, DEPLOY, MODEL = "call", "workflow", "deploy", "model"
"""The kinds of jobs: a call of a deployment, a call of a workflow that is not deployed, a deployment, the download of a model file."""
_UPLOAD_SECONDS = 600.0
"""How long a job waits for the uploads of a caller that is silent during them in protocol 1, and of a detached job."""

#: The states that may precede each state.
PREDECESSORS: dict[str, tuple[str, ...]] = {
    status: tuple(earlier for earlier in STATES if status in TRANSITIONS[earlier]) for status in STATES
}


def new_job_id() -> str:
    """Return a unique job id."""
    return uuid.uuid4().hex


@dataclass(slots=True)
class Job:
    """One unit of work of an endpoint. Times are seconds since the epoch; ``request`` and the ``output`` of a call are in wire form (JSON).

    ``request`` is None for a waiting job whose request is only in its row.
    """

    job_id: str
    key: str
    graph_id: str
    graph_hash: str
    body_hash: str
    request: dict[str, Any] | None
    kind: str = CALL
    status: str = IN_QUEUE
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    detached: bool = False
    orphan_after: float = 30.0
    timeout: float | None = None
    #: When the job must have finished.
    deadline: float | None = None
    #: Jobs with a higher number start first.
    priority: int = 0
    attempts: int = 0
    #: The process that runs the job, and the time until which it promises to; see `yggdrasill.server_ext.jobs.manager.JobManager`.
    lease_owner: str | None = None
    lease_until: float | None = None
    principal: str = OWNER_NAME
    #: Hashes of the artifacts that the caller must upload; only in WAITING_INPUTS.
    missing: tuple[str, ...] = ()
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    timing: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Any] | None = None
    #: Hashes of the artifacts that this row pins: the inputs until the job has finished, then the output.
    artifacts: tuple[str, ...] = ()
    #: The final state of a job that was stopped while it ran and has not ended yet, and the reason. None if it was not stopped.
    stopped_as: str | None = None
    stop_reason: str | None = None

    # The fields below are not stored.
    #: Whether only the key and the final status are known any more, and no result.
    forgotten: bool = field(default=False, repr=False, compare=False)
    #: Cancels the run between nodes.
    token: CancelToken = field(default_factory=CancelToken, repr=False, compare=False)
    #: The number of callers that wait now, and the time of the last contact (monotonic seconds).
    waiters: int = field(default=0, repr=False, compare=False)
    last_seen: float = field(default_factory=time.monotonic, repr=False, compare=False)
    #: When the job was created, in monotonic seconds, which durations are measured with.
    submitted: float = field(default_factory=time.monotonic, repr=False, compare=False)
    #: Whether the caller speaks protocol 1 and is silent while it uploads inputs.
    slow_uploads: bool = field(default=False, repr=False, compare=False)
    #: Bytes of the request's JSON.
    nbytes: int = field(default=0, repr=False, compare=False)

    @property
    def call_key(self) -> str:
        """The key as its principal sent it; ``key`` is that under which the job is stored."""
        return call_key(self.key)

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL

    @property
    def allowed_silence(self) -> float:
        """How many seconds the caller may be absent before the job is cancelled."""
        if self.status == WAITING_INPUTS and (self.detached or self.slow_uploads):
            return max(self.orphan_after, _UPLOAD_SECONDS)
        return float("inf") if self.detached else self.orphan_after

    @property
    def pin_owner(self) -> str:
        """The owner of the job's pins in the artifact store."""
        return f"job:{self.job_id}"

    def row(self) -> dict[str, Any]:
        """Return the job as JSON, without its output."""
        return {
            "job_id": self.job_id,
            "key": self.call_key,
            "graph_id": self.graph_id,
            "kind": self.kind,
            "status": self.status,
            "missing": list(self.missing),
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "attempts": self.attempts,
            "priority": self.priority,
            "deadline": self.deadline,
            "principal": self.principal,
            "timing": self.timing,
            "error": self.error,
            "detached": self.detached,
            "progress": self.progress,
        }


@dataclass(frozen=True)
class KeyRecord:
    """The end of a job whose row is not stored: it was deleted, or the key was cancelled before its call arrived (``body_hash`` is empty).

    ``recorded`` is in seconds since the epoch.
    """

    key: str
    job_id: str
    body_hash: str
    status: str
    recorded: float = field(default_factory=time.time)
    principal: str = OWNER_NAME

    def job(self) -> Job:
        """Return the job as far as it is known."""
        was_deleted = bool(self.body_hash)
        error = None if was_deleted else Cancelled("The call was cancelled before it arrived.").to_dict()
        return Job(
            self.job_id, self.key, "", "", self.body_hash, {}, status=self.status, created=self.recorded, finished=self.recorded, error=error,
            principal=self.principal, forgotten=was_deleted,
        )  # fmt: skip


@dataclass(frozen=True)
class Submission:
    """A call, or another request that becomes a job, as the caller sent it, except for its key, which is that of `private_key`.

    ``deadline`` is in seconds from now.
    """

    key: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    run: dict[str, Any]
    detached: bool = False
    orphan_after: float = 30.0
    timeout: float | None = None
    #: Approximate size of the request's JSON in bytes.
    nbytes: int = 0
    priority: int = 0
    deadline: float | None = None
    principal: str = OWNER_NAME
    #: Whether the caller speaks protocol 1: its request lasts until the deployment is built and the inputs are brought.
    blocking: bool = False
    #: The most unfinished jobs that its principal may have; None means unbounded.
    max_jobs: int | None = None
    #: The hash that the graph must have, or None.
    graph_hash: str | None = None

    @property
    def call_key(self) -> str:
        """The key as the caller sent it."""
        return call_key(self.key)


@dataclass(frozen=True)
class Event:
    """An event of a job. ``seq`` increases over all events of one endpoint, across restarts."""

    seq: int
    job_id: str
    kind: str
    data: dict[str, Any]

    @classmethod
    def stored(cls, seq: int, job_id: str, kind: str, text: str) -> Event:
        """Return a stored event, whose ``text`` is not encoded again."""
        event = cls(seq, job_id, kind, json.loads(text))
        vars(event)["text"] = text
        return event

    @cached_property
    def text(self) -> str:
        """The data as JSON, encoded once for the job file and all listeners."""
        return json.dumps(self.data, separators=(",", ":"))

    @cached_property
    def message(self) -> bytes:
        """The event as a server-sent event."""
        return f"id: {self.seq}\nevent: {self.kind}\ndata: {self.text}\n\n".encode()
