"""The calls that a run waits for, as whoever observes it is told."""

from __future__ import annotations

from yggdrasill.executor.branches import run_branches
from yggdrasill.remote.observers import observe_waits, waiting


def test_whoever_observes_a_run_is_told_the_calls_of_all_its_places_and_only_what_changed() -> None:
    told: list[list[str]] = []
    with observe_waits(told.append), waiting() as one:
        assert one is not None
        one(["b"])
        one(["b"])
        with waiting() as other:
            assert other is not None
            other(["b", "a"])
            one(["c"])
        one([])
    assert told == [["b"], ["a", "b"], ["a", "b", "c"], ["c"], []]


def test_what_is_learned_too_late_is_of_no_account() -> None:
    told: list[list[str]] = []
    with observe_waits(told.append):
        with waiting() as late:
            pass
        assert late is not None
        late(["a"])
    assert told == []


def test_a_place_that_breaks_waits_no_longer() -> None:
    told: list[list[str]] = []
    with observe_waits(told.append):
        try:
            with waiting() as learn:
                assert learn is not None
                learn(["a"])
                raise ValueError
        except ValueError:
            pass
    assert told == [["a"], []]


def test_branches_wait_for_the_run_that_started_them() -> None:
    told: list[list[str]] = []

    def call(name: str) -> None:
        with waiting() as learn:
            assert learn is not None
            learn([name])

    with observe_waits(told.append):
        run_branches(["a", "b"], {"a": set(), "b": set()}, call, max_workers=2)
    assert told[-1] == []
    assert {key for keys in told for key in keys} == {"a", "b"}


def test_without_an_observer_nothing_is_kept() -> None:
    with waiting() as learn:
        assert learn is None


def test_at_most_64_calls_are_told() -> None:
    told: list[list[str]] = []
    with observe_waits(told.append), waiting() as learn:
        assert learn is not None
        learn(f"{number:03d}" for number in range(100))
    assert [len(keys) for keys in told] == [64, 0]
