"""Workers: branches at the same time, one bound for all nested runs, failures and interrupts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.errors import Cancelled
from yggdrasill.executor import CancelToken, current_run, enter_run
from yggdrasill.executor.workers import WorkerPool, check_workers, run_branches

Sources = Sequence[frozenset[int]]

#: Two branches between the steps 0 and 3.
DIAMOND: Sources = (frozenset(), frozenset({0}), frozenset({0}), frozenset({1, 2}))


@contextmanager
def pool_of(limit: int) -> Iterator[WorkerPool]:
    pool = WorkerPool(limit)
    try:
        yield pool
    finally:
        pool.close()
    assert pool.free == limit - 1, "every permit returned, except the one of this thread"


def run(sources: Sources, call: Callable[[int, CancelToken], None], workers: int, token: CancelToken | None = None) -> None:
    with pool_of(workers) as pool:
        run_branches(pool, sources, token or CancelToken(), call)


class Meter:
    """Counts the calls that run at the same time."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1


def test_independent_steps_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def call(step: int, _: CancelToken) -> None:
        if step in {1, 2}:
            meeting.wait()

    run(DIAMOND, call, 2)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_a_step_runs_after_its_sources_and_once(workers: int) -> None:
    sources = [frozenset({number // 2} if number else ()) for number in range(40)]
    done: list[int] = []
    early: list[int] = []

    def call(step: int, _: CancelToken) -> None:
        if not sources[step] <= set(done):
            early.append(step)
        done.append(step)

    run(sources, call, workers)
    assert (early, sorted(done)) == ([], list(range(40)))


@pytest.mark.parametrize("workers", [2, 3])
def test_at_most_the_given_number_of_steps_run_at_the_same_time(workers: int) -> None:
    meter = Meter()

    def call(step: int, _: CancelToken) -> None:
        with meter.counted():
            time.sleep(0.01)

    run([frozenset()] * 12, call, workers)
    assert 1 < meter.peak <= workers


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_one_bound_holds_for_three_levels_of_nested_branches(workers: int) -> None:
    meter = Meter()
    with pool_of(workers) as pool:

        def nested(levels: int) -> Callable[[int, CancelToken], None]:
            def call(step: int, token: CancelToken) -> None:
                if levels:
                    run_branches(pool, [frozenset()] * 3, token, nested(levels - 1))
                    return
                with meter.counted():
                    time.sleep(0.005)

            return call

        run_branches(pool, [frozenset()] * 3, CancelToken(), nested(2))
    assert 1 < meter.peak <= workers


def test_a_nested_run_can_use_the_threads_of_a_run_that_only_waits() -> None:
    meeting = threading.Barrier(3, timeout=20)
    with pool_of(3) as pool:

        def inner(step: int, _: CancelToken) -> None:
            meeting.wait()

        def outer(step: int, token: CancelToken) -> None:
            if step == 1:
                run_branches(pool, [frozenset()] * 3, token, inner)

        run_branches(pool, [frozenset()] * 2, CancelToken(), outer)


def test_a_run_under_a_lock_is_not_blocked_by_workers_that_wait_for_that_lock() -> None:
    lock = threading.Lock()
    started = threading.Event()
    with pool_of(2) as pool:

        def inner(step: int, _: CancelToken) -> None:
            time.sleep(0.02)

        def outer(step: int, token: CancelToken) -> None:
            if step == 0:
                with lock:
                    started.set()
                    run_branches(pool, [frozenset()] * 4, token, inner)
            else:
                assert started.wait(20)
                with lock:
                    pass

        thread = threading.Thread(target=lambda: run_branches(pool, [frozenset()] * 6, CancelToken(), outer), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "deadlock"


def failing(errors: Mapping[int, BaseException], seen: list[int], first: Callable[[], Any] = lambda: None) -> Callable[..., None]:
    def call(step: int, _: CancelToken) -> None:
        seen.append(step)
        first()
        if step in errors:
            raise errors[step]

    return call


def test_after_a_failure_no_ready_step_starts() -> None:
    seen: list[int] = []
    meeting = threading.Barrier(2, timeout=20)

    def call(step: int, token: CancelToken) -> None:
        seen.append(step)
        meeting.wait()
        if step == 0:
            raise KeyError("a")
        while not token.cancelled:
            time.sleep(0.001)

    with pytest.raises(KeyError):
        run([frozenset()] * 6, call, 2)
    assert sorted(seen) == [0, 1]


def test_after_a_failure_nothing_downstream_starts() -> None:
    seen: list[int] = []
    with pytest.raises(KeyError):
        run(DIAMOND, failing({0: KeyError("a")}, seen), 2)
    assert seen == [0]


def test_of_several_failures_the_first_in_order_is_raised() -> None:
    meeting = threading.Barrier(2, timeout=20)
    errors = {0: KeyError("b"), 1: ValueError("c")}
    with pytest.raises(KeyError):
        run([frozenset()] * 2, failing(errors, [], meeting.wait), 2)


def test_a_running_branch_learns_of_a_failure_at_once_and_its_cancelled_error_is_not_raised() -> None:
    started = threading.Event()

    def call(step: int, token: CancelToken) -> None:
        if step == 1:
            assert started.wait(20)
            raise ValueError("the failure")
        started.set()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if token.cancelled:
                raise Cancelled(token.reason)
            time.sleep(0.001)

    token, begin = CancelToken(), time.monotonic()
    with pytest.raises(ValueError, match="the failure"):
        run([frozenset()] * 2, call, 2, token)
    assert time.monotonic() - begin < 10
    assert not token.cancelled, "only the branches are cancelled, not the run above them"


def test_cancelling_the_run_cancels_its_branches() -> None:
    token = CancelToken()
    meeting = threading.Barrier(2, timeout=20)

    def call(step: int, branch: CancelToken) -> None:
        meeting.wait()
        token.cancel("the user left")
        if branch.cancelled:
            raise Cancelled(f"{step}: {branch.reason}")

    with pytest.raises(Cancelled, match="0: the user left"):
        run([frozenset()] * 2, call, 2, token)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__)
def test_an_interrupt_in_a_branch_goes_before_an_ordinary_failure(error: BaseException) -> None:
    meeting = threading.Barrier(2, timeout=20)
    with pytest.raises(type(error)):
        run([frozenset()] * 2, failing({0: ValueError("b"), 1: error}, [], meeting.wait), 2)


def test_an_interrupt_while_the_run_waits_cancels_its_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    with pool_of(2) as pool:
        wait_for = pool.changed.wait_for
        pending = [KeyboardInterrupt()]

        def interrupted(predicate: Callable[[], Any]) -> Any:
            if pending:
                raise pending.pop()
            return wait_for(predicate)

        monkeypatch.setattr(pool.changed, "wait_for", interrupted)
        taken = threading.Event()

        def call(step: int, token: CancelToken) -> None:
            seen.append(step)
            if threading.current_thread() is threading.main_thread():
                assert taken.wait(20)
                return
            taken.set()
            while not token.cancelled:
                time.sleep(0.001)

        with pytest.raises(KeyboardInterrupt):
            run_branches(pool, (frozenset(), frozenset(), frozenset({0, 1})), CancelToken(), call)
    assert sorted(seen) == [0, 1]


def test_a_run_finishes_in_its_own_thread_if_no_other_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    pool = WorkerPool(3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        run_branches(pool, DIAMOND, CancelToken(), lambda step, _: done.append(step))
    assert sorted(done) == [0, 1, 2, 3]


def test_every_branch_has_a_copy_of_the_callers_context_variables() -> None:
    seen = {}
    with enter_run(seed=6):
        run(DIAMOND, lambda step, _: seen.update({step: current_run().seed}), 2)
    assert seen == dict.fromkeys(range(4), 6)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True], ids=repr)
def test_a_number_of_workers_is_an_integer_of_at_least_one(workers: Any) -> None:
    with pytest.raises(ValueError, match="max_workers must be an integer of at least 1"):
        check_workers(workers)


@st.composite
def branching(draw: st.DrawFn) -> tuple[list[frozenset[int]], set[int]]:
    """A random acyclic structure, and the steps that fail."""
    count = draw(st.integers(1, 12))
    sources = [frozenset(draw(st.sets(st.integers(0, step - 1), max_size=3)) if step else ()) for step in range(count)]
    return sources, draw(st.sets(st.integers(0, count - 1), max_size=3))


@given(branching(), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_whatever_fails_the_first_failure_in_order_is_raised_and_nothing_starts_after_it(
    case: tuple[list[frozenset[int]], set[int]], workers: int, random: Any
) -> None:
    sources, failing_steps = case
    lock = threading.Lock()
    events: list[tuple[str, int]] = []
    pauses = [random.random() / 2000 for _ in sources]

    def call(step: int, token: CancelToken) -> None:
        with lock:
            events.append(("start", step))
        time.sleep(pauses[step])
        if step in failing_steps:
            with lock:
                events.append(("fail", step))
            raise KeyError(step)
        with lock:
            events.append(("end", step))

    raised: list[int] = []
    try:
        run(sources, call, workers)
    except KeyError as error:
        raised.append(error.args[0])
    happened = [step for kind, step in events if kind == "fail"]
    assert raised == ([min(happened)] if happened else [])
    ended: set[int] = set()
    running = most = 0
    for kind, step in events:
        if kind == "start":
            assert sources[step] <= ended
        if kind == "end":
            ended.add(step)
        running += 1 if kind == "start" else -1
        most = max(most, running)
    assert most <= workers
    assert running == 0, "everything that started was waited for"
    if not failing_steps:
        assert ended == set(range(len(sources)))
    elif happened:
        # A step may be on its way to its first line when another fails: at most one for each other worker.
        first = events.index(("fail", happened[0]))
        assert sum(kind == "start" for kind, _ in events[first:]) <= workers - 1
