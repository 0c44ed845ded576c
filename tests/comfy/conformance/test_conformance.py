"""Any part of a workflow may run on another ComfyUI, with the same result bit for bit."""

from __future__ import annotations

import copy
from io import BytesIO

import pytest
import torch
from PIL import Image

from samples.conformance.capture import fingerprint
from samples.conformance.catalogue import QUICK, WORKFLOWS
from samples.conformance.lab import Lab
from samples.conformance.models import PREVIEWED
from samples.conformance.report import Entry, Report
from samples.conformance.workflow import Drawing, as_parts
from yggdrasill.remote.comfy_ports import type_transferability

pytestmark = [
    pytest.mark.filterwarnings("ignore:BuildMismatch:RuntimeWarning"),  # this process only passes on what ComfyUI made
    pytest.mark.timeout(300),
]


def _names() -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance) for name in WORKFLOWS]


@pytest.mark.parametrize("name", _names())
def test_a_workflow_with_remote_graphs_returns_the_same_values(name: str, lab: Lab, report: Report) -> None:
    drawing = Drawing()
    WORKFLOWS[name](drawing)
    graph_id = f"w{list(WORKFLOWS).index(name)}"
    parts = lab.prepare(drawing)
    local = lab.here(drawing.prompt)
    remote, trace = lab.with_remote_graphs(graph_id, drawing, parts)
    python = lab.from_python(graph_id, drawing, parts)
    kept = {node: files for node, files in local.files.items() if node in remote.files}
    same = (local.notes, kept) == (remote.notes, remote.files)
    entry = Entry.of(
        name, drawing, parts, compared=len(local.notes), saved=sum(map(len, kept.values())), remote=same, python=local.notes == python
    )
    report.entries.append(entry)
    assert remote.notes == local.notes
    assert remote.files == kept
    assert python == local.notes
    for part, ran in zip(parts, trace.nodes, strict=True):
        lazy = any(part.prompt[node]["class_type"] == "ComfySwitchNode" for node in part.nodes)
        assert ran == set(part.nodes) or (lazy and ran < set(part.nodes))
    if name == PREVIEWED:
        assert trace.previews > 0


@pytest.mark.conformance
async def test_previews_of_a_remote_sampler_are_shown_on_the_node(lab: Lab) -> None:
    drawing = Drawing()
    WORKFLOWS[PREVIEWED](drawing)
    for node in drawing.prompt.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] += 1
    parts = lab.prepare(drawing)
    _, prompt = lab.remote_prompt("previews", drawing, parts)
    shown = await lab.previews(prompt)
    assert shown
    for node_id, picture in shown:
        assert node_id == "remote-0"
        assert Image.open(BytesIO(picture)).size[0] > 0


@pytest.mark.conformance
def test_every_transferable_type_makes_a_round_trip(lab: Lab) -> None:
    sent, returned = set[str](), set[str]()
    for draw in WORKFLOWS.values():
        drawing = Drawing()
        draw(drawing)
        for part in as_parts(drawing, lab.types):
            sent |= {port.type for port in part.inputs}
            returned |= {port.type for port in part.outputs}
    travelling = {kind for kind in lab.types.given() if (verdict := type_transferability(kind)).transferable and verdict.known}
    assert travelling - sent == set()
    assert travelling - returned == set()


@pytest.mark.parametrize(
    "one, other",
    [
        (torch.tensor([1.0]), torch.tensor([1.0000001])),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.zeros(2, 3), torch.zeros(3, 2).T),
        (torch.zeros(1), torch.zeros(1, dtype=torch.float64)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1, 2], (1, 2)),
        (1, True),
        (0.1, 0.1 + 2**-56),
        (BytesIO(b"a"), BytesIO(b"b")),
    ],
)
def test_notes_distinguish_values_that_nodes_distinguish(one: object, other: object) -> None:
    assert fingerprint(one) == fingerprint(copy.deepcopy(one))
    assert fingerprint(one) != fingerprint(other)


def test_the_suite_has_at_least_thirty_workflows() -> None:
    assert len(WORKFLOWS) >= 30
