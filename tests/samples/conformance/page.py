"""The page of the conformance suite. The results of each run are stored as JSON, so that runs add to the page."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from samples.conformance.placing_report import placing_lines
from samples.conformance.report import workflow_lines
from samples.conformance.template_report import template_lines

__all__ = ["SECTIONS", "write_page"]

Lines = Callable[[str, Mapping[str, Any]], Iterable[str]]

#: The sections in their order, and what makes text of the facts of one.
SECTIONS: dict[str, Lines] = {"workflows": workflow_lines, "placing": placing_lines, "templates": template_lines}


def write_page(path: Path, found: Mapping[str, Mapping[str, Any]], date: datetime.date) -> None:
    """Write the page with new results for the sections in ``found``; the other sections are unchanged."""
    kept = path.with_suffix(".json")
    facts = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    facts |= {name: {"date": date.isoformat(), "facts": value} for name, value in found.items()}
    facts = {name: facts[name] for name in SECTIONS if name in facts}
    kept.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.write_text("\n".join(_lines(facts)) + "\n", encoding="utf-8")


def _lines(facts: Mapping[str, Any]) -> Iterable[str]:
    yield "# Conformance: remote equals local, bit for bit"
    yield ""
    yield "`make conformance` wrote this page. It starts real ComfyUI servers, and runs what follows on them."
    for name, section in facts.items():
        yield ""
        yield from SECTIONS[name](section["date"], section["facts"])
