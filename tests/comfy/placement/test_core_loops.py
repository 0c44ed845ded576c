"""Loops of ComfyUI's own kind (Start Loop and End Loop), placed in every way: the local result, or a refusal on the node."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from samples.comfy_graphs import Caller, Prompt, node
from samples.page_view import Shown, on_endpoints, show

pytestmark = [pytest.mark.filterwarnings("ignore:BuildMismatch"), pytest.mark.comfy_file("comfy_extras/nodes_loop.py")]

_SALTS = itertools.count()
_REASON = "it begins or ends a loop whose nodes do not all run in one call"


def start(count: int = 3, **inputs: Any) -> dict[str, Any]:
    """Return a Start Loop node."""
    return node("StartLoop", mode="simple", cache_iterations=False, **{"mode.num_iterations": count, **inputs})


def end(value: str, following: str | None = None, *, accumulate: bool = False, terminations: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return an End Loop node that returns the output of ``value``, and hands that of ``following`` to the next iteration."""
    links: dict[str, Any] = {"output_value": (value, 0)} | ({"next_iteration_value": (following, 0)} if following else {})
    links |= {f"terminations.termination{index}": (name, 0) for index, name in enumerate(terminations)}
    return node("EndLoop", accumulate=accumulate, **links)


def _salted() -> Prompt:
    return {"0": node("TestSeveral", count=2), "pre": node("TestSalt", value=("0", 0), salt=f"core{next(_SALTS)}")}


def _beside(prompt: Prompt, *shown: str) -> Prompt:
    """Return the prompt with a node beside the loop, and with nodes that show results."""
    beside = {"x": node("TestAdd", value=("pre", 0), number=100)}
    return {**_salted(), **prompt, **beside, **{f"9{name}": node("TestShow", value=(name, 0)) for name in (*shown, "x")}}


def simple() -> Prompt:
    """pre -> [s -> b1 -> b2 -> e] -> post, and x beside it."""
    loop = {
        "s": start(initial_iteration_value=("pre", 0)),
        "b1": node("TestAdd", value=("s", 4), number=("s", 0)),
        "b2": node("TestTell", value=("b1", 0), text="round"),
        "e": end("b2", "b2"),
        "post": node("TestDouble", value=("e", 0)),
    }
    return _beside(loop, "post")


def nested() -> Prompt:
    """A loop in a loop: o -> c1 -> [s -> b1 -> e] -> c2 -> p."""
    loop = {
        "o": start(2, initial_iteration_value=("pre", 0)),
        "c1": node("TestAdd", value=("o", 4), number=("o", 0)),
        "s": start(3, initial_iteration_value=("c1", 0), parent_iteration=("o", 0)),
        "b1": node("TestAdd", value=("s", 4), number=("s", 0)),
        "e": end("b1", "b1"),
        "c2": node("TestDouble", value=("e", 0)),
        "p": end("c2", "c2", accumulate=True),
        "post": node("TestDouble", value=("p", 0)),
    }
    return _beside(loop, "post")


def two() -> Prompt:
    """Two loops beside each other."""
    loop = {
        "s": start(initial_iteration_value=("pre", 0)),
        "b1": node("TestAdd", value=("s", 4), number=("s", 0)),
        "e": end("b1", "b1"),
        "t": start(initial_iteration_value=("pre", 0)),
        "d1": node("TestDouble", value=("t", 4)),
        "f": end("d1", "d1"),
    }
    return _beside(loop, "e", "f")


def over_list() -> Prompt:
    """A loop over the items of a list, whose results are all returned."""
    loop = {
        "s": node("StartLoop", mode="List", cache_iterations=False, **{"mode.list": ("pre", 0)}),
        "b1": node("TestAdd", value=("s", 3), number=("s", 0)),
        "b2": node("TestDouble", value=("b1", 0)),
        "e": end("b2", accumulate=True),
    }
    return _beside(loop, "e")


def terminated() -> Prompt:
    """A loop that runs for the node inside it that shows each value."""
    loop = {
        "s": start(initial_iteration_value=("pre", 0)),
        "b1": node("TestAdd", value=("s", 4), number=("s", 0)),
        "look": node("TestLook", value=("b1", 0)),
        "b2": node("TestDouble", value=("b1", 0)),
        "e": end("b2", "b2", terminations=("look",)),
    }
    return _beside(loop)


def model() -> Prompt:
    """A loop that carries an object that cannot be transferred."""
    loop = {
        "m": node("TestObject"),
        "s": start(initial_iteration_value=("m", 0)),
        "b1": node("TestKeep", model=("s", 4), number=("s", 0)),
        "e": end("b1", "b1"),
        "post": node("TestNameOf", model=("e", 0)),
    }
    return _beside(loop, "post")


