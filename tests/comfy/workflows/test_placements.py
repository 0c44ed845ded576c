"""Every shipped workflow, posted as a prompt, returns the same values on one, two and three servers, and those of Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from samples.comfy_graphs import Prompt
from samples.conformance.capture import fingerprint
from samples.shipped_workflows import CAPTURE, NAMES, PLACES, api_form, editor_form, groups_of, in_small
from yggdrasill.foundation import Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage, State
from yggdrasill.world import World

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:BuildMismatch"),
]


def notes_of(theatre: Any, name: str, prompt: Prompt) -> dict[str, Any]:
    """Return the values on the links of a prompt that the first server runs."""
    parts = {title: {"nodes": nodes} for title, nodes in groups_of(editor_form(name)).items() if title in PLACES[name]}
    entry = theatre.here.run(prompt, timeout=250, extra_data={"yggdrasill": {"graphs": parts}} if parts else {})
    failed = [facts["exception_message"] for kind, facts in entry["status"]["messages"] if kind == "execution_error"]
    assert not failed, failed
    return {key: json.loads(told["note"][0]) for key, told in entry["outputs"].items() if prompt[key]["class_type"] == CAPTURE}


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_returns_the_same_values_for_every_placement(theatre: Any, name: str) -> None:
    prompt = in_small(api_form(name))
    found = {}
    for count in (1, 2, 3):
        placed = theatre.place(name, count)
        before = [len(caller.jobs(limit=1000)) for caller in placed]
        found[count] = notes_of(theatre, name, prompt)
        for caller, jobs in zip(placed, before, strict=True):
            assert len(caller.jobs(limit=1000)) > jobs, "nothing ran there"
    assert found[1]
    assert found[1] == found[2] == found[3]
    python = IN_PYTHON.get(name)
    if python is not None:
        expected = python(prompt)
        assert {key: found[1][key] for key in expected} == {key: [fingerprint(value)] for key, value in expected.items()}


# -- the same in Python -----------------------------------------------------------------------------------------------


def only(prompt: Prompt, class_type: str) -> tuple[str, dict[str, Any]]:
    """Return the id and inputs of the first node of a class."""
    return next((key, each["inputs"]) for key, each in prompt.items() if each["class_type"] == class_type)


def pipeline(prompt: Prompt) -> dict[str, Any]:
    """Return the map for the text."""
    whole = Pipeline("story_to_map")
    whole.add_graph(Graph.from_template("architect"), "architect")
    whole.add_graph(Graph.from_template("creator"), "creator")
    whole.add_edge("architect", "configuration", "creator", "configuration")
    whole.expose_input("architect", "happening", "happening")
    whole.expose_input("architect", "world", "world")
    whole.expose_output("creator", "artifacts", "artifacts")
    words = only(prompt, "PrimitiveStringMultiline")[1]["value"]
    key, run = only(prompt, "YggdrasillRunGraph")
    return {f"note-{key}-result": whole.run({"happening": words}, seed=run["seed"])["artifacts"]}


def stage(prompt: Prompt) -> dict[str, Any]:
    """Return the state after both stages."""
    state = State({1: only(prompt, "YggdrasillState")[1]["edits"].removeprefix("1: ")})
    for name, graph, reads, writes in (
        ("imagine", "architect", ("happening", 1), ("configuration", 2)),
        ("paint", "creator", ("configuration", 2), ("artifacts", 3)),
    ):
        made = Stage(name)
        made.add_pipeline(Graph.from_template(graph), graph)
        made.set_state_contract([reads[1]], [writes[1]], [(reads[1], graph, reads[0])], [(writes[1], graph, writes[0])])
        state = made.run(state, seed=5)
    return {f"note-{only(prompt, 'YggdrasillReadState')[0]}-state": state.to_dict()}


def world(prompt: Prompt) -> dict[str, Any]:
    """Return the chronicle, and the state if the workflow reads it."""
    settings = {
        name.removeprefix("source."): value for name, value in only(prompt, "YggdrasillWorld")[1].items() if name.startswith("source.")
    }
    run = only(prompt, "YggdrasillRunWorld")[1]
    state = World.from_template("canon_2.0", **{name: settings[name] for name in ("world_id", "seed", "size")}).run(
        num_steps=run["steps"], action=run["action"]
    )
    reads = [key for key, each in prompt.items() if each["class_type"] == "YggdrasillReadState"]
    return {f"note-{key}-state": state.to_dict() for key in reads}


IN_PYTHON: dict[str, Callable[[Prompt], dict[str, Any]]] = {
    "pipeline-over-two-servers": pipeline,
    "stage": stage,
    "terrain-world-three-servers": world,
}
