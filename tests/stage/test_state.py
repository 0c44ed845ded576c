"""The state: five blocks, fields, and what travels with them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from yggdrasill.errors import InvalidState
from yggdrasill.stage import State, is_filled


def test_a_state_does_not_change() -> None:
    state = State({1: "a"})
    with pytest.raises(InvalidState, match=r"use state\.replace"):
        state.seed = 3


@pytest.mark.parametrize("blocks", [{0: "a"}, {6: "a"}, {"x": "a"}, {True: "a"}, {1.0: "a"}, {"²": "a"}], ids=repr)
def test_there_are_no_blocks_but_1_to_5(blocks: Any) -> None:
    with pytest.raises(InvalidState, match="blocks 1, 2, 3, 4 and 5"):
        State(blocks)


@pytest.mark.parametrize("name", ["", " ", "3", 7, "action", "content"], ids=repr)
def test_a_field_has_a_name_of_its_own(name: Any) -> None:
    with pytest.raises(InvalidState):
        State({}, {name: "x"})


@pytest.mark.parametrize("facts", [{"passes": -1}, {"passes": 1.5}, {"passes": True}, {"seed": "x"}, {"seed": True}], ids=repr)
def test_passes_and_seed_are_integers(facts: dict[str, Any]) -> None:
    with pytest.raises(InvalidState, match="must be an integer"):
        State(**facts)


def test_dicts_of_blocks_by_number_or_text_are_states() -> None:
    state = State.of({1: "a", "2": "b", "mood": "c", 3: None})
    assert (state.blocks, dict(state.fields)) == ({1: "a", 2: "b"}, {"mood": "c"})


def test_to_dict_and_back_is_the_same_state() -> None:
    state = State({1: "a", 3: [1]}, {"mood": "c"}, content={"x": 1}, passes=2, seed=5)
    assert State.from_dict(state.to_dict()).to_dict() == state.to_dict()
    assert State.of(state.to_dict()).to_dict() == state.to_dict()


@pytest.mark.parametrize("form", [{"blocks": {}, "extra": 1}, {"blocks": []}, {"blocks": {}, "fields": []}], ids=repr)
def test_another_form_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(InvalidState, match="a serialised state has"):
        State.from_dict(form)


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))], ids=["copy", "deepcopy", "pickle"]
)
def test_a_state_can_be_copied(clone: Any) -> None:
    state = State({1: [1]}, {"mood": [2]}, content=[3], passes=4, seed=5)
    assert clone(state).to_dict() == state.to_dict()
    assert copy.deepcopy(state)[1] is not state[1]


def test_replace_gives_a_new_state() -> None:
    state = State({1: "a"}, content="old", passes=1, seed=2)
    after = state.replace({2: "b", "mood": "c"}, content="new")
    assert (after.blocks, dict(after.fields), after.content, after.passes, after.seed) == ({1: "a", 2: "b"}, {"mood": "c"}, "new", 1, 2)
    assert (state.blocks, dict(state.fields), state.content) == ({1: "a"}, {}, "old")


def test_only_keeps_some_blocks_and_everything_that_travels_along() -> None:
    state = State({1: "a", 2: "b"}, {"mood": "c"}, content="x", passes=1, seed=2)
    assert state.only([2]).to_dict() == State({2: "b"}, content="x", passes=1, seed=2).to_dict()


@pytest.mark.parametrize("value", [None, "", b"", [], (), {}], ids=repr)
def test_empty_values_are_not_filled(value: Any) -> None:
    assert not is_filled(value)


def test_tensors_and_numbers_are_filled() -> None:
    import torch

    assert is_filled(torch.zeros(0))
    assert is_filled(torch.zeros(2))
    assert is_filled(0)
    assert is_filled(False)


def test_a_state_says_what_is_in_it() -> None:
    assert repr(State({1: "a", 2: ""}, {"mood": 1}, passes=3)) == "<State blocks [1], fields ['mood'], 3 passes>"


# -- equality ---------------------------------------------------------------------------------------------------


def example(**changes: Any) -> State:
    import torch

    given: dict[str, Any] = {"content": {"n": [1, 2.5]}, "passes": 2, "seed": 7, **changes}
    return State({1: "a storm", 3: {"map": torch.arange(6.0).reshape(2, 3)}}, {"mood": "calm"}, **given)


def test_states_with_the_same_values_are_equal() -> None:
    assert example() == example()
    assert State() == State()
    assert State.from_dict(example().to_dict()) == example()


@pytest.mark.parametrize(
    "other",
    [
        example(passes=3),
        example(seed=8),
        example(content={"n": [1, 2.75]}),
        example(content={"n": (1, 2.5)}),
        example().replace({1: "calm"}),
        example().replace({"mood": "wild"}),
        example().replace({2: {}}),
        example().replace({3: {"map": None}}),
    ],
    ids=["passes", "seed", "content", "type", "block", "field", "one block more", "no tensor"],
)
def test_states_that_differ_in_one_part_are_not_equal(other: State) -> None:
    assert example() != other


def test_equality_of_tensors_and_floats_is_that_of_their_bits() -> None:
    import torch

    values = torch.tensor([0.0, 1.0])
    assert State({3: values}) == State({3: values.clone()})
    assert State({3: values}) != State({3: torch.tensor([-0.0, 1.0])})
    assert State({3: values}) != State({3: values.double()})
    assert State({3: values}) != State({3: values.reshape(2, 1)})
    assert State({3: torch.tensor([float("nan")])}) == State({3: torch.tensor([float("nan")])})
    assert State({2: float("nan")}) == State({2: float("nan")})
    assert State({2: 0.0}) != State({2: -0.0})
    assert State({2: 1}) != State({2: True})


def test_a_state_equals_nothing_else_and_has_no_hash() -> None:
    assert State() != {}
    with pytest.raises(TypeError, match="unhashable"):
        hash(State())