SHAPES: dict[str, tuple[Any, list[str], bool]] = {
    "the body": (simple, ["b1 b2"], True),
    "one node of the body": (simple, ["b1"], True),
    "the loop": (simple, ["s b1 b2 e"], True),
    "the loop with all around it": (simple, ["pre s b1 b2 e post"], True),
    "the start without the end": (simple, ["s b1 b2"], True),
    "the end without the start": (simple, ["b1 b2 e"], True),
    "the start alone": (simple, ["s"], False),
    "the ends alone": (simple, ["s e"], False),
    "the ends on one endpoint and the body on the other": (simple, ["s e", "b1 b2"], False),
    "the ends and a part of the body": (simple, ["s b1 e"], True),
    "before and after": (simple, ["pre post"], True),
    "the body and what is after": (simple, ["b1 b2 post"], True),
    "the body and what is before": (simple, ["pre b1"], True),
    "the body and what is beside": (simple, ["b1 x"], True),
    "two parts in one body": (simple, ["b1", "b2"], True),
    "the inner loop": (nested, ["s b1 e"], True),
    "the body of the inner loop": (nested, ["b1"], True),
    "the body of the outer loop": (nested, ["c1 s b1 e c2"], True),
    "nodes of both bodies": (nested, ["c1 b1 c2"], True),
    "the inner start": (nested, ["s"], False),
    "both loops": (nested, ["o c1 s b1 e c2 p"], True),
    "one node of two loops each": (two, ["b1 d1"], True),
    "a loop and a node of another": (two, ["s b1 e d1"], True),
    "the body of a loop over a list": (over_list, ["b1 b2"], True),
    "a loop over a list": (over_list, ["s b1 b2 e"], True),
    "the body of a loop with a termination": (terminated, ["b1 b2"], True),
    "a loop with a termination": (terminated, ["s b1 b2 e"], True),
    "the body of a loop that carries a model": (model, ["b1"], False),
    "a loop that carries a model": (model, ["m s b1 e post"], True),
}


def run(a: Caller, shape: Any, parts: list[str]) -> Shown:
    places = {f"loop {number}": ("b", nodes.split()) for number, nodes in enumerate(parts)}
    return show(a.server, shape(), on_endpoints(**places) if parts else {})


def outputs(shown: Shown) -> dict[str, Any]:
    """Return the outputs with the metadata of their nodes."""
    return {name: (output, shown.entry["meta"][name]) for name, output in shown.outputs.items()}


def messages(shown: Shown) -> list[Any]:
    return sorted(
        [(data["node"], data["display_node"], data["output"]) for data in shown.of("executed") if data["output"]],
        key=json.dumps,
    )


def newest(b: Caller) -> list[Any]:
    """Return the id of the newest job, or nothing."""
    return [row["job_id"] for row in b.jobs(limit=1)]


@pytest.mark.parametrize("name", SHAPES)
def test_a_loop_gives_the_local_result_or_a_refusal(a: Caller, b: Caller, name: str) -> None:
    shape, parts, is_placed = SHAPES[name]
    here = run(a, shape, [])
    assert here.entry["status"]["status_str"] == "success", here.entry["status"]["messages"]
    before = newest(b)
    placed = run(a, shape, parts)
    if not is_placed:
        assert placed.status == 400
        errors = placed.answer["node_errors"]
        assert errors.keys() <= set(" ".join(parts).split())
        assert _REASON in json.dumps(errors) or "cannot be transferred" in json.dumps(errors)
        assert newest(b) == before
        return
    assert placed.status == 200, placed.answer
    assert not placed.answer["node_errors"]
    assert placed.entry["status"]["status_str"] == "success", placed.entry["status"]["messages"]
    assert outputs(placed) == outputs(here)
    assert messages(placed) == messages(here)
    assert newest(b) != before
    text = json.dumps(placed.messages) + json.dumps(placed.entry["outputs"])
    assert ".placed" not in text


def test_a_text_of_a_loop_at_an_endpoint_is_shown_on_its_start(a: Caller, b: Caller) -> None:
    here, placed = run(a, simple, []), run(a, simple, ["s b1 b2 e"])
    assert ("s", "Iteration 3 / 3") in here.texts
    assert ("s", "Iteration 3 / 3") in placed.texts


def test_iterations_that_comfyui_takes_from_its_cache_are_not_called_again(a: Caller, b: Caller) -> None:
    prompt = simple()
    prompt["s"]["inputs"]["cache_iterations"] = True
    here = [show(a.server, prompt) for _ in range(2)]
    placed, jobs = [], []
    for _ in range(2):
        placed.append(show(a.server, prompt, on_endpoints(cached=("b", ["b1", "b2"]))))
        jobs.append(newest(b))
    assert jobs[0] == jobs[1]
    for placed_run, here_run in zip(placed, here, strict=True):
        assert outputs(placed_run) == outputs(here_run)
        assert messages(placed_run) == messages(here_run)


def test_an_error_in_a_loop_is_reported_where_comfyui_reports_it(a: Caller, b: Caller) -> None:
    def failing() -> Prompt:
        return {**simple(), "b2": node("TestFailLater", value=("b1", 0), number=("s", 0))}

    for parts in (["b1 b2"], ["s b1 b2 e"]):
        here, placed = run(a, failing, []), run(a, failing, parts)
        for name in ("node_id", "node_type", "exception_type", "exception_message"):
            assert placed.error[name] == here.error[name]
