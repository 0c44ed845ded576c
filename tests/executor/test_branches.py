"""Branches of a DAG, one after another or at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from yggdrasill.executor import current_run, enter_run
from yggdrasill.executor.branches import run_branches

#: Two branches between ``a`` and ``d``.
ORDER = ["a", "b", "c", "d"]
SOURCES: dict[str, set[str]] = {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}}


@pytest.mark.parametrize("workers", [None, 1])
def test_one_worker_keeps_the_order(workers: int | None) -> None:
    seen: list[str] = []
    run_branches(ORDER, SOURCES, seen.append, workers)
    assert seen == ORDER


def test_independent_branches_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def call(name: str) -> None:
        if name in {"b", "c"}:
            meeting.wait()

    run_branches(ORDER, SOURCES, call, 2)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_nothing_runs_before_what_it_needs(workers: int) -> None:
    order = [f"n{number}" for number in range(40)]
    sources = {name: {order[number // 2]} if number else set() for number, name in enumerate(order)}
    done: set[str] = set()
    early = []

    def call(name: str) -> None:
        if not sources[name] <= done:
            early.append(name)
        done.add(name)

    run_branches(order, sources, call, workers)
    assert (early, done) == ([], set(order))


def failing(names: Mapping[str, Exception], seen: list[str], first: Callable[[], Any] = lambda: None) -> Callable[[str], None]:
    def call(name: str) -> None:
        seen.append(name)
        first()
        if name in names:
            raise names[name]

    return call


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_failure_nothing_new_starts(workers: int) -> None:
    seen: list[str] = []
    with pytest.raises(KeyError):
        run_branches(ORDER, SOURCES, failing({"a": KeyError("a")}, seen), workers)
    assert seen == ["a"]


def test_of_several_failures_the_first_in_order_is_raised() -> None:
    meeting = threading.Barrier(2, timeout=20)
    names = {"b": KeyError("b"), "c": ValueError("c")}
    with pytest.raises(KeyError):
        run_branches(["b", "c"], {"b": set(), "c": set()}, failing(names, [], meeting.wait), 2)


def test_every_branch_has_the_context_and_the_grad_mode_of_the_caller() -> None:
    seen = {}

    def call(name: str) -> None:
        seen[name] = (current_run().seed, torch.is_grad_enabled(), torch.is_inference_mode_enabled())

    with enter_run(seed=6):
        run_branches(ORDER, SOURCES, call, 2)
        assert set(seen.values()) == {(6, True, False)}
        with torch.no_grad():
            run_branches(ORDER, SOURCES, call, 2)
        assert set(seen.values()) == {(6, False, False)}
        with torch.inference_mode():
            run_branches(ORDER, SOURCES, call, 2)
        assert set(seen.values()) == {(6, False, True)}


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True], ids=repr)
def test_a_count_of_workers_is_at_least_one(workers: Any) -> None:
    with pytest.raises(ValueError, match="max_workers must be an integer of at least 1"):
        run_branches(ORDER, SOURCES, lambda name: None, workers)
