"""Protection of endpoints: retry budget, circuit breaker and bound of requests in flight, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import random

import pytest

from yggdrasill.errors import EndpointUnreachable, QueueFull, TimedOut
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import Breaker, InFlight, Retry, RetryBudget, RetryPolicy

LOST = EndpointUnreachable("nothing answers")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock) -> Breaker:
    return Breaker(threshold=3, first=1.0, longest=4.0, clock=clock, spread=lambda low, high: high)


def fail(given: Breaker, times: int = 1) -> None:
    for _ in range(times):
        given.failed(LOST)


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    given = breaker(Clock())
    fail(given, 2)
    given.succeeded()
    fail(given, 2)
    assert not given.is_open
    fail(given)
    assert given.is_open
    assert given.refusal().details["down"] is True
    assert given.refusal().message == LOST.message


def test_a_breaker_does_not_draw_from_the_random_numbers_of_the_program() -> None:
    random.seed(5)
    before = random.getstate()
    fail(Breaker(threshold=3), 4)
    assert random.getstate() == before


def test_a_breaker_lets_one_probe_through_when_its_time_is_over() -> None:
    clock = Clock()
    given = breaker(clock)
    fail(given, 3)
    assert not given.may_probe()
    clock.now += 1.0
    assert given.may_probe()
    assert not given.may_probe()
    given.abandoned()
    assert given.may_probe()
    given.succeeded()
    assert not given.is_open


def test_a_breaker_stays_open_for_a_time_that_grows_to_a_limit() -> None:
    clock = Clock()
    given = breaker(clock)
    fail(given, 3)
    waits = []
    for _ in range(4):
        waits.append(given.remaining)
        clock.now += given.remaining
        assert given.may_probe()
        fail(given)
    assert waits == [1.0, 2.0, 4.0, 4.0]


def test_failures_of_requests_that_were_under_way_do_not_lengthen_an_open_breaker() -> None:
    given = breaker(Clock())
    fail(given, 20)
    assert given.remaining == 1.0


def test_the_time_of_a_breaker_is_spread_at_random() -> None:
    found = set()
    for _ in range(20):
        given = Breaker(threshold=1, first=1.0, clock=Clock())
        fail(given)
        found.add(given.remaining)
    assert len(found) > 10
    assert all(0.7 <= seconds <= 1.0 for seconds in found)


def test_failed_retries_are_a_fifth_of_the_requests_and_a_reserve() -> None:
    clock = Clock()
    budget = RetryBudget(reserve=10, per_second=1.0, clock=clock)
    assert [budget.take() for _ in range(10)] == [0.0] * 10
    assert budget.take() == pytest.approx(1.0)
    for _ in range(60):
        budget.requested()
    assert sum(budget.take() == 0.0 for _ in range(50)) == 10
    clock.now += 2.0
    assert [budget.take() == 0.0 for _ in range(3)] == [True, True, False]


def test_a_retry_that_succeeds_returns_its_token() -> None:
    budget = RetryBudget(reserve=1, clock=Clock())
    assert budget.take() == 0.0
    budget.give_back()
    assert budget.take() == 0.0


def test_the_retries_of_all_calls_share_the_budget() -> None:
    budget = RetryBudget(reserve=2, per_second=0.001, clock=Clock())

    async def attempts() -> int:
        tries = 0

        async def act() -> None:
            nonlocal tries
            tries += 1
            raise EndpointUnreachable("gone")

        async def call() -> None:
            with pytest.raises(EndpointUnreachable):
                await Retry(RetryPolicy(first=0.5, later=0.5), budget=budget).persist(act)

        await asyncio.gather(*(call() for _ in range(5)))
        return tries

    assert loop_thread().run(attempts()) == 5 + 2


@pytest.mark.parametrize(
    "error, spare",
    [
        (EndpointUnreachable("gone", down=True, retry_after=0.1), True),
        (QueueFull("full", retry_after=0.1), True),
        (QueueFull("full"), False),
    ],
)
def test_an_endpoint_that_is_down_or_full_is_not_waited_for_if_another_can_take_the_call(
    error: EndpointUnreachable | QueueFull, spare: bool
) -> None:
    with pytest.raises(type(error)):
        loop_thread().run(asyncio.wait_for(Retry(RetryPolicy(first=60.0), spare=spare).pause(error), 0.05))


def test_waiting_for_a_full_queue_ends_with_the_refusal_before_the_deadline() -> None:
    import time

    with pytest.raises(QueueFull):
        loop_thread().run(asyncio.wait_for(Retry(None, time.monotonic() + 0.5).pause(QueueFull("full", retry_after=1.0)), 0.2))
    with pytest.raises(TimedOut):
        loop_thread().run(Retry(RetryPolicy(first=60.0), time.monotonic() + 0.1).pause(EndpointUnreachable("gone", retry_after=5.0)))


def test_requests_over_the_bound_are_sent_in_the_order_in_which_they_came() -> None:
    async def run() -> tuple[list[int], int]:
        gate, order, most, running = InFlight(3), [], 0, 0

        async def request(number: int) -> None:
            nonlocal most, running
            async with gate:
                running += 1
                most = max(most, running)
                order.append(number)
                await asyncio.sleep(0.001)
                running -= 1

        await asyncio.gather(*(request(number) for number in range(20)))
        assert gate.running == 0
        return order, most

    order, most = loop_thread().run(run())
    assert order == list(range(20))
    assert most == 3


@pytest.mark.parametrize("after_turn", [False, True])
def test_a_cancelled_request_leaves_its_place_to_the_next(after_turn: bool) -> None:
    async def run() -> None:
        gate = InFlight(1)
        release = asyncio.Event()

        async def hold() -> None:
            async with gate:
                await release.wait()

        first = asyncio.create_task(hold())
        await asyncio.sleep(0)
        second, third = asyncio.create_task(hold()), asyncio.create_task(hold())
        await asyncio.sleep(0)
        if after_turn:
            release.set()
            await asyncio.sleep(0)
        second.cancel()
        release.set()
        await asyncio.wait_for(asyncio.gather(first, third), 1)
        assert second.cancelled()
        assert gate.running == 0

    loop_thread().run(run())
