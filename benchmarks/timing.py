"""Timing of alternating acts, so that a slow moment of the machine affects all of them."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

__all__ = ["PACE", "Act", "in_rounds", "interleave", "median", "ratios", "seconds"]

Act = Callable[[], Any]


@dataclass
class _Pace:
    """The thoroughness of a run."""

    quick: bool = False


#: Set once by the command line, before anything is measured.
PACE = _Pace()


def in_rounds(count: int, what: str) -> Iterator[int]:
    """Return the numbers of the rounds with a progress bar; a fifth of them, at least three, in a quick run."""
    rounds = max(3, count // 5) if PACE.quick else count
    return iter(tqdm(range(rounds), desc=what, leave=False, delay=1, file=sys.stderr))


def interleave(
    what: str,
    acts: Mapping[str, Act],
    rounds: int,
    repeats: Mapping[str, int] | None = None,
    *,
    collect: bool = True,
    before: Act | None = None,
) -> dict[str, list[float]]:
    """Return the seconds per call of every act, one number per round.

    Every round calls each act in order, ``repeats[name]`` times (default 1), after one untimed round. The garbage collector is
    disabled while an act is timed, as in `timeit`, and runs before it. With ``collect`` off it does not run before the act, because
    its walk over all objects would leave cold caches to a single short call. ``before`` is called, untimed, before every act.
    """
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for act in acts.values():
        act()
    for _ in in_rounds(rounds, what):
        for name, act in acts.items():
            times = (repeats or {}).get(name, 1)
            if before is not None:
                before()
            if collect:
                gc.collect()
            gc.disable()
            begin = time.perf_counter()
            for _ in range(times):
                act()
            taken[name].append((time.perf_counter() - begin) / times)
            gc.enable()
    return taken


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return one ratio per round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def seconds(value: float) -> str:
    """Return a duration with three digits and a unit: ns, µs, ms or s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if abs(value) >= size or unit == "ns":
            return f"{value / size:.3g} {unit}" if abs(value / size) < 1000 else f"{value / size:.0f} {unit}"
    raise AssertionError
