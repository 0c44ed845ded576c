"""Every error and warning of ``validate``, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from samples.graphs import graph_of, sample_registry
from yggdrasill.errors import InvalidStructure
from yggdrasill.foundation import Graph, ValidationResult


def errors(graph: Graph) -> list[str]:
    return graph.validate(strict=False).errors


def test_an_empty_graph_is_valid() -> None:
    assert Graph().validate() == ValidationResult([], [])


def test_a_required_input_that_nothing_feeds_is_an_error() -> None:
    graph = graph_of({"a": "add"}, [], ["a.a"], ["a.out"])
    assert errors(graph) == ["node 'a', input 'b' is required and nothing feeds it; connect it, expose it, or give a default"]


@pytest.mark.parametrize("how", ["edge", "exposed", "default"])
def test_a_required_input_may_be_fed_exposed_or_defaulted(how: str) -> None:
    graph = graph_of(
        {"s": "double", "a": ("add", {"defaults": {"b": 1}} if how == "default" else {})},
        ["s.y -> a.a", *(["s.y -> a.b"] if how == "edge" else [])],
        ["s.x", *(["a.b"] if how == "exposed" else [])],
        ["a.out"],
    )
    assert errors(graph) == []


@pytest.mark.parametrize("kind, key", [("input", "exposed_inputs"), ("output", "exposed_outputs")])
@pytest.mark.parametrize("node, port", [("a", "z"), ("z", "a")])
def test_an_exposed_entry_that_names_no_port_is_an_error(kind: str, key: str, node: str, port: str) -> None:
    config = graph_of({"a": "double"}, [], ["a.x"], ["a.y"]).to_config()
    config[key].append({"node_id": node, "port_name": port, "name": "nowhere"})
    result = Graph.from_config(config, sample_registry()).validate(strict=False)
    assert len(result.errors) == 1
    assert result.errors[0].startswith(f"exposed {kind} 'nowhere': ")


def test_one_name_for_ports_of_different_types_is_an_error() -> None:
    graph = Graph()
    graph.add_node("t", "tokenizer/identity")
    graph.add_node("c", "codec/identity")
    graph.expose_input("t", "text", "x")
    graph.expose_input("c", "encode_image", "x")
    assert errors(graph) == ["exposed input 'x' feeds ports of different types ['image', 'text']; give them different names"]


def test_a_cycle_needs_a_value_when_it_first_runs() -> None:
    graph = graph_of({"a": "double", "b": "double"}, ["a.y -> b.x", "b.y -> a.x"], [], ["b.y"])
    (error,) = errors(graph)
    assert error == (
        "node 'a', input 'x' has no value when the cycle first runs, since b.y -> a.x comes later; "
        "expose the port, add an edge from outside the cycle, or give a default"
    )
    graph.metadata["cycle_order"] = ["b", "a"]
    assert "node 'b', input 'x' has no value when the cycle first runs" in errors(graph)[0]


def test_a_self_loop_needs_a_first_value_too() -> None:
    assert "a.y -> a.x comes later" in errors(graph_of({"a": "double"}, ["a.y -> a.x"], [], ["a.y"]))[0]


@pytest.mark.parametrize("how", ["exposed", "edge", "default"])
def test_a_first_value_may_be_exposed_come_from_outside_or_be_a_default(how: str) -> None:
    graph = graph_of(
        {"s": "double", "a": ("double", {"defaults": {"x": 1}} if how == "default" else {})},
        ["a.y -> a.x", *(["s.y -> a.x"] if how == "edge" else [])],
        ["s.x", *(["a.x"] if how == "exposed" else [])],
        ["a.y", "s.y"],
    )
    assert errors(graph) == []


def test_several_edges_into_a_single_port_are_an_error() -> None:
    graph = graph_of({"a": "double", "b": "double", "c": "double"}, ["a.y -> c.x", "b.y -> c.x"], ["a.x", "b.x"], ["c.y"])
    (error,) = errors(graph)
    assert error == (
        "node 'c', input 'x' takes one value but has 2 edges (a.y -> c.x, b.y -> c.x); remove some, give the port an "
        "aggregation policy, or use one edge from outside a cycle and one inside it"
    )


@pytest.mark.parametrize("edges", [["b.y -> a.x", "a.y -> a.x"], ["s.y -> a.x", "t.y -> a.x", "a.y -> a.x"]], ids=["two carried", "three"])
def test_two_carried_edges_or_three_edges_are_too_many(edges: Sequence[str]) -> None:
    nodes = dict.fromkeys("abst", "double")
    graph = graph_of(nodes, ["a.y -> b.x", *edges], ["a.x", "s.x", "t.x"], [f"{node}.y" for node in nodes])
    assert any("takes one value but has" in error for error in errors(graph))


@pytest.mark.parametrize("policy", ["concat", "sum", "first", "dict"])
def test_an_aggregating_port_takes_any_number(policy: str) -> None:
    graph = graph_of({"a": "double", "b": "double", "c": "collect"}, [f"{n}.y -> c.{policy}" for n in "ab"], ["a.x", "b.x"], ["c.out"])
    assert errors(graph) == []


def test_num_loop_steps_in_the_metadata_must_be_a_count() -> None:
    graph = graph_of({"a": "double"}, [], ["a.x"], ["a.y"], num_loop_steps=-1)
    assert errors(graph) == ["metadata: num_loop_steps must be an integer of at least 0, got -1"]


def test_nodes_out_of_reach_are_warned_about() -> None:
    graph = graph_of({"a": "double", "n": "noise", "m": "mix"}, ["n.noise -> m.terms"], ["a.x"], ["a.y"])
    result = graph.validate()
    assert result.warnings == [
        "node 'n' is not reached from any exposed input",
        "node 'm' is not reached from any exposed input",
        "node 'n' leads to no exposed output",
        "node 'm' leads to no exposed output",
    ]
    assert result.is_valid


def test_cycles_are_legal_and_reach_is_followed_through_them() -> None:
    graph = graph_of({"a": "add", "b": "double", "c": "double"}, ["a.out -> b.x", "b.y -> a.a", "b.y -> c.x"], ["a.a", "a.b"], ["c.y"])
    assert graph.validate() == ValidationResult([], [])


def test_strict_lists_every_error() -> None:
    graph = graph_of({"a": "add", "b": "double"}, [], [], ["a.out", "b.y"])
    with pytest.raises(InvalidStructure, match="graph 'graph' is not valid: node 'a', input 'a'") as caught:
        graph.validate()
    assert caught.value.details["errors"] == errors(graph)
    assert len(errors(graph)) == 3


def test_a_result_takes_over_anothers_messages_with_a_prefix() -> None:
    result = ValidationResult()
    result.add(ValidationResult(["wrong"], ["odd"]), "inner")
    assert result == ValidationResult(["inner: wrong"], ["inner: odd"])
    assert not result.is_valid
