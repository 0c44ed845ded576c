"""Placed nodes that a loop runs as copies: the same endpoint, messages and history as without a loop, under the ids of a local run."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from samples.comfy_graphs import Caller, Prompt, node
from samples.page_view import Shown, on_endpoints, show

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

_SALTS = itertools.count()
_BODY = ["b1", "b2", "b3", "b4"]


def looped(shown: bool = True, value: int | None = None) -> Prompt:
    """A loop from s to e of three rounds, whose nodes show a picture, a text, progress and previews; nothing after 1 is in a cache.

    An endpoint identifies the values of a part by their content, so each prompt has a value of its own unless it is given.
    """
    number = next(_SALTS)
    salt = f"copy{number}"
    return {
        "0": node("PrimitiveInt", value=740_000 + 97 * number if value is None else value),
        "1": node("TestSalt", value=("0", 0), salt=salt),
        "s": node("TestRepeatStart", value=("1", 0)),
        "b1": node("TestDouble", value=("s", 0)),
        "b2": node("TestTell", value=("b1", 0), text=salt),
        "b3": node("TestSketch", value=("b2", 0), grey=("s", 1)),
        "b4": node("TestPreview", value=("b3", 0), steps=4, salt=""),
        "e": node("TestRepeatEnd", value=("b4", 0), rounds=3, shown=shown),
        "9": node("TestShow", value=("e", 0)),
    }


def executed(shown: Shown) -> list[Any]:
    """Return the ``executed`` messages with outputs, of which only the numbers are compared: their files and texts differ."""
    found = [
        (data["node"], data["display_node"], {name: len(items) for name, items in data["output"].items()})
        for data in shown.of("executed")
        if data["output"]
    ]
    return sorted(found, key=repr)


def progress(shown: Shown) -> dict[str, Any]:
    """Return the ids of the nodes of the body with progress at the end."""
    states = shown.of("progress_state")[-1]["nodes"]
    kinds = ("display", "parent", "real")
    return {name: tuple(state[f"{kind}_node_id"] for kind in kinds) for name, state in states.items() if state["display_node_id"] in _BODY}


def previews(shown: Shown) -> set[tuple[Any, ...]]:
    names = ("node_id", "display_node_id", "parent_node_id", "real_node_id", "prompt_id")
    return {tuple(facts[name] for name in names[:4]) for facts, _ in shown.previews if facts["prompt_id"] == shown.answer["prompt_id"]}


def test_messages_and_history_of_a_loop_are_those_of_a_local_run(a: Caller, b: Caller) -> None:
    extra = {"preview_method": "latent2rgb"}
    here = show(a.server, looped(), extra)
    placed = show(a.server, looped(), {**extra, **on_endpoints(night=("b", _BODY))})
    assert placed.status == 200, placed.answer
    assert placed.entry["status"]["status_str"] == "success", placed.entry["status"]["messages"]
    assert len(b.jobs(graph_id="night")) == 3
    assert executed(placed) == executed(here)
    assert {(data["node"], data["display_node"]) for data in placed.of("executing")[:-1]} >= {
        (node_id, display) for node_id, display in _executing(here) if display in _BODY
    }
    assert placed.entry["outputs"].keys() == here.entry["outputs"].keys()
    assert placed.entry["meta"] == here.entry["meta"]
    assert progress(placed) == progress(here)
    assert previews(placed) == previews(here)
    assert previews(here)
    assert ".placed" not in json.dumps(placed.messages) + json.dumps(placed.entry)
    files = [image["filename"] for output in placed.outputs.values() for image in output.get("images", [])]
    assert len(set(files)) == 3


def _executing(shown: Shown) -> set[tuple[str, str]]:
    return {(data["node"], data["display_node"]) for data in shown.of("executing")[:-1]}


def test_copies_without_the_ids_of_their_originals_run_at_the_endpoint(a: Caller, b: Caller) -> None:
    here = show(a.server, looped(shown=False, value=840_001))
    placed = show(a.server, looped(shown=False, value=840_001), on_endpoints(day=("b", _BODY)))
    assert placed.entry["status"]["status_str"] == "success", placed.entry["status"]["messages"]
    assert len(b.jobs(graph_id="day")) == 3
    assert placed.outputs["9"] == here.outputs["9"]
    displays = [[display for _, display, output in executed(shown)] for shown in (placed, here)]
    assert sorted(displays[0]) == sorted(displays[1])
    assert {data["display_node"] for data in placed.of("executing")[:-1]} <= {*_BODY, "0", "1", "s", "e", "9"}


def test_an_error_in_a_loop_is_reported_as_a_local_run_reports_it(a: Caller, b: Caller) -> None:
    prompt = looped()
    prompt["b2"] = node("TestFail", value=("b1", 0), message="the oven is cold")
    late = {**prompt, "b2": node("TestTell", value=("b1", 0), text=""), "b3": node("TestFailLater", value=("b2", 0), number=("s", 1))}
    for failing in (prompt, late):
        here, placed = show(a.server, failing), show(a.server, failing, on_endpoints(oven=("b", _BODY)))
        for name in ("node_id", "node_type", "exception_type", "exception_message"):
            assert placed.error[name] == here.error[name]


def test_a_class_that_shows_its_cached_output_again_does_so_in_a_part(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSeveral", count=1),
        "2": node("TestRepeated", value=("1", 0), text=f"again{next(_SALTS)}"),
        "3": node("TestTell", value=("2", 0), text="once"),
        "4": node("TestShow", value=("3", 0)),
    }
    extra = on_endpoints(reshown=("b", ["2", "3"]))
    placed = [show(a.server, prompt, extra) for _ in range(2)]
    here = [show(a.server, prompt) for _ in range(2)]
    for shown in (*placed, *here):
        assert shown.entry["status"]["status_str"] == "success", shown.entry["status"]["messages"]
    assert [row["status"] for row in b.jobs(graph_id="reshown")] == ["COMPLETED"], (placed[1].cached, placed[1].ran)
    for run_placed, run_here in zip(placed, here, strict=True):
        assert run_placed.outputs == run_here.outputs
        assert run_placed.entry["meta"] == run_here.entry["meta"]
        assert executed(run_placed) == executed(run_here)
    assert "2" in placed[1].outputs
    assert "3" not in placed[1].outputs


def test_a_page_that_does_not_know_metadata_receives_previews_without_it(a: Caller, b: Caller) -> None:
    prompt = {
        "1": node("TestSalt", value=("0", 0), salt=f"old{next(_SALTS)}"),
        "0": node("TestSeveral", count=1),
        "2": node("TestPreview", value=("1", 0), steps=4, salt=f"old{next(_SALTS)}"),
        "3": node("TestSlow", value=("2", 0), seconds=0.5, salt=""),
        "4": node("TestShow", value=("3", 0)),
    }
    placed = show(a.server, prompt, {"preview_method": "latent2rgb", **on_endpoints(old=("b", ["2", "3"]))}, knows_metadata=False)
    assert not placed.previews
    assert placed.pictures
    assert all(picture[:4] == (1).to_bytes(4, "big") and picture[4:6] == b"\xff\xd8" for picture in placed.pictures)
