"""The states of a job and the legal transitions between them."""

from __future__ import annotations

__all__ = [
    "CANCELLED",
    "COMPLETED",
    "FAILED",
    "FINAL",
    "IN_PROGRESS",
    "IN_QUEUE",
    "STAGING",
    "STATES",
    "TIMED_OUT",
    "TRANSITIONS",
    "WAITING_INPUTS",
]

WAITING_INPUTS = "WAITING_INPUTS"
"""The caller must upload artifacts; the row lists them as ``missing``."""
STAGING = "STAGING"
"""The endpoint fetches inputs from other endpoints and builds the deployment."""
IN_QUEUE = "IN_QUEUE"
IN_PROGRESS = "IN_PROGRESS"
COMPLETED = "COMPLETED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"
TIMED_OUT = "TIMED_OUT"

#: Final states: a job in one of them never changes again.
FINAL = frozenset({COMPLETED, FAILED, CANCELLED, TIMED_OUT})
STATES = (WAITING_INPUTS, STAGING, IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED, TIMED_OUT)

_STOPPED = frozenset({FAILED, CANCELLED, TIMED_OUT})
#: The states that may follow each state. IN_PROGRESS returns to STAGING when a restarted endpoint takes the job up again.
TRANSITIONS: dict[str, frozenset[str]] = {
    WAITING_INPUTS: frozenset({STAGING}) | _STOPPED,
    STAGING: frozenset({WAITING_INPUTS, IN_QUEUE}) | _STOPPED,
    IN_QUEUE: frozenset({STAGING, IN_PROGRESS}) | _STOPPED,
    IN_PROGRESS: frozenset({STAGING, COMPLETED}) | _STOPPED,
    **dict.fromkeys(FINAL, frozenset()),
}
