"""The list of benchmarks, and the conversion of their results to figures."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.timing import in_rounds, median, seconds

__all__ = ["TITLES", "check_name", "measure", "names"]

#: The heading of each benchmark on the page.
TITLES = {
    "executor": "Executor",
    "import": "Import",
    "codec": "Codec: a 96 MiB float32 tensor",
    "artifacts": "Artifact stores: a 96 MiB float32 tensor",
    "transfers": "Transfers of artifacts",
    "saving": "Saving and loading 1 GiB of weights",
    "versions": "Version specs: fetching and verifying models",
    "partition": "Partitioning a prompt",
    "endpoint": "Jobs of an endpoint under load",
    "gateway": "The gateway under load",
    "worker": "A serverless worker",
    "remote": "Remote calls on loopback",
    "comfy": "Remote Graph between ComfyUI servers on loopback",
    "unplaced": "A server with the extension where nothing is placed",
    "page": "The editor's page with the extension",
}
#: A benchmark that gives ``{"seconds": {act: s}, "ratios": {case: r}}`` names the two acts of a case in ``CASES``. It runs
#: this many times, for a spread; its targets are found by the first word of a case.
REPEATS = 5
TARGETS: dict[str, dict[str, float]] = {"codec": {"encode": 2.0, "decode": 2.0}}
BASES = {
    "bytes": "a copy into bytes",
    "clone": "a copy, tensor.clone()",
    "copy": "a copy, tensor.clone()",
    "file write": "writing the bytes to a plain file",
    "file read": "reading a plain file",
}


def names() -> list[str]:
    """Return the benchmarks in the order of the page: those in `TITLES` first, then the others."""
    found = {path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")}
    return [name for name in TITLES if name in found] + sorted(found - set(TITLES))


def check_name(text: str) -> str:
    """Return ``text`` if it names a benchmark, or ``name:part`` a part of one that has `PARTS`; raise ValueError otherwise."""
    name, _, part = text.partition(":")
    parts = getattr(importlib.import_module(f"benchmarks.bench_{name}"), "PARTS", {}) if part and name in names() else {}
    if name not in names() or (part and part not in parts):
        raise ValueError(text)
    return text


def measure(text: str) -> list[Figure]:
    """Run one benchmark, or one part of it, and return its figures; see `check_name`.

    Raises:
        The errors of the benchmark: a wrong answer is not a figure.
    """
    name, _, part = text.partition(":")
    module = importlib.import_module(f"benchmarks.bench_{name}")
    if part:
        return list(module.run(part))
    result: Sequence[Figure] | Mapping[str, Any] = module.run()
    if not isinstance(result, Mapping):
        return list(result)
    runs = [result, *(module.run() for _ in in_rounds(REPEATS - 1, name))]
    return [_of_case(name, case, acts, runs) for case, acts in module.CASES.items()]


def _of_case(name: str, case: str, acts: tuple[str, str], runs: Sequence[Mapping[str, Any]]) -> Figure:
    ours, base = acts
    word = case.partition(",")[0].split()[0]
    parts = {side: seconds(median([run["seconds"][act] for run in runs])) for side, act in (("ours", ours), ("beside", base))}
    ratios = [run["ratios"][case] for run in runs]
    return Figure.of(case, BASES[base], ratios, at_most=TARGETS.get(name, {}).get(word), parts=parts)
