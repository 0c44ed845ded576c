"""``python -m benchmarks [NAME[:PART] ...] [--quick]``: measure, print one table, write `docs/performance.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks import machine
from benchmarks.figures import Figure
from benchmarks.page import PAGE, merge, table, write_page
from benchmarks.suite import check_name, measure, names
from benchmarks.timing import PACE

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, or all; return 0 once all of them ran, whether or not they meet their targets."""
    known = names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and write docs/performance.md.")
    what = f"one or more of: {', '.join(known)} (default: all); NAME:PART, as in comfy:images, measures a part and writes nothing"
    parser.add_argument("name", nargs="*", type=check_name, metavar="NAME", help=what)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; prints the table and writes nothing")
    options = parser.parse_args(arguments)
    PACE.quick = options.quick
    figures: list[Figure] = []
    bar = tqdm(options.name or known, unit="benchmark", file=sys.stderr)
    for name in bar:
        bar.set_description(name)
        taken = measure(name)
        figures += taken
        if not options.quick and ":" not in name:
            write_page(merge(name, machine.facts(), taken))
    print(table(figures))
    missed = [figure for figure in figures if figure.verdict in ("NOT MET", "NOT MEASURED")]
    print(f"\n{len(missed)} of {sum(figure.target != '-' for figure in figures)} targets not met or not measured.")
    if not options.quick and not all(":" in name for name in options.name or known):
        print(f"Written to {PAGE.relative_to(PAGE.parent.parent)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
