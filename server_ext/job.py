"""What one remote execution is: its states and its facts. Nothing here stores, runs or answers."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.executor.context import CancelToken
from yggdrasill.remote.calls import FINAL

__all__ = ["CANCELLED", "COMPLETED", "FAILED", "FINAL", "IN_PROGRESS", "IN_QUEUE", "STATES", "TIMED_OUT", "Event", "Job", "new_job_id"]

IN_QUEUE = "IN_QUEUE"
IN_PROGRESS = "IN_PROGRESS"
COMPLETED = "COMPLETED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"
TIMED_OUT = "TIMED_OUT"
STATES = (IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED, TIMED_OUT)


def new_job_id() -> str:
    """A name no other job has."""
    return uuid.uuid4().hex


@dataclass
class Job:
    """One call of a served graph. Times are seconds since the epoch; ``request`` and ``output`` are wire values in JSON form."""

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
    #: Artifacts that must stay while this row lives: of the inputs until it is finished, then of the output.
    artifacts: tuple[str, ...] = ()

    #: What stops the run between nodes, and which final state that leads to; not stored.
    token: CancelToken = field(default_factory=CancelToken, repr=False, compare=False)
    stopped_as: str = field(default=CANCELLED, repr=False, compare=False)
    #: How many callers wait right now and when the last one was heard of (monotonic seconds); not stored.
    present: int = field(default=0, repr=False, compare=False)
    last_seen: float = field(default_factory=time.monotonic, repr=False, compare=False)

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FINAL

    def row(self) -> dict[str, Any]:
        """What a caller may see of it, besides the output."""
        return {
            "job_id": self.job_id,
            "key": self.key,
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
class Event:
    """Something that happened to a job; ``seq`` grows by one endpoint's order of events, over restarts too."""

    seq: int
    job_id: str
    kind: str
    data: dict[str, Any]
