"""Deadlock avoidance between servers that call each other: the wait-for graph of this ComfyUI, and re-entrant runs.

A node that waits for a job at another endpoint keeps ComfyUI's only executor. If that job reports that it is blocked by a prompt in this
ComfyUI's own queue, neither can finish. The waiting node then runs the queued prompt nested, inside itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from yggdrasill.errors import RunError
from yggdrasill.server_ext.comfy.prompt_run import PromptRun

__all__ = ["ReentrantScheduler", "Wait"]

STUCK_AFTER = 3.0
"""Seconds for which a run must wait without a chance to start before it fails; until then another node may still become free for it."""


@dataclass(eq=False)
class Wait:
    """A node that waits for the calls with the job keys ``keys``: its own calls, and those that they report to be blocked by.

    ``enclosing`` is the re-entrant run that the node belongs to, if any. ``offer(run)`` makes the node run a prompt nested.
    """

    offer: Callable[[PromptRun], None]
    enclosing: PromptRun | None = None
    keys: frozenset[str] = frozenset()
    running: PromptRun | None = field(default=None)


class ReentrantScheduler:
    """The waits of this process. ``withdraw(prompt_id)`` removes a prompt from ComfyUI's queue and returns whether it was queued."""

    def __init__(self, withdraw: Callable[[str], bool]) -> None:
        self._withdraw = withdraw
        self._lock = threading.RLock()
        self._waits: list[Wait] = []
        self._runs: dict[str, PromptRun] = {}

    # -- runs ---------------------------------------------------------------------------------------------------

    def add_run(self, run: PromptRun) -> None:
        """Register a run whose prompt is in the queue."""
        with self._lock:
            self._runs[run.prompt_id] = run
            self._report_waits()
            self._schedule()

    def remove_run(self, run: PromptRun) -> None:
        """Remove a run that has ended."""
        with self._lock:
            self._runs.pop(run.prompt_id, None)

    def check_stuck(self, run: PromptRun, now: float) -> None:
        """Fail a queued run that a nested run has waited for longer than `STUCK_AFTER`.

        The call cycle then passes this server twice, and nesting is one level deep.
        """
        with self._lock:
            stuck = run.state == "queued" and any(wait.enclosing is not None and run.key in wait.keys for wait in self._waits)
            if not stuck:
                run.stuck_since = None
            elif run.stuck_since is None:
                run.stuck_since = now
            elif now - run.stuck_since > STUCK_AFTER:
                self._fail_cycle(run)

    # -- waits --------------------------------------------------------------------------------------------------

    def begin(self, wait: Wait) -> None:
        """Register a node that starts to wait."""
        with self._lock:
            self._waits.append(wait)

    def update(self, wait: Wait, keys: Iterable[str]) -> None:
        """Set the job keys that a node waits for."""
        with self._lock:
            if wait in self._waits:
                wait.keys = frozenset(keys)
                self._report_waits()
                self._schedule()

    def nested_run_ended(self, wait: Wait) -> None:
        """Record that the nested run of a waiting node has ended."""
        with self._lock:
            wait.running = None
            self._schedule()

    def end(self, wait: Wait) -> None:
        """Remove a node that no longer waits."""
        with self._lock:
            if wait in self._waits:
                self._waits.remove(wait)
                self._report_waits()

    # -- scheduling ---------------------------------------------------------------------------------------------

    def _report_waits(self) -> None:
        """Report to each run what it waits for: the waits of ComfyUI's only executor, or those of its own nodes if it runs nested."""
        for run in self._runs.values():
            if run.report_waits is not None:
                waits = [wait for wait in self._waits if run.state != "nested" or wait.enclosing is run]
                run.report_waits(frozenset[str]().union(*(wait.keys for wait in waits)))

    def _schedule(self) -> None:
        """If a waiting node waits for a run in this ComfyUI's own queue, let that run execute inside the waiting node.

        Only one at a time; a node of a run that is nested itself never runs another one.
        """
        for wait in self._waits:
            for run in [run for run in self._runs.values() if run.state == "queued" and run.key in wait.keys]:
                if wait.enclosing is None and not any(other.running for other in self._waits) and self._take(run, "nested"):
                    wait.running = run.reentrant_root = run
                    self._report_waits()
                    wait.offer(run)

    def _take(self, run: PromptRun, state: str) -> bool:
        """Remove a run from the queue. Its state changes first, because a run that vanishes in state ``queued`` counts as lost."""
        run.state = state
        taken = self._withdraw(run.prompt_id)
        if not taken:
            run.state = "queued"
        return taken

    def _fail_cycle(self, run: PromptRun) -> None:
        if self._take(run, "refused"):
            run.refuse(
                RunError(
                    f"{run.node_path}: these servers call each other in a cycle that passes this server more than once, so none of them could continue. "
                    "Remove one of the calls from the graphs."
                )
            )
