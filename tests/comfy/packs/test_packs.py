"""Nodes of third-party packs at an endpoint: the local result, the local error, or a reason before the run. Never another result."""

from __future__ import annotations

import pytest

from samples.packs.catalogue import CASES, Case, placements_of
from samples.packs.checkouts import find_packs
from samples.packs.classes import prompt_alone
from samples.packs.filling import Workbench, workflow_of
from samples.packs.judging import BAD, Judge, Outcome
from samples.packs.lab import PacksLab
from samples.packs.report import PacksReport

pytestmark = pytest.mark.packs

_PACKS = [pack.name for pack in find_packs()] or ["no pack was found"]
_SECONDS_ALONE = 20.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.pack}: {case.name}")
def test_a_prompt_of_a_pack_is_equal_or_refused_wherever_it_is_placed(
    case: Case, packs_lab: PacksLab, bench: Workbench, report: PacksReport
) -> None:
    missing = [name for name in case.classes if name not in packs_lab.info]
    if missing:
        pytest.skip(f"PACK {case.pack} IS NOT LOADED, SO THIS IS NOT TESTED: {report.failed.get(case.pack)}; missing: {missing[0]}")
    prompt = case.prompt(bench, packs_lab.caller.base)
    judge = Judge(packs_lab, prompt, {"extra_pnginfo": {"workflow": workflow_of(prompt)}})
    found = []
    for placement, graphs, peers in placements_of(case, prompt, bench):
        outcome = judge.place(graphs, peers)
        report.add(case.pack, case.name, placement, outcome)
        if outcome.kind in BAD:
            found.append(f"{placement}: {outcome.kind}: {outcome.reason}")
    assert not found, "\n".join(found)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pack", _PACKS)
def test_each_class_of_a_pack_alone_is_equal_or_refused(pack: str, packs_lab: PacksLab, bench: Workbench, report: PacksReport) -> None:
    if pack in report.failed:
        pytest.skip(f"PACK {pack} IS NOT LOADED, SO ITS CLASSES ARE NOT TESTED: {report.failed[pack]}")
    found = []
    for number, name in enumerate(packs_lab.loaded[pack]):
        outcome = _alone(name, f"{pack}-{number}", packs_lab, bench)
        report.add(pack, name, "", outcome)
        if outcome.kind in BAD:
            found.append(f"{name}: {outcome.kind}: {outcome.reason}")
    assert not found, f"{len(found)} classes\n" + "\n".join(found)


def _alone(name: str, part: str, lab: PacksLab, bench: Workbench) -> Outcome:
    prompt, reason = prompt_alone(name, bench)
    if prompt is None:
        return Outcome("not run", reason)
    judge = Judge(lab, prompt, {"extra_pnginfo": {"workflow": workflow_of(prompt)}}, seconds=_SECONDS_ALONE, fresh=False)
    return judge.place({part: {"nodes": ["1"], "endpoint": "forge"}}, ("forge",))
