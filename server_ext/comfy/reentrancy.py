"""Who waits for whom: when servers call each other in a ring or across, the executor that waits is lent to the job it waits for.

A Remote Graph node that waits for a job elsewhere keeps ComfyUI's only executor. If that job, by its own report, is blocked
by a job that stands in this very queue, both would wait for ever; then the waiting node runs the queued prompt itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from yggdrasill.errors import RunError
from yggdrasill.server_ext.comfy.prompt_run import PromptRun

__all__ = ["ReentrantScheduler", "Wait"]

STUCK_AFTER = 3.0
"""Seconds that a run must seem stuck; another place may yet be lent to what it waits for."""


@dataclass(eq=False)
class Wait:
    """A node that waits for the calls ``keys``: its own, and those that these say they are blocked by.

    ``nested`` is the lent run the node belongs to, if any. ``offer(run)`` asks the node to run a prompt while it waits.
    """

    offer: Callable[[PromptRun], None]
    nested: PromptRun | None = None
    keys: frozenset[str] = frozenset()
    running: PromptRun | None = field(default=None)


class ReentrantScheduler:
    """The waits of this process. ``withdraw`` takes a prompt out of ComfyUI's queue, and says whether it was there."""

    def __init__(self, withdraw: Callable[[str], bool]) -> None:
        self._withdraw = withdraw
        self._lock = threading.RLock()
        self._waits: list[Wait] = []
        self._runs: dict[str, PromptRun] = {}

    # -- runs ---------------------------------------------------------------------------------------------------

    def add_run(self, run: PromptRun) -> None:
        """A prompt of ours stands in the queue."""
        with self._lock:
            self._runs[run.prompt_id] = run
            self._report()
            self._look()

    def remove_run(self, run: PromptRun) -> None:
        """It is over."""
        with self._lock:
            self._runs.pop(run.prompt_id, None)

    def look_after(self, run: PromptRun, now: float) -> None:
        """End a queued run that a lent one has waited for all the time: the ring goes around twice, and no third place is lent."""
        with self._lock:
            stuck = run.state == "queued" and any(wait.nested is not None and run.key in wait.keys for wait in self._waits)
            if not stuck:
                run.stuck_since = None
            elif run.stuck_since is None:
                run.stuck_since = now
            elif now - run.stuck_since > STUCK_AFTER:
                self._refuse(run)

    # -- waits --------------------------------------------------------------------------------------------------

    def begin(self, wait: Wait) -> None:
        """A node begins to wait."""
        with self._lock:
            self._waits.append(wait)

    def learn(self, wait: Wait, keys: Iterable[str]) -> None:
        """What a node waits for has changed."""
        with self._lock:
            if wait in self._waits:
                wait.keys = frozenset(keys)
                self._report()
                self._look()

    def gave_back(self, wait: Wait) -> None:
        """What a node ran while it waited is over."""
        with self._lock:
            wait.running = None
            self._look()

    def end(self, wait: Wait) -> None:
        """A node waits no longer."""
        with self._lock:
            if wait in self._waits:
                self._waits.remove(wait)
                self._report()

    # -- inside -------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Whoever waits for a run waits for what this ComfyUI's only executor waits for, or for what a lent run itself waits for."""
        for run in self._runs.values():
            if run.report_waits is not None:
                waits = [wait for wait in self._waits if run.state != "nested" or wait.nested is run]
                run.report_waits(frozenset[str]().union(*(wait.keys for wait in waits)))

    def _look(self) -> None:
        """Lend to whom a waited-for job is blocked by, one at a time, and never out of what is lent itself."""
        for wait in self._waits:
            for run in [run for run in self._runs.values() if run.state == "queued" and run.key in wait.keys]:
                if wait.nested is None and not any(other.running for other in self._waits) and self._take(run, "nested"):
                    wait.running = run.reentrant_root = run
                    self._report()
                    wait.offer(run)

    def _take(self, run: PromptRun, state: str) -> bool:
        """Take a run out of the queue; it says so before it is gone, or it would be taken for lost."""
        run.state = state
        taken = self._withdraw(run.prompt_id)
        if not taken:
            run.state = "queued"
        return taken

    def _refuse(self, run: PromptRun) -> None:
        if self._take(run, "refused"):
            run.refuse(
                RunError(
                    f"{run.node_path}: these servers call each other in a ring that goes around more than once, so none could ever go on; "
                    "let one of the graphs call less"
                )
            )
