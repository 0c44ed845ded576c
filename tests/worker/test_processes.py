"""Processes as rows in a folder that several workers share."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from yggdrasill.errors import InvalidArgument, StorageFailed, UnknownJob
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, IN_PROGRESS, IN_QUEUE
from yggdrasill.worker.processes import ProcessStore

KINDS = frozenset({"training"})


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stores(tmp_path: Path, clock: Clock) -> tuple[ProcessStore, ProcessStore]:
    return ProcessStore(tmp_path / "p", "one", lease_seconds=10, clock=clock), ProcessStore(
        tmp_path / "p", "two", lease_seconds=10, clock=clock
    )


def test_any_worker_answers_for_a_process(tmp_path: Path, clock: Clock) -> None:
    one, two = stores(tmp_path, clock)
    process = one.create("training", "cats", {"config": {}})
    assert two.get(process.process_id) == process
    assert process.state == IN_QUEUE
    assert "request" not in two.get(process.process_id).summary()


def test_a_process_is_claimed_once(tmp_path: Path, clock: Clock) -> None:
    one, two = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    taken = two.claim(kinds=KINDS, max_attempts=3)
    assert taken is not None
    assert (taken.process_id, taken.state, taken.attempt, taken.owner) == (made.process_id, IN_PROGRESS, 1, "two")
    assert one.claim(kinds=KINDS, max_attempts=3) is None


def test_many_threads_claim_every_process_exactly_once(tmp_path: Path, clock: Clock) -> None:
    store, _ = stores(tmp_path, clock)
    made = {store.create("training", f"p{number}", {}).process_id for number in range(20)}
    claimed: list[str] = []

    def claim(name: str) -> None:
        mine = ProcessStore(tmp_path / "p", name, lease_seconds=10, clock=clock)
        while (process := mine.claim(kinds=KINDS, max_attempts=3)) is not None:
            claimed.append(process.process_id)

    threads = [threading.Thread(target=claim, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(made)


@pytest.mark.parametrize("other", ["claim", "cancel"])
def test_an_attempt_that_another_worker_takes_between_two_steps_is_not_taken_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    one, two = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    taken: list[object] = []
    count = one._last_attempt

    def last_attempt(process_id: str) -> int:
        number = count(process_id)
        if not taken:
            taken.append(two.claim(kinds=KINDS, max_attempts=3) if other == "claim" else two.request_cancel(process_id))
        return number

    monkeypatch.setattr(one, "_last_attempt", last_attempt)
    assert one.claim(kinds=KINDS, max_attempts=3) is None
    assert taken != [None]
    assert one.get(made.process_id).attempt == 1


def test_a_cancel_between_the_steps_of_a_claim_leaves_the_attempt_to_its_worker(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    count = one._last_attempt

    def last_attempt(process_id: str) -> int:
        number = count(process_id)
        two.claim(kinds=KINDS, max_attempts=3)
        return number

    monkeypatch.setattr(one, "_last_attempt", last_attempt)
    assert one.request_cancel(made.process_id).state != CANCELLED
    assert two.is_cancelled(made.process_id)
    assert (two.get(made.process_id).state, two.get(made.process_id).attempt) == (IN_PROGRESS, 1)


def test_a_process_that_its_former_worker_ends_during_a_claim_stays_ended(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    running = one.claim(kinds=KINDS, max_attempts=3)
    assert running is not None
    clock.now += 11
    create = two._create

    def end_first(process_id: str, name: str) -> bool:
        one.finish(running, COMPLETED, output={"files": []})
        return create(process_id, name)

    monkeypatch.setattr(two, "_create", end_first)
    assert two.claim(kinds=KINDS, max_attempts=3) is None
    assert two.get(made.process_id).state == COMPLETED


def test_the_oldest_is_claimed_first_and_the_newest_listed_first(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    made = []
    for number in range(3):
        clock.now += 1
        made.append(one.create("training", str(number), {}).process_id)
    assert [row.process_id for row in one.newest()] == made[::-1]
    taken = one.claim(kinds=KINDS, max_attempts=3)
    assert taken is not None
    assert taken.process_id == made[0]
    assert [row.name for row in one.newest(state=IN_QUEUE, limit=1)] == ["2"]


def test_a_process_whose_worker_died_is_claimed_by_another_after_its_lease(tmp_path: Path, clock: Clock) -> None:
    one, two = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    first = one.claim(kinds=KINDS, max_attempts=3)
    assert first is not None
    clock.now += 9
    assert one.renew(first)
    clock.now += 9
    assert two.claim(kinds=KINDS, max_attempts=3) is None
    clock.now += 2
    assert two.is_lost(two.get(made.process_id))
    second = two.claim(kinds=KINDS, max_attempts=3)
    assert second is not None
    assert (second.attempt, second.owner) == (2, "two")
    assert not one.renew(first)
    assert not one.update(first)
    assert one.finish(first, COMPLETED).state == IN_PROGRESS


def test_a_claim_without_a_lease_ends_too(tmp_path: Path) -> None:
    store = ProcessStore(tmp_path / "p", "one", lease_seconds=0.0)
    made = store.create("training", "cats", {})
    (store.folder_of(made.process_id) / "attempt-1").touch()
    taken = store.claim(kinds=KINDS, max_attempts=3)
    assert taken is not None
    assert taken.attempt == 2


def test_a_process_that_is_lost_in_every_attempt_is_claimed_once_more_to_end_it(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    one.create("training", "cats", {})
    attempts = []
    for _ in range(5):
        taken = one.claim(kinds=KINDS, max_attempts=2)
        attempts.append(None if taken is None else taken.attempt)
        clock.now += 20
    assert attempts == [1, 2, 3, None, None]


def test_a_released_process_is_claimed_at_once(tmp_path: Path, clock: Clock) -> None:
    one, two = stores(tmp_path, clock)
    one.create("training", "cats", {})
    first = one.claim(kinds=KINDS, max_attempts=3)
    assert first is not None
    one.release(first)
    taken = two.claim(kinds=KINDS, max_attempts=3)
    assert taken is not None
    assert taken.attempt == 2


def test_a_final_row_never_changes(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    one.create("training", "cats", {})
    taken = one.claim(kinds=KINDS, max_attempts=3)
    assert taken is not None
    ended = one.finish(taken, COMPLETED, output={"files": []})
    assert one.finish(taken, FAILED, error={"error": "late"}) == ended
    assert one.request_cancel(ended.process_id).state == COMPLETED
    with pytest.raises(InvalidArgument):
        one.finish(taken, IN_PROGRESS)


def test_a_waiting_process_is_cancelled_at_once_and_a_running_one_by_its_worker(tmp_path: Path, clock: Clock) -> None:
    one, two = stores(tmp_path, clock)
    waiting = one.create("training", "cats", {})
    assert two.request_cancel(waiting.process_id).state == CANCELLED
    assert one.claim(kinds=KINDS, max_attempts=3) is None
    running = one.create("training", "dogs", {})
    taken = one.claim(kinds=KINDS, max_attempts=3)
    assert taken is not None
    assert two.request_cancel(running.process_id).state == IN_PROGRESS
    assert one.is_cancelled(running.process_id)


@pytest.mark.parametrize("process_id", [None, "", "nobody", "../../etc", 3, "0" * 12])
def test_an_invalid_process_id_is_refused(tmp_path: Path, clock: Clock, process_id: object) -> None:
    one, _ = stores(tmp_path, clock)
    with pytest.raises(InvalidArgument, match="process_id must be"):
        one.get(process_id)


def test_an_unknown_process_is_named(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    one.create("training", "cats", {})
    with pytest.raises(UnknownJob) as caught:
        one.get("000000000000-00000000")
    assert caught.value.details["code"] == "unknown_process"


def test_a_store_that_is_gone_is_an_error_with_a_code_and_without_its_path(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    taken = one.claim(kinds=KINDS, max_attempts=3)
    assert taken is not None
    shutil.rmtree(tmp_path / "p")
    for action in (lambda: one.get(made.process_id), lambda: one.update(taken), lambda: one.append_log(made.process_id, "x")):
        with pytest.raises(StorageFailed) as caught:
            action()
        assert caught.value.details["code"] == "process_store_lost"
        assert str(tmp_path) not in caught.value.message
    assert not one.renew(taken)


def test_a_damaged_row_is_left_out(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    made, other = one.create("training", "cats", {}), one.create("training", "dogs", {})
    (one.folder_of(made.process_id) / "row.json").write_text("{", encoding="utf-8")
    assert [row.process_id for row in one.newest()] == [other.process_id]


def test_the_log_has_a_tail_that_begins_with_a_line(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    assert one.tail(made.process_id) == ""
    one.append_log(made.process_id, "".join(f"line {number}\n" for number in range(1000)))
    assert one.tail(made.process_id, 20) == "line 998\nline 999\n"


def test_a_resumed_loss_curve_replaces_what_it_computes_again(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    made = one.create("training", "cats", {})
    for step, loss in [(1, 0.5), (2, 0.4), (3, 0.3), (2, 0.41), (3, 0.31), (4, 0.2)]:
        one.add_loss(made.process_id, step, loss)
    assert one.losses(made.process_id) == [[1, 0.5], [2, 0.41], [3, 0.31], [4, 0.2]]
    assert one.losses(made.process_id, most=2)[-1] == [4, 0.2]


def test_a_thousand_processes_are_listed_quickly(tmp_path: Path, clock: Clock) -> None:
    one, _ = stores(tmp_path, clock)
    for number in range(300):
        clock.now += 0.01
        one.create("training", str(number), {})
    assert len(one.newest(limit=100)) == 100
