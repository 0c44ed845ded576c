"""What keeps jobs from ending: the calls that their runs wait for, and the run that they stand behind, if it changes something.

Callers are told by events of kind ``blocked``, so that somebody in a ring of calls can see it and make way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from yggdrasill.errors import RunError
from yggdrasill.server_ext.events import EventHub
from yggdrasill.server_ext.job import IN_QUEUE, Job
from yggdrasill.server_ext.tasks import Task

__all__ = ["Blockers"]

PATIENCE = 3.0
"""Seconds that a job must seem to wait for itself; somebody in the ring may yet make way."""


class Blockers:
    """For the event loop of ``hub``. ``tasks`` are those not finished; ``end(job, error)`` ends one that could never begin."""

    def __init__(self, hub: EventHub, tasks: Mapping[str, Task], end: Callable[[Job, Exception], None]) -> None:
        self._hub, self._tasks, self._end = hub, tasks, end
        self._held: dict[str, list[str]] = {}
        self._stuck: dict[str, float] = {}

    def waits(self, task: Task, keys: list[str]) -> None:
        """The run of ``task`` waits for these calls now, and so does whoever stands behind it."""
        self._tell(task.job, keys)
        key = task.exclusive_key
        if key is None:
            return
        self._held[key] = keys
        for other in [other for other in self._tasks.values() if other is not task and other.exclusive_key == key]:
            self.queued(other)
        if not keys:
            del self._held[key]

    def queued(self, task: Task) -> None:
        """``task`` is about to run; another with its key may have to end first."""
        keys = None if task.exclusive_key is None else self._held.get(task.exclusive_key)
        if keys is None or task.job.status != IN_QUEUE:
            return
        if task.job.key not in keys:
            self._stuck.pop(task.job.job_id, None)
        else:
            self._stuck.setdefault(task.job.job_id, time.monotonic())
        self._tell(task.job, keys)

    def look(self, now: float) -> None:
        """End what could never begin, because the run before it waits for it."""
        for job_id in [job_id for job_id, since in self._stuck.items() if now - since > PATIENCE]:
            del self._stuck[job_id]
            task = self._tasks.get(job_id)
            if task is not None and task.job.status == IN_QUEUE:
                self._end(task.job, _ring(task))

    def _tell(self, job: Job, keys: list[str]) -> None:
        self._hub.emit(job.job_id, "blocked", {"by": keys}, "blocked")


def _ring(task: Task) -> RunError:
    place = "/".join(task.job.request["run"]["path"]) or task.job.graph_id
    return RunError(
        f"{place}: graph {task.job.graph_id!r} keeps state, so it runs one call at a time, and the call that runs waits in a ring for this "
        "one; serve one that keeps no state, or let none of the graphs it calls call it again",
        node=place,
    )
