"""Slots: released while a job waits for another endpoint, and never lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.http_client import in_background, until
from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken
from yggdrasill.server_ext.headless import HeadlessHost, Lease, Slots


class Room:
    """Slots, and the number of calls of ``on_free``."""

    def __init__(self, count: int = 1) -> None:
        self.freed = 0
        self.slots = Slots(count, self._count)

    def _count(self) -> None:
        self.freed += 1

    def lease(self, token: CancelToken | None = None) -> Lease:
        lease = self.slots.try_lease(token or CancelToken())
        assert lease is not None
        return lease

    @property
    def full(self) -> bool:
        found = self.slots.try_lease(CancelToken())
        if found is not None:
            found.end()
        return found is None


def release_slot(lease: Lease, come_back: threading.Event) -> None:
    with lease.release_slot():
        come_back.wait(10)


def test_there_are_as_many_leases_as_slots() -> None:
    room = Room(2)
    leases = [room.lease(), room.lease()]
    assert room.full
    leases[0].end()
    leases[0].end()
    assert not room.full
    leases[1].end()
    assert room.freed >= 2


def test_a_waiting_job_releases_its_slot_and_has_priority_when_it_resumes() -> None:
    room, back = Room(), threading.Event()
    lease = room.lease()
    waiting = in_background(release_slot, lease, back)
    until(lambda: not room.full)
    other = room.lease()
    back.set()
    time.sleep(0.05)
    assert not waiting.done()
    other.end()
    waiting.result(5)
    assert room.full
    lease.end()
    assert not room.full


def test_no_slot_is_held_while_any_branch_of_a_job_waits_for_an_endpoint() -> None:
    room, first, second = Room(), threading.Event(), threading.Event()
    lease = room.lease()
    branches = [in_background(release_slot, lease, event) for event in (first, second)]
    until(lambda: not room.full)
    first.set()
    branches[0].result(5)
    assert not room.full
    second.set()
    branches[1].result(5)
    assert room.full
    lease.end()
    assert not room.full


def test_a_cancelled_job_neither_waits_for_a_slot_nor_blocks_others() -> None:
    room, back, token = Room(), threading.Event(), CancelToken()
    lease = room.lease(token)
    waiting = in_background(release_slot, lease, back)
    until(lambda: not room.full)
    other = room.lease()
    back.set()
    token.cancel("enough")
    freed = room.freed
    with pytest.raises(Cancelled, match="enough"):
        waiting.result(5)
    assert room.freed > freed
    lease.end()
    assert room.full
    other.end()
    assert not room.full


def test_no_slot_is_lost_after_many_branches() -> None:
    room = Room(2)

    def branch(lease: Lease) -> None:
        for _ in range(20):
            with lease.release_slot():
                time.sleep(0.0005)

    leases = [room.lease(), room.lease()]
    for future in [in_background(branch, lease) for lease in leases for _ in range(4)]:
        future.result(20)
    assert room.full
    for lease in leases:
        lease.end()
    again = [room.lease(), room.lease()]
    assert room.full
    for lease in again:
        lease.end()


class HeadlessTask:
    """A task of a headless host that does ``work(release_slot)``."""

    def __init__(self, key: str | None, work: Callable[[Any], None], priority: int = 0) -> None:
        self.exclusive_key, self._work = key, work
        self.job = SimpleNamespace(token=CancelToken(), priority=priority)

    def execute(self, release_slot: Any) -> None:
        with contextlib.suppress(Cancelled):
            self._work(release_slot)


def test_the_next_call_of_a_stateful_graph_starts_when_the_cancelled_one_ends_without_a_slot() -> None:
    host, events = (
        HeadlessHost(1),
        {name: threading.Event() for name in ("a-waits", "a-back", "a-lost", "a-end", "b-began", "b-end", "c-ran")},
    )

    def work_a(release_slot: Any) -> None:
        try:
            with release_slot():
                events["a-waits"].set()
                events["a-back"].wait(10)
        finally:
            events["a-lost"].set()
            events["a-end"].wait(10)

    def work_b(release_slot: Any) -> None:
        events["b-began"].set()
        events["b-end"].wait(10)

    first = HeadlessTask("graph", work_a)
    host.enqueue(first)  # type: ignore[arg-type]  # it has every member of a task that the host uses
    assert events["a-waits"].wait(5)
    host.enqueue(HeadlessTask(None, work_b))  # type: ignore[arg-type]
    assert events["b-began"].wait(5)
    host.enqueue(HeadlessTask("graph", lambda release_slot: events["c-ran"].set()))  # type: ignore[arg-type]
    first.job.token.cancel("enough")
    events["a-back"].set()
    assert events["a-lost"].wait(5)
    events["b-end"].set()
    until(lambda: host.queue_depth()["running"] == 1)
    time.sleep(0.1)
    events["a-end"].set()
    assert events["c-ran"].wait(3)


def test_tasks_start_by_priority_and_then_in_the_order_of_their_arrival() -> None:
    host, may_start, order = HeadlessHost(1), threading.Event(), []
    host.enqueue(HeadlessTask(None, lambda release_slot: may_start.wait(10)))  # type: ignore[arg-type]
    for number, priority in enumerate((0, 5, -3, 5, 0)):
        host.enqueue(HeadlessTask(None, lambda release_slot, name=(priority, number): order.append(name), priority))  # type: ignore[arg-type, misc]
    may_start.set()
    until(lambda: len(order) == 5)
    assert order == [(5, 1), (5, 3), (0, 0), (0, 4), (-3, 2)]


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a", "b"]), st.integers(-2, 2), st.booleans()),
        max_size=30,
    )
)
@settings(max_examples=40, deadline=None)
def test_tasks_of_one_graph_never_overlap_and_all_but_the_withdrawn_ones_run(entries: list[tuple[str | None, int, bool]]) -> None:
    host, may_start, lock = HeadlessHost(2), threading.Event(), threading.Lock()
    began: list[int] = []
    busy: list[str] = []
    overlaps: list[str] = []

    def work(number: int, key: str | None) -> None:
        with lock:
            began.append(number)
            if key in busy:
                overlaps.append(str(key))
            if key is not None:
                busy.append(key)
        may_start.wait(10)
        with lock:
            if key is not None:
                busy.remove(key)

    tasks = [
        HeadlessTask(key, lambda release_slot, number=number, key=key: work(number, key), priority)  # type: ignore[misc]
        for number, (key, priority, _) in enumerate(entries)
    ]
    for task in tasks:
        host.enqueue(task)  # type: ignore[arg-type]
    withdrawn = {number for number, (_, _, leaves) in enumerate(entries) if leaves and host.withdraw(tasks[number])}  # type: ignore[arg-type]
    may_start.set()
    until(lambda: host.queue_depth() == {"queued": 0, "running": 0, "slots": 2})
    assert sorted(began) == [number for number in range(len(entries)) if number not in withdrawn]
    assert overlaps == []


def test_twenty_times_as_many_tasks_are_queued_and_withdrawn_in_about_twenty_times_the_time() -> None:
    host, may_start = HeadlessHost(1), threading.Event()
    host.enqueue(HeadlessTask("graph", lambda release_slot: may_start.wait(60)))  # type: ignore[arg-type]

    def cpu_seconds(count: int) -> float:
        tasks = [HeadlessTask("graph", lambda release_slot: None) for _ in range(count)]
        began = time.thread_time()
        for task in tasks:
            host.enqueue(task)  # type: ignore[arg-type]
        assert all(host.withdraw(task) for task in reversed(tasks))  # type: ignore[arg-type]
        assert host.queue_depth()["queued"] == 0
        return time.thread_time() - began

    # a queue that is searched for each task takes four hundred times as long
    few = min(cpu_seconds(500) for _ in range(3))
    assert cpu_seconds(10_000) < 100 * few
    may_start.set()


def test_the_memory_of_a_gpu_that_is_not_used_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query would create a CUDA context, which takes some hundred MB of the GPU."""
    asked: list[int] = []

    def memory_of(index: int) -> tuple[int, int]:
        asked.append(index)
        return 1, 2

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 5 if index == 1 else 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory_of)
    assert HeadlessHost().memory() == [{"device": "cuda:1", "free": 1, "total": 2}]
    assert asked == [1]
