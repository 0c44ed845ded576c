"""The wait-for graph of an endpoint's jobs: the calls that each run waits for, and the exclusive run that a queued job waits for.

Callers receive it as events of kind ``blocked``, so that an endpoint in a cycle of calls can detect the deadlock and resolve it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from yggdrasill.errors import RunError
from yggdrasill.protocol.states import IN_QUEUE
from yggdrasill.server_ext.events import EventHub
from yggdrasill.server_ext.job import Job
from yggdrasill.server_ext.tasks import Task

__all__ = ["WaitForGraph"]

DEADLOCK_SECONDS = 3.0
"""How long a job must wait for itself before it fails. Another endpoint in the cycle may resolve the deadlock first."""


class WaitForGraph:
    """Tracks which unfinished ``tasks`` wait for which calls. ``end(job, error)`` fails a deadlocked job.

    Not thread-safe: all calls happen on the event loop of ``hub``.
    """

    def __init__(self, hub: EventHub, tasks: Mapping[str, Task], end: Callable[[Job, Exception], None]) -> None:
        self._hub, self._tasks, self._end = hub, tasks, end
        self._waits_of_key: dict[str, list[str]] = {}
        self._deadlocked_since: dict[str, float] = {}

    def set_waits(self, task: Task, keys: list[str]) -> None:
        """Record the keys of the calls that the run of ``task`` waits for. Tasks queued behind it wait for the same calls."""
        self._emit_blocked(task.job, keys)
        key = task.exclusive_key
        if key is None:
            return
        self._waits_of_key[key] = keys
        for other in [other for other in self._tasks.values() if other is not task and other.exclusive_key == key]:
            self.add_queued(other)
        if not keys:
            del self._waits_of_key[key]

    def add_queued(self, task: Task) -> None:
        """Record a queued task. It waits for a running task with the same exclusive key."""
        keys = None if task.exclusive_key is None else self._waits_of_key.get(task.exclusive_key)
        if keys is None or task.job.status != IN_QUEUE:
            return
        if task.job.call_key not in keys:
            self._deadlocked_since.pop(task.job.job_id, None)
        else:
            self._deadlocked_since.setdefault(task.job.job_id, time.monotonic())
        self._emit_blocked(task.job, keys)

    def fail_deadlocked(self, now: float) -> None:
        """Fail queued jobs that the running job with the same exclusive key waits for."""
        for job_id in [job_id for job_id, since in self._deadlocked_since.items() if now - since > DEADLOCK_SECONDS]:
            del self._deadlocked_since[job_id]
            task = self._tasks.get(job_id)
            if task is not None and task.job.status == IN_QUEUE:
                self._end(task.job, _deadlock_error(task))

    def _emit_blocked(self, job: Job, keys: list[str]) -> None:
        self._hub.emit(job.job_id, "blocked", {"by": keys}, "blocked")


def _deadlock_error(task: Task) -> RunError:
    path = "/".join(task.job.request["run"]["path"]) or task.job.graph_id
    return RunError(
        f"{path}: deadlock: graph {task.job.graph_id!r} keeps state, so it runs one call at a time, and the running call waits for this one. "
        "Deploy a graph without state, or change the graphs that it calls so that none of them calls it again.",
        node=path,
    )
