"""What an input port makes of several edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samples.graphs import bits, edge, graph_of
from yggdrasill.errors import BlockFailed
from yggdrasill.foundation import Graph

VALUES = ["one", "two", "three"]


def gathering(policy: str, sources: int = 3) -> Graph:
    """Identity nodes ``s0``, ``s1``... that all feed the port of one policy, in reverse order."""
    names = [f"s{number}" for number in range(sources)]
    return graph_of(
        {**dict.fromkeys(names, "identity"), "c": "collect"},
        [f"{name}.y -> c.{policy}" for name in reversed(names)],
        [f"{name}.x = {name}" for name in names],
        ["c.out = out"],
    )


def gather(policy: str, *values: Any) -> Any:
    graph = gathering(policy, len(values))
    return graph.run({f"s{number}": value for number, value in enumerate(values)})["out"][policy]


@pytest.mark.parametrize(
    "policy, values, expected",
    [
        ("concat", ([1], [2], [3]), [3, 2, 1]),
        ("concat", ("a", "b"), "ba"),
        ("concat", ((1,), (2,)), (2, 1)),
        ("concat", (b"a", b"b"), b"ba"),
        ("concat", ([1],), [1]),
        ("sum", (1, 2, 4), 7),
        ("sum", (1.5, 2), 3.5),
        ("first", (1, 2, 3), 3),
        ("dict", (1, 2), {"s1:y": 2, "s0:y": 1}),
    ],
)
def test_values_are_joined_in_the_order_of_their_edges(policy: str, values: tuple[Any, ...], expected: Any) -> None:
    joined = gather(policy, *values)
    assert joined == expected
    assert type(joined) is type(expected)


def test_a_dict_keeps_the_order_of_the_edges() -> None:
    assert list(gather("dict", 1, 2, 3)) == ["s2:y", "s1:y", "s0:y"]


def test_tensors_and_arrays_are_joined_along_their_first_dimension() -> None:
    joined = gather("concat", torch.ones(1, 2), torch.zeros(2, 2))
    assert bits(joined) == bits(torch.cat([torch.zeros(2, 2), torch.ones(1, 2)]))
    array = gather("concat", np.ones((1, 2)), np.zeros((1, 2)))
    assert array.tolist() == [[0, 0], [1, 1]]
    assert bits(gather("sum", torch.ones(2), torch.ones(2))) == bits(torch.full((2,), 2.0))


@pytest.mark.parametrize(
    "policy, values, message",
    [
        ("concat", ([1], "a"), r"cannot concatenate str from s1.y, list from s0.y"),
        ("concat", (1, 2), r"cannot concatenate int from s1.y, int from s0.y"),
        ("concat", (torch.ones(1), [1.0]), r"cannot concatenate list from s1.y, Tensor from s0.y"),
        ("sum", (1, "a"), r"cannot add str from s1.y, int from s0.y"),
        ("sum", (torch.ones(2), torch.ones(3)), r"must match the size"),
        ("concat", (torch.ones(2, 2), torch.ones(2, 3)), r"[Ss]izes of tensors must match"),
    ],
)
def test_values_that_cannot_be_joined_name_node_and_port(policy: str, values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BlockFailed, match=rf"node 'c', input '{policy}': .*{message}") as caught:
        gather(policy, *values)
    assert caught.value.details == {"node": "c", "port": policy}


def test_absent_values_are_left_out_of_what_is_joined() -> None:
    graph = graph_of(
        {"low": "branch", "high": "branch", "c": "collect"},
        [f"{node}.positive -> c.{policy}" for node in ("low", "high") for policy in ("sum", "first", "dict")],
        ["low.x = low", "high.x = high"],
        ["c.out = out"],
    )
    assert graph.run({"low": -1, "high": 2}) == {"out": {"sum": 2, "first": 2, "dict": {"high:positive": 2}}}
    assert graph.run({"low": -1, "high": -2}) == {"out": {}}


def test_an_exposed_value_is_taken_only_if_no_edge_brings_one() -> None:
    graph = graph_of({"b": "branch", "c": "collect"}, ["b.positive -> c.sum"], ["b.x = x", "c.sum = other"], ["c.out = out"])
    assert graph.run({"x": 1, "other": 5}) == {"out": {"sum": 1}}
    assert graph.run({"x": -1, "other": 5}) == {"out": {"sum": 5}}


def test_edges_removed_and_added_again_come_last() -> None:
    graph = gathering("concat")
    graph.remove_edge(edge("s2.y -> c.concat"))
    graph.add_edge(edge("s2.y -> c.concat"))
    assert graph.run({"s0": [0], "s1": [1], "s2": [2]})["out"]["concat"] == [1, 0, 2]


def test_joining_leaves_the_values_as_they_were() -> None:
    first, second = [1], [2]
    assert gather("concat", first, second) == [2, 1]
    assert (first, second) == ([1], [2])
    tensor = torch.ones(2)
    gather("sum", tensor, tensor)
    assert tensor.tolist() == [1, 1]


@pytest.mark.parametrize("policy", ["concat", "sum", "first", "dict"])
def test_a_dry_run_joins_nothing(policy: str) -> None:
    seen = []
    graph = gathering(policy)
    graph.run({}, dry_run=True, callbacks=lambda node, phase, **facts: seen.append(facts.get("inputs")) if node == "c" else None)
    assert seen == [None, {policy: None}]
