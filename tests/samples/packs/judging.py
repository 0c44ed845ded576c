"""The outcome of a placement: its run compared with local runs of the same prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from samples.packs.lab import Run

__all__ = ["BAD", "Judge", "Outcome", "Runner", "reason_of"]

EQUAL, SAME_ERROR, REFUSED = "equal", "same error", "refused"
DIFFERENT, LATE, HANG = "different", "late", "hang"
#: Results that change from run to run on one server, or a local run that does not end.
UNSTEADY, ENDLESS = "not deterministic", "endless locally"
#: The outcomes that fail the suite.
BAD = (DIFFERENT, LATE, HANG)

_MAX_LOCAL_RUNS = 3
_MAX_TRIES = 6
_UNREACHABLE = "yggdrasill_EndpointUnreachable"
_SHOWN = 600


@dataclass(frozen=True)
class Outcome:
    """What happened to a placement. ``remote`` says whether an endpoint computed anything, ``reason`` explains all but equality."""

    kind: str
    reason: str = ""
    remote: bool = False


class Runner(Protocol):
    """Servers that run a prompt, as `PacksLab` does."""

    def run(
        self, prompt: Mapping[str, Any], extra: Mapping[str, Any], *, seconds: float, peers: Sequence[str] = (), fresh: bool = True
    ) -> Run: ...


@dataclass
class Judge:
    """Runs one prompt locally and with placements. Local runs are repeated only to explain a difference.

    ``fresh`` is False for prompts whose placed nodes are in no cache; a bad outcome then counts only if it is one with empty caches too.
    """

    lab: Runner
    prompt: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 30.0
    fresh: bool = True
    local_runs: list[Run] = field(default_factory=list)

    @property
    def local(self) -> Run:
        """The first local run."""
        return self.local_runs[0] if self.local_runs else self._again()

    def _again(self) -> Run:
        self.local_runs.append(self.lab.run(self.prompt, self.extra, seconds=self.seconds, fresh=self.fresh))
        return self.local_runs[-1]

    def place(self, graphs: Mapping[str, Any], peers: tuple[str, ...]) -> Outcome:
        """Run the prompt with ``graphs`` as the request's placements, and compare."""
        local = self.local
        if not local.ended:
            return Outcome(ENDLESS)
        run = self._placed(graphs, peers, 20 + 5 * local.seconds)
        outcome = self._compare(run)
        if outcome.kind in (DIFFERENT, LATE) and not self.fresh:
            return Judge(self.lab, self.prompt, self.extra, self.seconds).place(graphs, peers)
        while outcome.kind in (DIFFERENT, LATE) and len(self.local_runs) < _MAX_LOCAL_RUNS:
            if not self._again().ended:
                return Outcome(UNSTEADY)
            outcome = self._compare(run)
        return outcome

    def _placed(self, graphs: Mapping[str, Any], peers: tuple[str, ...], seconds: float) -> Run:
        """Run the prompt with placements, again if a peer did not answer in time: all peers are up, so the machine is busy.

        Raises:
            TimeoutError: no peer answered in any of the tries.
        """
        extra = {**self.extra, "yggdrasill": {"graphs": dict(graphs)}}
        for _ in range(_MAX_TRIES):
            run = self.lab.run(self.prompt, extra, seconds=seconds, peers=peers, fresh=self.fresh)
            if not any(kind == _UNREACHABLE for _, kind, _ in run.refused):
                return run
        raise TimeoutError(f"{' and '.join(peers)} did not answer in {_MAX_TRIES} tries: {run.refused}")

    def _compare(self, run: Run) -> Outcome:
        local = self.local
        if not run.ended:
            return Outcome(HANG, f"no end after {run.seconds:.0f} s; {local.seconds:.1f} s locally", run.remote)
        ours = [error for error in run.refused if error not in local.refused]
        if ours and not run.results and run.error is None:
            return Outcome(REFUSED, reason_of(ours[0]))
        if any(other.failure != local.failure for other in self.local_runs):
            return Outcome(UNSTEADY)
        if run.error != local.error:
            return _unlike(local.error, run)
        if ours:
            return Outcome(REFUSED, reason_of(ours[0]))
        if local.error is not None:
            # which of the other nodes ran before the failing one is not defined
            return Outcome(SAME_ERROR, remote=run.remote)
        return self._compare_results(run)

    def _compare_results(self, run: Run) -> Outcome:
        local = self.local
        keys = [key for key in local.results if all(other.results.get(key) == local.results[key] for other in self.local_runs)]
        known = {key for other in self.local_runs for key in other.results}
        for key in keys:
            if run.results.get(key) != local.results[key]:
                return Outcome(DIFFERENT, f"{key}: locally {_short(local.results[key])}, placed {_short(run.results.get(key))}", run.remote)
        extra = sorted(run.results.keys() - known)
        if extra and len(keys) == len(local.results):
            return Outcome(DIFFERENT, f"{extra[0]} only when placed: {_short(run.results[extra[0]])}", run.remote)
        if local.refused:
            return Outcome(SAME_ERROR, remote=run.remote)
        if not keys and local.results:
            return Outcome(UNSTEADY, remote=run.remote)
        return Outcome(EQUAL, remote=run.remote)


def _unlike(local: tuple[str, str, str] | None, run: Run) -> Outcome:
    if run.error is None:
        return Outcome(DIFFERENT, f"locally an error: {_error(local)}; none when placed", run.remote)
    before = f"; locally {_error(local)}" if local else ""
    return Outcome(LATE, f"{_error(run.error)}{before}", run.remote)


def _error(error: tuple[str, str, str] | None) -> str:
    return "" if error is None else f"node {error[0]}: {error[1]}: {error[2][:_SHOWN]}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < _SHOWN else f"{text[:_SHOWN]}..."


def reason_of(error: tuple[str, str, str]) -> str:
    """Return an error before the run as one line: its type and message."""
    _, kind, message = error
    return f"{kind}: {message}"
