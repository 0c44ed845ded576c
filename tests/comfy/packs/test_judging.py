"""The judgement of the packs suite on runs that are given here, and the page that it writes; no server is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from samples.packs.catalogue import CASES
from samples.packs.judging import Judge, Outcome
from samples.packs.lab import Run
from samples.packs.report import PacksReport
from samples.page_sections import write_section

_PLACED = {"part": {"nodes": ["1"], "endpoint": "forge"}}
_SAME = {"node 2": "bits"}
_ERROR = ("1", "ValueError", "too small")


class Given:
    """Returns given runs: ``local`` in order (the last one again and again), ``placed`` likewise for a prompt with placements."""

    def __init__(self, placed: Run | list[Run], *local: Run) -> None:
        self.placed, self.local = placed if isinstance(placed, list) else [placed], list(local)

    def run(
        self, prompt: Mapping[str, Any], extra: Mapping[str, Any], *, seconds: float, peers: Sequence[str] = (), fresh: bool = True
    ) -> Run:
        runs = self.placed if "yggdrasill" in extra else self.local
        return runs.pop(0) if len(runs) > 1 else runs[0]


def outcome(placed: Run, *local: Run) -> str:
    return Judge(Given(placed, *local), {}).place(_PLACED, ("forge",)).kind


@pytest.mark.parametrize(
    "placed, local, expected",
    [
        (Run(results=_SAME), Run(results=_SAME), "equal"),
        (Run(results={"node 2": "other"}), Run(results=_SAME), "different"),
        (Run(results={}), Run(results=_SAME), "different"),
        (Run(results={**_SAME, "file b.png": "bits"}), Run(results=_SAME), "different"),
        (Run(error=_ERROR), Run(error=_ERROR), "same error"),
        (Run(error=_ERROR), Run(error=_ERROR, results=_SAME), "same error"),
        (Run(error=_ERROR), Run(results=_SAME), "late"),
        (Run(error=("1", "CannotTravel", "a class")), Run(error=_ERROR), "late"),
        (Run(results=_SAME), Run(error=_ERROR), "different"),
        (Run(refused=[("1", "yggdrasill_PartitionError", "why")]), Run(results=_SAME), "refused"),
        (Run(refused=[("1", "value_not_in_list", "x")]), Run(refused=[("1", "value_not_in_list", "x")]), "same error"),
        (Run(error=_ERROR), Run(refused=[("1", "value_not_in_list", "x")]), "late"),
        (Run(ended=False), Run(results=_SAME), "hang"),
        (Run(results=_SAME), Run(ended=False), "endless locally"),
    ],
)
def test_a_placed_run_is_judged_by_the_local_one(placed: Run, local: Run, expected: str) -> None:
    assert outcome(placed, local) == expected


def test_results_that_change_from_run_to_run_are_not_compared() -> None:
    placed = Run(results={"node 2": "bits", "node 3": "c"})
    first, second = Run(results={"node 2": "bits", "node 3": "a"}), Run(results={"node 2": "bits", "node 3": "b"})
    assert outcome(placed, first, second) == "equal"
    assert outcome(Run(results={"node 3": "c"}), Run(results={"node 3": "a"}), Run(results={"node 3": "b"})) == "not deterministic"


def test_a_difference_counts_beside_results_that_change() -> None:
    placed = Run(results={"node 2": "other", "node 3": "c"})
    first, second = Run(results={"node 2": "bits", "node 3": "a"}), Run(results={"node 2": "bits", "node 3": "b"})
    assert outcome(placed, first, second) == "different"


def test_a_peer_that_does_not_answer_is_tried_again_and_never_counts_as_a_refusal() -> None:
    unreachable = Run(refused=[("1", "yggdrasill_EndpointUnreachable", "no answer")])
    judge = Judge(Given([unreachable, unreachable, Run(results=_SAME)], Run(results=_SAME)), {})
    assert judge.place(_PLACED, ("forge",)).kind == "equal"
    with pytest.raises(TimeoutError, match="forge did not answer in 6 tries"):
        Judge(Given(unreachable, Run(results=_SAME)), {}).place(_PLACED, ("forge",))


def test_the_section_of_a_page_is_replaced_and_the_rest_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "compatibility.md"
    page.write_text("# Compatibility\n\nText before.\n", encoding="utf-8")
    report = PacksReport(versions={"pack": "1.0", "other": "2.0"}, failed={"other": "No module named 'x'"}, comfyui="0.33.0")
    report.add("pack", "a prompt", "everything", Outcome("equal", remote=True))
    report.add("pack", "AClass", "", Outcome("refused", "yggdrasill_PartitionError: part 'x' has 'y'"))
    write_section(page, "packs", "make packs", report.lines("2026-01-01"))
    page.write_text(page.read_text(encoding="utf-8") + "\nText after.\n", encoding="utf-8")
    write_section(page, "packs", "make packs", report.lines("2026-01-02"))
    text = page.read_text(encoding="utf-8")
    assert "2026-01-01" not in text
    assert "| pack | 1.0 | 1 | 1 | 1 | 0 | 0 | 1 | 0 | 0 | 1 | 0 | 0 |" in text
    assert "other (2.0) was not imported by ComfyUI: No module named 'x'" in text
    assert "| PartitionError: part '…' has '…' | 0 | 1 |" in text
    assert text.startswith("# Compatibility\n\nText before.\n")
    assert text.endswith("\nText after.\n")


def test_the_catalogue_has_at_least_120_prompts_of_12_packs() -> None:
    assert len(CASES) >= 120
    assert len({case.pack for case in CASES}) >= 12
