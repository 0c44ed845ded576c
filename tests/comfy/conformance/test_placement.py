"""Parts of ordinary workflows with any placement: a client cannot distinguish the run from one on a single server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from samples.conformance.catalogue import WORKFLOWS
from samples.conformance.lab import Lab
from samples.conformance.placing import Outcome, Trial, cold_run, drawn_trial, jobs_of, trials_of
from samples.conformance.placing_report import PlacingEntry, PlacingReport
from samples.conformance.shapes import SHAPES
from samples.conformance.workflow import Drawing, Prompt

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(400)]

_MOST_TRIES = 12


def test_the_placement_suite_has_at_least_forty_workflows() -> None:
    assert len(WORKFLOWS) >= 40


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_with_placed_parts_returns_the_same_values(name: str, lab: Lab, placing_report: PlacingReport) -> None:
    drawing = Drawing()
    WORKFLOWS[name](drawing)
    lab.prepare(drawing)
    prompt = drawing.prompt
    lab.server(2)
    here = _run_here(lab, prompt)
    wanted = {"convex", "any"}
    found: list[tuple[Trial, Outcome]] = []
    for trial in _tries(f"w{list(WORKFLOWS).index(name)}", drawing):
        kind = {"several": "any"}.get(trial.kind, trial.kind)
        if not wanted or (kind == "as drawn" and found):
            break
        outcome = _run_placed(lab, prompt, trial, placing_report) if kind in {*wanted, "as drawn"} else None
        if outcome is None:
            continue
        wanted.discard(kind)
        if outcome.outputs != here.outputs:
            # some nodes give other bytes each time: names of files, times within files
            again = _run_here(lab, prompt)
            here, outcome = here.only_of(here, again), outcome.only_of(here, again)
        found.append((trial, outcome))
        _note(placing_report, name, lab, prompt, trial, here, outcome)
    if not found:
        placing_report.stays.append(name)
    for _, outcome in found:
        assert {node: outcome.outputs[node] for node in here.outputs} == here.outputs
        assert outcome.outputs.keys() >= here.outputs.keys()
        assert outcome.ran == here.ran
    assert here.outputs


def test_nearly_every_workflow_has_a_placeable_part(placing_report: PlacingReport) -> None:
    assert len(placing_report.stays) <= 2, placing_report.stays


@pytest.mark.parametrize("name", SHAPES)
def test_difficult_partitions_return_the_same_values(name: str, lab: Lab, placing_report: PlacingReport) -> None:
    prompt, trial = SHAPES[name]()
    lab.server(2)
    here = _run_here(lab, prompt)
    placed = _run_placed(lab, prompt, trial, placing_report)
    assert placed is not None
    _note(placing_report, name, lab, prompt, trial, here, placed)
    assert placed.outputs == here.outputs
    assert placed.ran == here.ran


def _tries(name: str, drawing: Drawing) -> Iterator[Trial]:
    yield from itertools.islice(trials_of(name, drawing.prompt), _MOST_TRIES)
    yield drawn_trial(name, drawing)


def _run_here(lab: Lab, prompt: Prompt) -> Outcome:
    shown, outcome = cold_run(lab, prompt, {})
    assert outcome is not None, shown.answer
    assert not shown.answer["node_errors"]
    assert shown.entry["status"]["status_str"] == "success", [facts["exception_message"] for facts in shown.of("execution_error")]
    return outcome


def _run_placed(lab: Lab, prompt: Prompt, trial: Trial, report: PlacingReport) -> Outcome | None:
    """Run a placed set of nodes; return None if none of them can run remotely and the error says so."""
    shown, outcome = cold_run(lab, prompt, trial.extra_data)
    if outcome is None:
        kinds = {error["type"] for facts in shown.answer["node_errors"].values() for error in facts["errors"]}
        assert kinds == {"yggdrasill_PartitionError"}, shown.answer
        report.refused += 1
        return None
    assert shown.entry["status"]["status_str"] == "success", [facts["exception_message"] for facts in shown.of("execution_error")]
    return outcome


def _note(report: PlacingReport, name: str, lab: Lab, prompt: Prompt, trial: Trial, here: Outcome, placed: Outcome) -> None:
    jobs = jobs_of(lab, trial)
    assert all(job["status"] == "COMPLETED" for job in jobs)
    sizes = tuple(len(nodes) for _, nodes in trial.parts.values())
    report.entries.append(
        PlacingEntry(name, trial.kind, len(prompt), sizes, trial.is_convex(prompt), len(jobs), len(here.outputs), here == placed)
    )
    assert jobs or not trial.parts
