"""States of a whole graph: checked before anything changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samples.blocks import Linear
from samples.graphs import bits, graph_of
from yggdrasill.errors import CheckpointMismatch
from yggdrasill.foundation import Graph


class Picky(Linear):
    """Refuses negative biases with an error of its own."""

    block_type = "sample/picky"

    def load_state_dict(self, state: Any, strict: bool = True) -> None:
        if (state["bias"] < 0).any():
            raise RuntimeError("negative bias")
        super().load_state_dict(state, strict)


def graph() -> Graph:
    return graph_of({"a": ("add", {"offset": 1}), "l": "linear", "i": "identity", "s": "accumulate", "c": "composite"})


def test_states_are_by_node_and_empty_ones_are_left_out() -> None:
    assert list(graph().state_dict()) == ["a", "l", "s", "c"]


def test_a_state_goes_back_where_it_came_from() -> None:
    source, target = graph(), graph()
    source.load_state_dict({"a": {"offset": 5}, "s": {"total": torch.ones(2)}}, strict=False)
    target.load_state_dict(source.state_dict())
    assert bits(target.state_dict()) == bits(source.state_dict())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"z": {}}, "graph 'graph' has no node 'z'. Available: 'a', 'c', 'i', 'l', 's'. This state belongs to another graph."),
        ({"i": {"x": 1}}, "node 'i' (sample/identity): state keys do not match; missing none, unexpected ['x']"),
        ({"l": {"bias": torch.zeros(3)}}, "node 'l' (sample/linear): state keys do not match; missing ['weight'], unexpected none"),
        ({"l": [1]}, "node 'l': a block state maps names to values, got list"),
        (
            {"l": {"bias": torch.zeros(4), "weight": torch.zeros(3, 3)}},
            "node 'l' (sample/linear): 'bias' has shape [3], the state's has [4]; it belongs to another model",
        ),
        ([1], "graph 'graph': a state maps node ids to states, got list"),
    ],
    ids=["unknown node", "key too many", "key too few", "no mapping", "shape", "no state"],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(wrong: Any, message: str) -> None:
    target = graph()
    before = bits(target.state_dict())
    state = {"a": {"offset": 99}, **wrong} if isinstance(wrong, dict) else wrong
    with pytest.raises(CheckpointMismatch) as caught:
        target.load_state_dict(state)
    assert str(caught.value) == message
    assert isinstance(caught.value, KeyError)
    assert bits(target.state_dict()) == before


def test_without_strict_unknown_nodes_and_keys_are_passed_over_but_shapes_are_not() -> None:
    target = graph()
    target.load_state_dict({"z": {}, "a": {"offset": 9, "stray": 1}, "l": {"bias": torch.ones(3)}}, strict=False)
    assert target.state_dict()["a"] == {"offset": 9}
    assert target.state_dict()["l"]["bias"].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointMismatch, match="'bias' has shape"):
        target.load_state_dict({"a": {"offset": 10}, "l": {"bias": torch.ones(2)}}, strict=False)
    assert target.state_dict()["a"] == {"offset": 9}


def test_what_a_stateful_block_keeps_may_have_any_shape() -> None:
    target = graph()
    target.load_state_dict({"s": {"total": torch.ones(2)}}, strict=False)
    target.load_state_dict({"s": {"total": torch.ones(3)}}, strict=False)
    assert target.state_dict()["s"]["total"].shape == (3,)


def test_a_block_that_refuses_its_state_is_named() -> None:
    target = Graph()
    target.add_node(Picky(), node_id="p")
    with pytest.raises(CheckpointMismatch, match=r"node 'p' \(sample/picky\) refuses its state: RuntimeError: negative bias") as caught:
        target.load_state_dict({"p": {"bias": torch.full((3,), -1.0), "weight": torch.zeros(3, 3)}})
    assert isinstance(caught.value.__cause__, RuntimeError)
