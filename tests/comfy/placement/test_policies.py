"""Parts that cannot run as placed: reported on the node in ComfyUI's own form before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from samples.comfy_graphs import Caller, data_folder, know, node, until
from samples.page_view import Shown, on_endpoints, show

pytestmark = pytest.mark.filterwarnings("ignore:BuildMismatch")

PROMPT = {"1": node("TestSeveral", count=1), "2": node("TestDouble", value=("1", 0)), "3": node("TestShow", value=("2", 0))}


@pytest.fixture
def gone(a: Caller, b: Caller) -> Iterator[str]:
    """An unreachable endpoint in the registry of server ``a``."""
    know(a.server, {"a": a.server, "b": b.server})
    file = data_folder(a.server) / "endpoints.yaml"
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace("endpoints:", "endpoints:\n  gone: {url: 'http://127.0.0.1:9'}", 1), encoding="utf-8")
    yield "gone"
    file.write_text(before, encoding="utf-8")


def said_on(shown: Shown, node_id: str) -> str:
    """Return the details of the only error, which is on a node."""
    assert shown.status == 400
    assert list(shown.answer["node_errors"]) == [node_id]
    (error,) = shown.answer["node_errors"][node_id]["errors"]
    assert shown.answer["node_errors"][node_id]["class_type"].startswith("Test")
    assert {"type", "message", "details", "extra_info"} == error.keys()
    return str(error["details"])


def placed_at(endpoint: Any) -> dict[str, Any]:
    return {"yggdrasill": {"graphs": {"part": {"nodes": ["2"], "endpoint": endpoint}}}}


def test_an_endpoint_that_is_down_is_reported_on_the_node_with_the_reason(a: Caller, b: Caller, gone: str) -> None:
    said = said_on(show(a.server, PROMPT, placed_at(gone)), "2")
    assert "Part 'part' cannot run: endpoint 'gone' is not up: nothing answers at its url." in said
    assert "Start it, place the part on another endpoint, or allow a local run with 'fallback: local'." in said
    assert "http://" not in said


def test_the_replica_that_is_up_is_used(a: Caller, b: Caller, gone: str) -> None:
    before = len(b.jobs(graph_id="part"))
    prompt = {**PROMPT, "1": node("TestSeveral", count=7)}
    shown = show(a.server, prompt, placed_at({"replicas": [gone, "b"], "policy": "first"}))
    assert shown.outputs["3"] == {"text": [repr(2.0 * number) for number in range(7)]}
    assert len(b.jobs(graph_id="part")) == before + 1


def test_a_part_falls_back_to_a_local_run_if_its_endpoint_is_down(a: Caller, b: Caller, gone: str) -> None:
    shown = show(a.server, PROMPT, placed_at({"replicas": [gone], "fallback": "local"}))
    assert shown.outputs["3"] == {"text": ["0.0"]}
    assert shown.ran | shown.cached == {"1", "2", "3"}


def test_a_class_that_only_the_endpoint_has_runs_on_it(a: Caller, b: Caller) -> None:
    prompt = {"1": node("TestSeveral", count=3), "2": node("TestOnlyOn_b", value=("1", 0)), "3": node("TestShow", value=("2", 0))}
    assert show(a.server, prompt, on_endpoints(half=("b", ["2"]))).outputs["3"] == {"text": ["0.0", "0.5", "1.0"]}
    without, elsewhere = show(a.server, prompt), show(a.server, prompt, on_endpoints(half=("b", ["3"])))
    assert without.status == elsewhere.status == 400
    assert without.answer == elsewhere.answer


def test_a_class_that_the_endpoint_lacks_is_named_before_anything_is_sent(a: Caller, b: Caller) -> None:
    prompt = {"1": node("TestSeveral", count=3), "2": node("TestOnlyOn_a", value=("1", 0)), "3": node("TestShow", value=("2", 0))}
    assert "endpoint 'b' lacks node class 'TestOnlyOn_a'" in said_on(show(a.server, prompt, on_endpoints(half=("b", ["2"]))), "2")
    assert b.jobs(graph_id="half") == [] or b.jobs(graph_id="half")[0]["status"] == "COMPLETED"


@pytest.mark.parametrize(
    "wrong",
    [
        {"2": node("TestSlow", value=("1", 0), seconds=1e6)},
        {"2": node("TestDouble")},
        {"1": node("TestSeveral", count="many")},
        {"2": node("TestNowhere", value=("1", 0))},
        {"2": {"inputs": {}}},
        {"2": node("TestDouble", value=("1", 7))},
        {"3": node("TestDouble", value=("2", 0))},
        {"1": node("TestDouble", value=("2", 0))},
    ],
    ids=lambda wrong: json.dumps(wrong)[:50],
)
def test_an_invalid_prompt_gets_the_same_answer_with_placement(a: Caller, b: Caller, wrong: dict[str, Any]) -> None:
    prompt = {**PROMPT, **wrong}
    placed, here = show(a.server, prompt, on_endpoints(part=("b", ["2"]))), show(a.server, prompt)
    assert placed.status == here.status == 400
    assert placed.answer == here.answer


def test_invalid_names_are_reported(a: Caller, b: Caller) -> None:
    for graphs, said in (
        ({"part": {"nodes": ["99"], "endpoint": "b"}}, "Unknown node '99'"),
        ({"part": {"nodes": ["2"], "endpoint": "c"}}, "Unknown endpoint 'c'"),
        ({"part": {"nodes": ["3"], "endpoint": "b"}}, "No node of part 'part' can run on an endpoint"),
        ({"one": {"nodes": ["1", "2"], "endpoint": "b"}, "two": {"nodes": ["2", "3"], "endpoint": "a"}}, "share nodes '2'"),
    ):
        shown = show(a.server, PROMPT, {"yggdrasill": {"graphs": graphs}})
        assert shown.status == 400
        assert said in json.dumps(shown.answer), said
        assert shown.answer["node_errors"]


def test_endpoints_are_not_queried_without_placements(a: Caller, b: Caller) -> None:
    until(lambda: show(a.server, PROMPT).status == 200)
    assert "yggdrasill_" not in json.dumps(show(a.server, PROMPT).answer)
