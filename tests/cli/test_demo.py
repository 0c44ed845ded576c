"""The comparison of the demo: rows per stage and pass, and equality of states in every bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from yggdrasill.cli.demo import StageRun, compare, same_state
from yggdrasill.stage import State


@dataclass
class Call:
    """A call to an endpoint, as `observe_calls` reports it."""

    endpoint: str
    started: float
    bytes_moved: int


def stage_run(stage_id: str, start: float, *, ran: bool = True, **blocks: Any) -> StageRun:
    return StageRun(stage_id, 0, ran, start, start + 1, State({int(name[1:]): value for name, value in blocks.items()}))


def test_a_row_has_the_endpoints_times_and_bytes_of_its_stage() -> None:
    placed = [stage_run("author", 0.0, b5="x"), stage_run("creator", 1.5, b3="y")]
    calls = [Call("forge", 0.2, 10), Call("letters", 0.4, 5), Call("forge", 0.6, 1), Call("forge", 9.0, 99)]

    rows = compare(placed, [stage_run("author", 7.0, b5="x"), stage_run("creator", 8.0, b3="y")], calls)

    assert rows[0] == {
        "pass": 1,
        "stage": "author",
        "place": "forge, letters",
        "ran": True,
        "local_s": 1.0,
        "remote_s": 1.0,
        "bytes_moved": 16,
        "equal": True,
    }
    assert (rows[1]["place"], rows[1]["bytes_moved"]) == ("local", 0)


def test_rows_differ_if_a_stage_ran_in_one_run_only_or_left_another_state() -> None:
    def equal(remote: StageRun, local: StageRun) -> bool:
        return bool(compare([remote], [local], [])[0]["equal"])

    assert equal(stage_run("author", 0, b5="x"), stage_run("author", 0, b5="x"))
    assert not equal(stage_run("author", 0, b5="x"), stage_run("author", 0, ran=False, b5="x"))
    assert not equal(stage_run("author", 0, b5="x"), stage_run("author", 0, b5="y"))


def test_states_are_compared_bit_by_bit() -> None:
    zeros = torch.zeros(3)
    assert same_state(State({3: zeros}), State({3: zeros.clone()}))
    assert not same_state(State({3: zeros}), State({3: -zeros}))
    assert not same_state(State({3: zeros}), State({3: zeros}, seed=1))
