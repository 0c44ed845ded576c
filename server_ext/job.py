"""The job: one remote execution, its states and its events. A plain data model."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken
from yggdrasill.protocol.states import CANCELLED, FINAL, IN_QUEUE
from yggdrasill.server_ext.principals import call_key, principal_of_key

__all__ = [
    "Event",
    "Job",
    "KeyRecord",
    "new_job_id",
]


def new_job_id() -> str:
    """Return a unique job id."""
    return uuid.uuid4().hex


@dataclass
class Job:
    """One call of a deployment. Times are seconds since the epoch; ``request`` and ``output`` are in wire form (JSON)."""

    job_id: str
    key: str
    graph_id: str
    graph_hash: str
    body_hash: str
    request: dict[str, Any]
    status: str = IN_QUEUE
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    detached: bool = False
    orphan_after: float = 30.0
    timeout: float | None = None
    attempts: int = 0
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    timing: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Any] | None = None
    #: Hashes of the artifacts that this row pins: the inputs until the job has finished, then the output.
    artifacts: tuple[str, ...] = ()

    #: Whether only the key and the final status are known any more, and no result. Not stored.
    forgotten: bool = field(default=False, repr=False, compare=False)
    #: Cancels the run between nodes, and the final state that this leads to. Not stored.
    token: CancelToken = field(default_factory=CancelToken, repr=False, compare=False)
    stopped_as: str = field(default=CANCELLED, repr=False, compare=False)
    #: The number of callers that wait now, and the time of the last contact (monotonic seconds). Not stored.
    waiters: int = field(default=0, repr=False, compare=False)
    last_seen: float = field(default_factory=time.monotonic, repr=False, compare=False)
    #: When the job was created, in monotonic seconds, which durations are measured with. Not stored.
    submitted: float = field(default_factory=time.monotonic, repr=False, compare=False)

    @property
    def principal(self) -> str:
        """The name of the principal that submitted the job."""
        return principal_of_key(self.key)

    @property
    def call_key(self) -> str:
        """The key as its principal sent it; ``key`` is that under which the job is stored."""
        return call_key(self.key)

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL

    def row(self) -> dict[str, Any]:
        """Return the job as JSON, without its output."""
        return {
            "job_id": self.job_id,
            "key": self.call_key,
            "principal": self.principal,
            "graph_id": self.graph_id,
            "status": self.status,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
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

    def job(self) -> Job:
        """Return the job as far as it is known."""
        was_deleted = bool(self.body_hash)
        error = None if was_deleted else Cancelled("The call was cancelled before it arrived.").to_dict()
        return Job(
            self.job_id, self.key, "", "", self.body_hash, {}, status=self.status, created=self.recorded, finished=self.recorded, error=error,
            forgotten=was_deleted,
        )  # fmt: skip


@dataclass(frozen=True)
class Event:
    """An event of a job. ``seq`` increases over all events of one endpoint, across restarts."""

    seq: int
    job_id: str
    kind: str
    data: dict[str, Any]

    @cached_property
    def text(self) -> str:
        """The data as JSON, encoded once for the job file and all listeners."""
        return json.dumps(self.data, separators=(",", ":"))

    @cached_property
    def message(self) -> bytes:
        """The event as a server-sent event."""
        return f"id: {self.seq}\nevent: {self.kind}\ndata: {self.text}\n\n".encode()
