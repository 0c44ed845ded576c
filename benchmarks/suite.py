"""Which benchmarks there are, and how the result of each becomes figures."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import in_rounds

__all__ = ["TITLES", "measure", "names"]

#: What each benchmark is about, as the page says it.
TITLES = {
    "executor": "Executor",
    "import": "Import",
    "codec": "Codec: a 96 MiB float32 tensor",
    "artifacts": "Artifact store",
    "remote": "Remote calls on loopback",
}
#: A benchmark that gives ``{"ratios": {case: number}}`` is run this often, for a spread; then the targets by first word of a case.
REPEATS = 5
TARGETS: dict[str, dict[str, float]] = {"codec": {"encode": 2.0, "decode": 2.0}}
BESIDE = {"codec": {"encode": "a copy into bytes", "decode": "tensor.clone()", "write": "a copy into bytes"}}


def names() -> list[str]:
    """The benchmarks in the order of the page: the known ones first, any other after them."""
    found = {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")}
    return [name for name in TITLES if name in found] + sorted(found - set(TITLES))


def measure(name: str) -> list[Figure]:
    """Run one benchmark.

    Raises:
        Whatever the benchmark raises: a wrong answer is not a figure.
    """
    act = importlib.import_module(f"benchmarks.bench_{name}").run
    result: Sequence[Figure] | Mapping[str, Any] = act()
    if not isinstance(result, Mapping):
        return list(result)
    runs = [result, *(act() for _ in in_rounds(REPEATS - 1, name))]
    return [_of_case(name, case, [run["ratios"][case] for run in runs]) for case in result["ratios"]]


def _of_case(name: str, case: str, ratios: Sequence[float]) -> Figure:
    word = case.partition(",")[0].split()[0]
    return Figure.of(case, BESIDE.get(name, {}).get(word, "the act beside it"), ratios, at_most=TARGETS.get(name, {}).get(word))
