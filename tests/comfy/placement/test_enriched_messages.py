"""What ComfyUI adds to its messages and shown files beside the ids of nodes: a placed part adds the same as a local run."""

from __future__ import annotations

from typing import Any

import pytest

from samples.comfy_graphs import Caller, node
from samples.page_view import Shown, on_endpoints, show

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")


def sketch(count: int) -> dict[str, Any]:
    return {
        "1": node("TestSeveral", count=count),
        "2": node("TestSketch", value=("1", 0), grey=7),
        "3": node("TestShow", value=("2", 0)),
    }


def shown_picture(shown: Shown) -> dict[str, Any]:
    """Return the entry of the picture in the message; the history has the same one."""
    (picture,) = next(data["output"]["images"] for data in shown.of("executed") if data["node"] == "2")
    assert shown.outputs["2"]["images"] == [picture]
    found: dict[str, Any] = picture
    return found


def test_a_picture_from_inside_a_part_is_described_as_one_of_this_server(a: Caller, b: Caller) -> None:
    placed = shown_picture(show(a.server, sketch(1), on_endpoints(described=("b", ["2"]))))
    assert len(b.jobs(graph_id="described")) == 1
    here = shown_picture(show(a.server, sketch(1)))
    assert placed.keys() == here.keys()
    assert placed.get("metadata") == here.get("metadata")
    if "id" in here:
        assert a.server.get(f"/api/assets/{placed['id']}")["name"] == placed["filename"]


def marked(shown: Shown) -> set[str]:
    """Return the kinds of messages that have the metadata of the workflow, and those that lack it, with a dash."""
    kinds = {kind if data.get("tab") == "seven" else f"-{kind}" for kind, data in shown.messages}
    return kinds | {"preview" if data.get("tab") == "seven" else "-preview" for data, _ in shown.previews}


def test_messages_of_a_part_have_the_metadata_of_the_workflow(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestPreview", value=("1", 0), steps=3, salt=""),
        "3": node("TestShow", value=("2", 0)),
    }
    previews, metadata = {"preview_method": "latent2rgb"}, {"tab": "seven"}
    placed = show(a.server, prompt, {**on_endpoints(described_messages=("b", ["2"])), **previews}, workflow_metadata=metadata)
    here = show(a.server, prompt, previews, workflow_metadata=metadata)
    assert len(b.jobs(graph_id="described_messages")) == 1
    assert placed.previews
    assert here.previews
    assert marked(placed) == marked(here)
