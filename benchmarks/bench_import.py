"""The import time of `from yggdrasill.foundation import Graph` in new processes, compared with bare Python."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.figures import Figure
from benchmarks.timing import interleave, median, seconds

__all__ = ["run"]

ROUNDS = 21
LIMIT_SECONDS = 0.15


def run() -> list[Figure]:
    """Return the seconds above a bare interpreter, as a share of the limit."""
    with tempfile.TemporaryDirectory() as bytecode:
        acts = {"with Graph": _python("from yggdrasill.foundation import Graph", bytecode), "bare Python": _python("pass", bytecode)}
        taken = interleave("import", acts, ROUNDS)
    over = [full - bare for full, bare in zip(taken["with Graph"], taken["bare Python"], strict=True)]
    parts = {name: seconds(median(times)) for name, times in taken.items()}
    return [
        Figure.of(
            "`from yggdrasill.foundation import Graph`, less bare Python",
            f"the limit of {seconds(LIMIT_SECONDS)}",
            [value / LIMIT_SECONDS for value in over],
            at_most=1.0,
            parts={**parts, "over": seconds(median(over))},
        )
    ]


def _python(code: str, bytecode: str) -> Callable[[], object]:
    """Run a process with compiled modules, as after a first start; the untimed round compiles them."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment)
