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
