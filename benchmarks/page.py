"""Where the results are kept (`docs/performance.json`) and the page written from them (`docs/performance.md`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.suite import TITLES

__all__ = ["PAGE", "RESULTS", "Results", "merge", "render", "table", "write_page"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS = DOCS / "performance.json"
PAGE = DOCS / "performance.md"

#: ``{benchmark: {"machine": facts, "figures": [figure, ...]}}``
Results = dict[str, dict[str, Any]]

HOW_TO_READ = """\
Written by `make bench`; the numbers behind it are in [performance.json](performance.json).

Every line compares two things measured in the same run, in turn, round by round, so that a slow moment of the machine meets both.
*Ratio* is the median over the rounds of our measure divided by the one named under *beside*, or the other way round where the line says
what is being compared; where the target is an amount, the ratio is the share of it that was used. *Middle half* is the range from the
first to the third quartile of the rounds: a wide one means a restless machine. *Behind it* holds the medians of both sides. Absolute times
hold for this machine alone; ratios travel better, but not perfectly.
"""


def merge(name: str, machine: Mapping[str, str], figures: Sequence[Figure], path: Path = RESULTS) -> Results:
    """Put one benchmark's figures in the place of its earlier ones; the other benchmarks keep theirs."""
    results: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[name] = {"machine": dict(machine), "figures": [figure.to_dict() for figure in figures]}
    _write(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def write_page(results: Results, path: Path = PAGE) -> None:
    """Write the page."""
    _write(path, render(results))


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8", newline="\n")
    fresh.replace(path)


def render(results: Results) -> str:
    """The page as Markdown: how to read it, what was not met, the machine, one table per benchmark."""
    ordered = [name for name in TITLES if name in results] + sorted(set(results) - set(TITLES))
    figures = {name: [Figure.from_dict(data) for data in results[name]["figures"]] for name in ordered}
    lines = ["# Performance", "", HOW_TO_READ, "## Targets", "", *_targets(figures), "", "## Machine", ""]
    for names, facts in _machines(results, ordered):
        lines += [f"{names}: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".", ""]
    for name in ordered:
        lines += [f"## {TITLES.get(name, name)}", "", *_markdown(figures[name]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _targets(figures: Mapping[str, Sequence[Figure]]) -> list[str]:
    aimed = [(name, figure) for name, group in figures.items() for figure in group if figure.target != "-"]
    met = sum(figure.verdict == "met" for _, figure in aimed)
    lines = [f"{met} of {len(aimed)} targets are met."]
    for word, heading in (("NOT MET", "Not met:"), ("NOT MEASURED", "Not measured:")):
        missed = [(name, figure) for name, figure in aimed if figure.verdict == word]
        if missed:
            lines += ["", heading, ""]
            lines += [f"- {TITLES.get(name, name)}: {figure.what}: {_miss(figure)}" for name, figure in missed]
    return lines


def _miss(figure: Figure) -> str:
    if figure.ratio is None:
        return figure.note
    return f"{number(figure.ratio)} beside {figure.beside}; the target is {figure.target}"


def _machines(results: Results, ordered: Sequence[str]) -> list[tuple[str, Mapping[str, str]]]:
    groups: list[tuple[list[str], Mapping[str, str]]] = []
    for name in ordered:
        facts = results[name]["machine"]
        known = next((group for group in groups if group[1] == facts), None)
        if known is None:
            groups.append(([TITLES.get(name, name)], facts))
        else:
            known[0].append(TITLES.get(name, name))
    return [("All figures" if len(groups) == 1 else "; ".join(names), facts) for names, facts in groups]


def _markdown(figures: Sequence[Figure]) -> list[str]:
    head = ["| what | ratio | middle half | beside | target | | behind it |", "|---|---:|---|---|---|---|---|"]
    rows = []
    for figure in figures:
        verdict = figure.verdict if figure.verdict in ("met", "-") else f"**{figure.verdict.lower()}**"
        behind = "; ".join(filter(None, [", ".join(f"{name} {value}" for name, value in figure.parts.items()), figure.note]))
        cells = [figure.what, number(figure.ratio), spread(figure), figure.beside, figure.target, verdict, behind]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*head, *rows]


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned text."""
    head = ("what", "ratio", "middle half", "beside", "target", "")
    rows = [(f.what, number(f.ratio), spread(f), f.beside, f.target, f.verdict) for f in figures]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    notes = [f"  {figure.what}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes])


def number(value: float | None) -> str:
    """Three digits, no exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(figure: Figure) -> str:
    """The middle half."""
    return "-" if figure.low is None or figure.high is None else f"{number(figure.low)} to {number(figure.high)}"
