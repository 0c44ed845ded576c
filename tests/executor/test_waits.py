"""The calls that a run waits for, as reported to its observer."""

from __future__ import annotations

from yggdrasill.executor import CancelToken
from yggdrasill.executor.context import observe_waits, waiting
from yggdrasill.executor.workers import WorkerPool, run_branches


def test_an_observer_receives_the_calls_of_all_waiting_locations_and_only_changes() -> None:
    reported: list[list[str]] = []
    with observe_waits(reported.append), waiting() as one:
        assert one is not None
        one(["b"])
        one(["b"])
        with waiting() as other:
            assert other is not None
            other(["b", "a"])
            one(["c"])
        one([])
    assert reported == [["b"], ["a", "b"], ["a", "b", "c"], ["c"], []]


def test_keys_that_arrive_after_the_wait_are_ignored() -> None:
    reported: list[list[str]] = []
    with observe_waits(reported.append):
        with waiting() as late:
            pass
        assert late is not None
        late(["a"])
    assert reported == []


def test_a_location_that_fails_waits_no_longer() -> None:
    reported: list[list[str]] = []
    with observe_waits(reported.append):
        try:
            with waiting() as set_keys:
                assert set_keys is not None
                set_keys(["a"])
                raise ValueError
        except ValueError:
            pass
    assert reported == [["a"], []]


def test_branches_wait_for_the_run_that_started_them() -> None:
    reported: list[list[str]] = []

    def call(step: int, _: CancelToken) -> None:
        with waiting() as set_keys:
            assert set_keys is not None
            set_keys(["ab"[step]])

    pool = WorkerPool(2)
    with observe_waits(reported.append):
        run_branches(pool, [frozenset()] * 2, CancelToken(), call)
    pool.close()
    assert reported[-1] == []
    assert {key for keys in reported for key in keys} == {"a", "b"}


def test_without_an_observer_nothing_is_kept() -> None:
    with waiting() as set_keys:
        assert set_keys is None


def test_at_most_64_calls_are_reported() -> None:
    reported: list[list[str]] = []
    with observe_waits(reported.append), waiting() as set_keys:
        assert set_keys is not None
        set_keys(f"{number:03d}" for number in range(100))
    assert [len(keys) for keys in reported] == [64, 0]
