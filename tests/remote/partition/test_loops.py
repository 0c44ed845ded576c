"""Partition of prompts with loops of ComfyUI's own kind: which nodes may leave the loop, and what ComfyUI's check of loops accepts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.errors import PartitionError
from yggdrasill.remote.comfy_ports import OUTPUT_NODE, is_link
from yggdrasill.remote.partition import NodeSchema, NodeSchemas, Part, Partition, partition_prompt, restore_prompt
from yggdrasill.remote.partition.graph import PromptGraph
from yggdrasill.remote.partition.loops import find_loops

Prompt = dict[str, Any]


def _match(template: str) -> list[Any]:
    return ["COMFY_MATCHTYPE_V3", {"template": {"template_id": template, "allowed_types": "*"}}]


def _entry(inputs: dict[str, Any], outputs: str, *, output_node: bool = False, matches: list[Any] | None = None) -> dict[str, Any]:
    sockets = {name: spec if isinstance(spec, list) else [spec, {}] for name, spec in inputs.items()}
    return {"input": {"optional": sockets}, "output": outputs.split(), "output_node": output_node, "output_matchtypes": matches}


_MATCHED = "COMFY_MATCHTYPE_V3"
_ENDS = {f"termination{number}": "*" for number in range(2)}
INFO = {
    "Start": _entry(
        {"count": "INT", "list": _match("item"), "initial": _match("carried"), "parent": "INT"},
        f"INT BOOLEAN {_MATCHED} {_MATCHED}",
        matches=[None, None, "item", "carried"],
    ),
    "End": _entry({"output": _match("output"), "next": _match("carried"), "accumulate": "BOOLEAN", **_ENDS}, _MATCHED, matches=["output"]),
    "Make": _entry({"seed": "INT"}, "IMAGE"),
    "Filter": _entry({"image": "IMAGE", "number": "INT", "other": "IMAGE"}, "IMAGE"),
    "Load": _entry({"name": "STRING"}, "MODEL"),
    "Patch": _entry({"model": "MODEL", "number": "INT"}, "MODEL"),
    "Draw": _entry({"model": "MODEL", "number": "INT"}, "IMAGE"),
    "Pass": _entry({"value": _match("value")}, _MATCHED, matches=["value"]),
    "Preview": _entry({"image": "IMAGE"}, "IMAGE", output_node=True),
}
SCHEMAS = NodeSchemas.from_object_info(INFO, loops={"Start": "start", "End": "end"})


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {
        "class_type": class_type,
        "inputs": {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()},
    }


#: pre -> [s -> b1 -> b2 -> e] -> post, and x beside it.
LOOP: Prompt = {
    "pre": node("Make", seed=1),
    "s": node("Start", count=3, initial=("pre", 0)),
    "b1": node("Filter", image=("s", 3), number=("s", 0)),
    "b2": node("Filter", image=("b1", 0)),
    "e": node("End", output=("b2", 0), next=("b2", 0)),
    "post": node("Filter", image=("e", 0)),
    "x": node("Filter", image=("pre", 0)),
    "show": node("Preview", image=("post", 0)),
    "show x": node("Preview", image=("x", 0)),
}
#: An inner loop in the body of an outer one.
NESTED: Prompt = {
    "pre": node("Make", seed=1),
    "o": node("Start", count=2, initial=("pre", 0)),
    "c1": node("Filter", image=("o", 3), number=("o", 0)),
    "s": node("Start", count=3, initial=("c1", 0), parent=("o", 0)),
    "b1": node("Filter", image=("s", 3), number=("s", 0)),
    "e": node("End", output=("b1", 0), next=("b1", 0)),
    "c2": node("Filter", image=("e", 0), other=("c1", 0)),
    "p": node("End", output=("c2", 0), next=("c2", 0)),
    "post": node("Filter", image=("p", 0)),
    "show": node("Preview", image=("post", 0)),
}
#: Two loops of which neither is in the other.
BESIDE: Prompt = {
    **LOOP,
    "t": node("Start", count=3, initial=("pre", 0)),
    "d": node("Filter", image=("t", 3)),
    "f": node("End", output=("d", 0), next=("d", 0)),
    "post": node("Filter", image=("e", 0), other=("f", 0)),
}
#: A loop that carries a model.
MODEL: Prompt = {
    "load": node("Load", name="x"),
    "s": node("Start", count=3, initial=("load", 0)),
    "b": node("Patch", model=("s", 3), number=("s", 0)),
    "e": node("End", output=("b", 0), next=("b", 0)),
    "draw": node("Draw", model=("e", 0)),
    "show": node("Preview", image=("draw", 0)),
}
#: A loop that is run for the preview inside it.
TERMINATION: Prompt = {
    "s": node("Start", count=3),
    "b1": node("Make", seed=("s", 0)),
    "look": node("Preview", image=("b1", 0)),
    "b2": node("Filter", image=("look", 0)),
    "e": node("End", termination0=("look", 0), next=("b2", 0)),
}


def cut(prompt: Prompt, *parts: str) -> Partition:
    """Return the partition of parts, each given by its nodes, after checking its loops."""
    named = [Part(f"part {number}", frozenset(nodes.split())) for number, nodes in enumerate(parts)]
    partition = partition_prompt(prompt, named, SCHEMAS)
    check_loops(prompt, partition)
    return partition


def calls(partition: Partition) -> set[str]:
    """Return the nodes of each call, as sorted words."""
    return {" ".join(sorted({*call.nodes, *call.copies})) for call in partition.calls}


def check_loops(prompt: Prompt, partition: Partition) -> None:
    """Check that the remaining prompt and every call have the loops of the prompt that they have nodes of, and no others."""
    wanted = {(loop.start, loop.end) for loop in find_loops(PromptGraph.of(prompt, SCHEMAS))}
    found = set()
    for each in (partition.prompt, *(call.prompt for call in partition.calls)):
        pairs = _checked_pairs(each)
        assert pairs <= wanted
        found |= pairs
    assert found == wanted
    restored = restore_prompt(partition)
    assert all(restored[name]["inputs"] == prompt[name]["inputs"] for name in restored)


def _checked_pairs(prompt: Prompt) -> set[tuple[str, str]]:
    """Return the pairs of a prompt. Every start has an end, and no value of a body reaches an output but through the end."""
    known = NodeSchemas({name: SCHEMAS.get(name) or _port(name) for name in {each["class_type"] for each in prompt.values()}})
    graph = PromptGraph.of(prompt, known)
    loops = find_loops(graph)
    assert {name for name in graph.order if graph.loop_role(name) is not None} == {
        name for loop in loops for name in (loop.start, loop.end)
    }
    inner_outputs = {name for name in graph.order if graph.class_of(name) == "Preview" and graph.users[name]}
    for loop in loops:
        assert all(graph.users[name] for name in loop.body)
        assert loop.body.isdisjoint(graph.targets - inner_outputs - {each.end for each in loops})
    return {(loop.start, loop.end) for loop in loops}


def _port(class_type: str) -> NodeSchema:
    return NodeSchema(class_type, is_output_node=class_type == OUTPUT_NODE)


# -- pairs -----------------------------------------------------------------------------------------------------------------


def test_an_end_closes_the_nearest_open_start() -> None:
    assert [loop[:2] for loop in find_loops(PromptGraph.of(NESTED, SCHEMAS))] == [("s", "e"), ("o", "p")]
    assert find_loops(PromptGraph.of(NESTED, SCHEMAS))[1].body == {"c1", "s", "b1", "e", "c2"}
    assert {loop[:2] for loop in find_loops(PromptGraph.of(BESIDE, SCHEMAS))} == {("s", "e"), ("t", "f")}


def test_a_prompt_whose_pairs_are_not_clear_has_no_loops() -> None:
    crossed = {**BESIDE, "e": node("End", output=("b2", 0), next=("d", 0))}
    assert find_loops(PromptGraph.of(crossed, SCHEMAS)) == ()


def test_a_loop_that_runs_for_an_output_node_inside_it_is_in_the_graph() -> None:
    graph = PromptGraph.of(TERMINATION, SCHEMAS)
    assert graph.targets == {"look", "e"}
    assert find_loops(graph)[0].body == {"b1", "look", "b2"}


def test_the_class_says_whether_it_begins_or_ends_a_loop() -> None:
    hidden = {"input": {"hidden": {"execution_list": ["EXECUTION_LIST"]}}, "output": []}
    schemas = NodeSchemas.from_object_info({**INFO, "StartLoop": hidden, "Odd": hidden}, loops={"Start": "start"})
    assert {name: schema.loop for name, schema in schemas.items() if schema.loop} == {"Start": "start", "StartLoop": "start"}


# -- what runs where -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part, wanted, local",
    [
        ("b1", "b1", ""),
        ("b1 b2", "b1 b2", ""),
        ("s b1 b2 e", "b1 b2 e s", ""),
        ("pre s b1 b2 e post", "b1 b2 e post pre s", ""),
        ("s b1 b2", "b1 b2", "s"),
        ("b1 b2 e", "b1 b2", "e"),
        ("s b1 e", "b1", "s e"),
        ("x", "x", ""),
    ],
)
def test_a_part_of_a_loop_runs_in_one_call_and_its_ends_only_with_all_of_it(part: str, wanted: str, local: str) -> None:
    partition = cut(LOOP, part)
    assert calls(partition) == {wanted}
    assert set(partition.stays) == set(local.split())
    assert all(reason == "it begins or ends a loop whose nodes do not all run in one call" for reason in partition.stays.values())


@pytest.mark.parametrize("part", ["s", "e", "s e"])
def test_ends_without_a_body_are_refused_on_the_node(part: str) -> None:
    with pytest.raises(PartitionError, match="begins or ends a loop") as caught:
        cut(LOOP, part)
    assert caught.value.details["nodes"] == sorted(part.split(), key=lambda name: name)


def test_nodes_of_a_body_and_nodes_outside_it_have_calls_of_their_own() -> None:
    assert calls(cut(LOOP, "b1 x")) == {"b1", "x"}
    assert calls(cut(LOOP, "b2 pre post")) == {"b2", "post", "pre"}
    assert calls(cut(BESIDE, "b1 d")) == {"b1", "d"}
    assert calls(cut(BESIDE, "s b1 b2 e d")) == {"d", "b1 b2 e s"}


def test_an_inner_loop_may_run_in_a_call_inside_the_outer_one() -> None:
    assert calls(cut(NESTED, "s b1 e")) == {"b1 e s"}
    assert calls(cut(NESTED, "c1 s b1 e c2")) == {"b1 c1 c2 e s"}
    assert calls(cut(NESTED, "o c1 s b1 e c2 p")) == {"b1 c1 c2 e o p s"}
    assert calls(cut(NESTED, "c1 s b1")) == {"b1", "c1"}
    assert calls(cut(NESTED, "b1 c2")) == {"b1", "c2"}


def test_parts_of_one_loop_on_two_endpoints_run_there() -> None:
    assert calls(cut(LOOP, "b1", "b2")) == {"b1", "b2"}
    assert calls(cut(LOOP, "s b1", "b2 e")) == {"b1", "b2"}
    with pytest.raises(PartitionError, match="begins or ends a loop"):
        cut(LOOP, "s e", "b1 b2")


def test_an_end_is_not_copied_as_the_maker_of_a_value_that_cannot_be_transferred() -> None:
    for part in ("b", "s b", "b e", "draw"):
        with pytest.raises(PartitionError, match=r"cannot be transferred|begins or ends"):
            cut(MODEL, part)
    assert calls(cut(MODEL, "s b e draw")) == {"b draw e load s"}


def test_a_loop_returns_what_its_end_takes_for_the_next_iteration() -> None:
    prompt = {**MODEL, "s": node("Start", count=3), "m": node("Load", name="y"), "b": node("Pass", value=("m", 0))}
    prompt["look"] = node("Pass", value=("s", 3))
    prompt["e"] = node("End", output=("b", 0), next=("b", 0), termination0=("look", 0))
    with pytest.raises(PartitionError, match="cannot be transferred"):
        cut(prompt, "look")


def test_an_output_node_inside_a_loop_keeps_its_ends_local() -> None:
    partition = cut(TERMINATION, "s b1 b2 e")
    assert calls(partition) == {"b1", "b2"}
    assert {"s", "e", "look"} <= partition.prompt.keys()


@pytest.mark.parametrize(
    "kind, reason", [("DYNPROMPT", "reads the other nodes of the running workflow"), ("EXECUTION_LIST", "decides which nodes")]
)
def test_a_class_that_reads_or_changes_the_running_workflow_runs_locally(kind: str, reason: str) -> None:
    odd = {"input": {"required": {"image": ["IMAGE"]}, "hidden": {"it": [kind]}}, "output": ["IMAGE"]}
    schemas = NodeSchemas.from_object_info({**INFO, "Odd": odd}, loops={"Start": "start", "End": "end"})
    prompt = {**LOOP, "b2": node("Odd", image=("b1", 0))}
    partition = partition_prompt(prompt, [Part("part", frozenset(["b1", "b2", "s", "e"]))], schemas)
    assert calls(partition) == {"b1"}
    assert reason in partition.stays["b2"]


# -- property --------------------------------------------------------------------------------------------------------------


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Draw a prompt of filters with loops one after the other, side by side and inside each other."""
    counter = itertools.count()
    prompt: Prompt = {}

    def add(class_type: str, **inputs: Any) -> tuple[str, int]:
        name = str(next(counter))
        prompt[name] = node(class_type, **inputs)
        return name, 0

    def grow(inside: list[tuple[str, int]], outside: list[tuple[str, int]], depth: int) -> list[tuple[str, int]]:
        """Add nodes after the values ``inside``, which belong to the innermost loop, and return the values that nothing uses yet."""
        values = list(inside)
        for _ in range(draw(st.integers(1, 3))):
            chosen = draw(st.sampled_from(values))
            if depth < 2 and draw(st.booleans()):
                start, _ = add("Start", count=2, initial=chosen)
                last = grow([(start, 3)], values + outside, depth + 1)
                links = {f"termination{index}": value for index, value in enumerate(last[1:3])}
                for value in last[3:]:
                    links["termination0"] = add("Filter", image=links["termination0"], other=value)
                values.append(add("End", output=last[0], next=last[0], **links))
            else:
                more = {"other": draw(st.sampled_from(values + outside))} if draw(st.booleans()) else {}
                values.append(add("Filter", image=chosen, **more))
        used = {tuple(value) for each in prompt.values() for value in each["inputs"].values() if is_link(value)}
        return [value for value in values if value not in used] or values[-1:]

    for value in grow([add("Make", seed=1), add("Make", seed=2)], [], 0):
        add("Preview", image=value)
    return prompt


def _inner(prompt: Prompt) -> Iterable[str]:
    return [name for name, each in prompt.items() if each["class_type"] != "Preview"]


@given(prompts(), st.data())
@settings(max_examples=100, deadline=None)
def test_every_placement_leaves_loops_that_comfyui_accepts(prompt: Prompt, data: st.DataObject) -> None:
    of = {name: data.draw(st.integers(0, 2), label=name) for name in _inner(prompt)}
    parts = [Part(f"part {number}", frozenset(name for name, part in of.items() if part == number)) for number in (1, 2)]
    try:
        partition = partition_prompt(prompt, [part for part in parts if part.nodes], SCHEMAS)
    except PartitionError:
        assert {prompt[name]["class_type"] for part in parts for name in part.nodes} & {"Start", "End"}
        return
    check_loops(prompt, partition)
