"""The generated pages in ``docs/`` are what their generators write from the results stored beside them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from samples.conformance.page import render

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def test_the_performance_page_is_rendered_from_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    page = importlib.import_module("benchmarks.page")
    results = json.loads((DOCS / "performance.json").read_text(encoding="utf-8"))
    assert (DOCS / "performance.md").read_text(encoding="utf-8") == page.render(results)


def test_the_conformance_page_is_rendered_from_its_results() -> None:
    facts = json.loads((DOCS / "conformance.json").read_text(encoding="utf-8"))
    assert (DOCS / "conformance.md").read_text(encoding="utf-8") == render(facts)
