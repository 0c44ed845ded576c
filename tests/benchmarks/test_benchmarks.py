"""`make bench`: figures, their verdicts, and the page with the results of earlier runs."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_a_figure_is_judged_by_its_median(bench: Any) -> None:
    figure = bench("figures").Figure
    verdicts = [figure.of("a", "b", [1.0, 2.0, 9.0], at_most=limit).verdict for limit in (2.0, 1.9)]
    verdicts += [figure.of("a", "b", [1.0, 2.0, 9.0], at_least=limit).verdict for limit in (2.0, 2.1)]
    assert verdicts == ["met", "NOT MET", "met", "NOT MET"]
    assert figure.of("a", "b", [1.0]).verdict == "-"
    assert figure.missing("a", "b", "no such peer", at_least=10.0).verdict == "NOT MEASURED"


def test_a_partial_run_replaces_its_own_figures_and_keeps_the_others(bench: Any, tmp_path: Path) -> None:
    page, figure = bench("page"), bench("figures").Figure
    results, machine = tmp_path / "performance.json", {"Python": "3.11", "torch": "2.13"}
    page.merge("codec", machine, [figure.of("encode", "a copy", [1.5], at_most=2.0)], results)
    page.merge("import", machine, [figure.of("importing", "the limit", [0.5], at_most=1.0)], results)
    merged = page.merge("import", machine, [figure.of("importing", "the limit", [1.7], at_most=1.0)], results)
    page.write_page(merged, tmp_path / "performance.md")
    text = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "1 of 2 targets are met." in text
    assert "- Import: importing: 1.7 relative to the limit; the target is at most 1" in text
    assert "| encode | 1.5 | 1.5 to 1.5 | a copy | at most 2 | met |" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["performance.json", "performance.md"]


def test_a_peer_that_is_not_installed_is_named_on_the_page(bench: Any) -> None:
    missing = bench("figures").Figure.missing("a chain: a node of Rival", "our executor", "Rival is NOT INSTALLED", at_least=10.0)
    text = bench("page").render({"executor": {"machine": {}, "figures": [missing.to_dict()]}})
    assert "0 of 1 targets are met." in text
    assert "- Executor: a chain: a node of Rival: Rival is NOT INSTALLED" in text


def test_our_graph_of_every_shape_computes_the_expected_value(bench: Any) -> None:
    shapes, executor = bench("shapes"), bench("bench_executor")
    for parts in (shapes.chain(7), shapes.wide(5), shapes.layered(3, 4)):
        assert executor.build(parts).run({"start": 3}) == {"answer": shapes.evaluate(parts, 3)}


@pytest.mark.parametrize("name", ["import", "comfy", "comfy:images", "comfy:again"])
def test_a_benchmark_or_a_part_of_one_is_named(bench: Any, name: str) -> None:
    assert bench("suite").check_name(name) == name


@pytest.mark.parametrize("name", ["nothing", "comfy:nothing", "import:images", "../x:y"])
def test_an_unknown_benchmark_name_is_refused(bench: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        bench("suite").check_name(name)


def test_a_quick_run_prints_the_table_and_writes_nothing() -> None:
    page = ROOT / "docs" / "performance.json"
    before = page.read_bytes() if page.exists() else None
    command = [sys.executable, "-m", "benchmarks", "--quick", "import"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, encoding="utf-8", check=True)
    assert "from yggdrasill.foundation import Graph" in done.stdout
    assert (page.read_bytes() if page.exists() else None) == before
