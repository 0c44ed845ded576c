"""Any part of a workflow may run on another ComfyUI: what comes out is the same, bit for bit."""

from __future__ import annotations

import pytest

from samples.conformance.catalogue import QUICK, WORKFLOWS
from samples.conformance.lab import Lab
from samples.conformance.models import PREVIEWED
from samples.conformance.report import Entry, Report
from samples.conformance.workflow import Drawing

pytestmark = [
    pytest.mark.filterwarnings("ignore:BuildMismatch:RuntimeWarning"),  # this process only passes on what ComfyUI made
    pytest.mark.timeout(300),
]


def _names() -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance) for name in WORKFLOWS]


@pytest.mark.parametrize("name", _names())
def test_a_workflow_with_remote_parts_is_the_workflow(name: str, lab: Lab, report: Report) -> None:
    drawing = Drawing()
    WORKFLOWS[name](drawing)
    graph_id = f"w{list(WORKFLOWS).index(name)}"
    parts = lab.prepare(drawing)
    local = lab.here(drawing.prompt)
    remote, trace = lab.with_remote_graphs(graph_id, drawing, parts)
    python = lab.from_python(graph_id, drawing, parts)
    kept = {node: files for node, files in local.files.items() if node in remote.files}
    counts = {"compared": len(local.notes), "saved": sum(map(len, kept.values()))}
    equal = {"remote": (local.notes, kept) == (remote.notes, remote.files), "python": local.notes == python}
    report.entries.append(Entry.of(name, drawing, parts, **counts, **equal))
    assert remote.notes == local.notes
    assert remote.files == kept
    assert python == local.notes
    assert [set(part.nodes) for part in parts] == [set(ran) for ran in trace.nodes]
    if name == PREVIEWED:
        assert trace.previews > 0


def test_the_suite_has_at_least_thirty_workflows() -> None:
    assert len(WORKFLOWS) >= 30
