"""The benchmarks of `make bench`: one module ``bench_<name>.py`` per subject, each with a function ``run``."""

import sys
from pathlib import Path

__all__: list[str] = []

# The benchmarks use the samples of the tests.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
