"""Protection of endpoints from their callers: retry policy, retry budget, circuit breaker and the bound of requests in flight."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from yggdrasill.errors import EndpointUnreachable, QueueFull, TimedOut

__all__ = ["Breaker", "InFlight", "Retry", "RetryBudget", "RetryPolicy", "while_alive"]

Result = TypeVar("Result")
Clock = Callable[[], float]
ALIVE_SECONDS = 15.0
"""How often an endpoint that works on a response is checked for being alive."""
_FIRST_DELAY = 0.05
_MAX_DELAY = 2.0
#: The state of the module ``random`` belongs to the programs that seed it.
_SPREAD = random.Random()  # noqa: S311 - not for secrets


@dataclass(frozen=True)
class RetryPolicy:
    """Seconds without a response before giving up: ``first`` for an endpoint that has not answered this call yet, ``later`` for one that
    has.
    """

    first: float = 2.0
    later: float = 60.0


class RetryBudget:
    """Token bucket of the retries to one endpoint, so that its callers together do not flood an endpoint that fails.

    Each request adds ``ratio`` tokens, each second ``per_second``, up to ``reserve``; each retry takes one and returns it if it succeeds.
    """

    def __init__(self, *, ratio: float = 0.2, reserve: float = 20.0, per_second: float = 1.0, clock: Clock = time.monotonic) -> None:
        self._ratio, self._reserve, self._per_second, self._clock = ratio, reserve, per_second, clock
        self._tokens, self._at = reserve, clock()

    @property
    def tokens(self) -> float:
        """Return the present number of tokens."""
        now = self._clock()
        self._add((now - self._at) * self._per_second)
        self._at = now
        return self._tokens

    def requested(self) -> None:
        """Record a request that is not a retry."""
        self._add(self._ratio)

    def take(self) -> float:
        """Take a token for a retry and return 0, or return the seconds until one is available."""
        if self.tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_second

    def give_back(self) -> None:
        """Return the token of a retry that succeeded."""
        self._add(1.0)

    def _add(self, tokens: float) -> None:
        self._tokens = min(self._tokens + tokens, self._reserve)


class Breaker:
    """Circuit breaker of one endpoint. After ``threshold`` connection failures in a row it is open: the endpoint counts as down.

    It stays open for a time that doubles from ``first`` to ``longest`` seconds, shortened at random by up to 30 %. Then `may_probe`
    returns True to one caller, whose probe closes the breaker or opens it for longer.
    """

    def __init__(
        self,
        *,
        threshold: int = 5,
        first: float = 0.25,
        longest: float = 5.0,
        clock: Clock = time.monotonic,
        spread: Callable[[float, float], float] = _SPREAD.uniform,
    ) -> None:
        self._threshold, self._first, self._longest = threshold, first, longest
        self._clock, self._spread = clock, spread
        self._failures = 0
        self._duration = first
        self._until: float | None = None
        self._probing = False
        self._message = ""

    @property
    def is_open(self) -> bool:
        """Return whether the endpoint counts as down."""
        return self._until is not None

    @property
    def remaining(self) -> float:
        """Return the seconds until the next probe; 0 if the breaker is closed or the probe is due."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    def may_probe(self) -> bool:
        """Return True to one caller once the breaker has been open for its time; that caller reports the result of a request."""
        if self._until is None or self._probing or self.remaining > 0:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Record a response of any kind: the endpoint is up."""
        self._failures, self._duration, self._until, self._probing = 0, self._first, None, False

    def failed(self, error: EndpointUnreachable) -> None:
        """Record a connection failure."""
        self._failures += 1
        self._message = error.message
        was_open, self._probing = self._until is not None, False
        if self._failures < self._threshold or (was_open and self.remaining > 0):
            return
        self._until = self._clock() + self._duration * self._spread(0.7, 1.0)
        self._duration = min(2 * self._duration, self._longest)

    def abandoned(self) -> None:
        """Record that the probe was cancelled: another caller may probe."""
        self._probing = False

    def refusal(self) -> EndpointUnreachable:
        """Return the error of a request that is not sent because the breaker is open."""
        wait = max(self.remaining, _FIRST_DELAY)
        return EndpointUnreachable(self._message, down=True, retry_after=round(wait, 3), failures=self._failures)


class InFlight:
    """Bound of requests in flight. Requests over ``limit`` wait, and are sent in the order in which they came."""

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_busy(self) -> bool:
        """Return whether at least half of the limit is in use."""
        return 2 * self.running >= self.limit

    async def __aenter__(self) -> None:
        if self.running < self.limit and not self._waiting:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        """Pass the place to the first waiting request, or free it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                return
        self.running -= 1


class Retry:
    """Retry state of one call: whether the endpoint ever answered, and since when it is lost. ``deadline`` is monotonic time.

    ``spare``: another endpoint, or a local fallback, can take the call. Then a full or known lost endpoint that has not accepted the call
    is not waited for. ``budget`` limits the retries of all calls to the endpoint.
    """

    def __init__(
        self,
        retry_policy: RetryPolicy | None = None,
        deadline: float | None = None,
        *,
        spare: bool = False,
        budget: RetryBudget | None = None,
    ) -> None:
        self.retry_policy = retry_policy or RetryPolicy()
        self.deadline = deadline
        self.spare = spare
        self.budget = budget
        self.reached = False
        self._in_doubt = False
        self._lost_at: float | None = None
        self._delay = _FIRST_DELAY
        self._taken = False

    def answered(self) -> None:
        """Record that the endpoint answered; the time since its loss starts anew."""
        self.reached, self._lost_at, self._delay = True, None, _FIRST_DELAY
        if self._taken and self.budget is not None:
            self.budget.give_back()
        self._taken = False

    async def pause(self, error: EndpointUnreachable | QueueFull) -> None:
        """Wait before the next attempt, or raise ``error`` once the policy allows no more attempts.

        The wait doubles up to 2 s, is at least ``details["retry_after"]`` seconds, if the endpoint requested that, and lasts until the
        budget allows a retry. A full queue is waited for only if the endpoint requested that.

        ``details["reached"]`` is then True if the endpoint answered this call, or was lost after a request may have reached it.
        """
        now = time.monotonic()
        full = isinstance(error, QueueFull)
        self._in_doubt = self._in_doubt or error.details.get("broken") is True
        self._taken = False
        if self._lost_at is None:
            self._lost_at = now
        requested = float(error.details.get("retry_after", 0.0))
        accepted = self.reached or self._in_doubt
        gives_way = self.spare and (full or (error.details.get("down") is True and not accepted))
        # A full queue is the response of an endpoint that is up.
        allowed = self.retry_policy.later if self.reached or full else self.retry_policy.first
        while True:
            spread = random.uniform(0.7, 1.0)  # noqa: S311 - spreads retries, guards nothing
            wait = max(self._delay * spread, requested)
            if gives_way or (full and not requested) or time.monotonic() + wait - self._lost_at > allowed or self._ends_within(wait, full):
                error.details["reached"] = accepted
                raise error
            self.check_deadline()
            await asyncio.sleep(self.left(wait))
            self.check_deadline()
            self._delay = min(2 * self._delay, _MAX_DELAY)
            requested = 0.0 if self.budget is None or error.details.get("down") else self.budget.take()
            if not requested:
                self._taken = not error.details.get("down")
                return

    def _ends_within(self, seconds: float, full: bool) -> bool:
        """Return whether the deadline passes while the call waits for a full queue: the refusal says more than a timeout."""
        return full and self.deadline is not None and time.monotonic() + seconds >= self.deadline

    def check_deadline(self) -> None:
        """Raise `TimedOut` once the deadline has passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise self.timed_out()

    @staticmethod
    def timed_out() -> TimedOut:
        """Return the error of a call that took longer than its timeout."""
        return TimedOut("the call to the endpoint took longer than its timeout; raise the timeout or make the call smaller")

    def left(self, most: float) -> float:
        """Return the seconds until the deadline, at most ``most``."""
        return most if self.deadline is None else max(0.0, min(most, self.deadline - time.monotonic()))

    async def persist(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of ``act``, retried while the endpoint is unreachable or requests that a full queue is tried again."""
        while True:
            try:
                result = await act()
            except (EndpointUnreachable, QueueFull) as error:
                await self.pause(error)
            else:
                self.answered()
                return result


async def while_alive(check: Callable[[], Awaitable[object]], request: Awaitable[Result]) -> Result:
    """Return the result of a request that may take as long as the work it starts, while ``check()`` raises no `EndpointUnreachable`.

    Raises:
        EndpointUnreachable: the endpoint does not answer ``check`` any more.
        Otherwise as the request.
    """
    loop, caller = asyncio.get_running_loop(), asyncio.current_task()
    lost: list[EndpointUnreachable] = []
    probing: list[asyncio.Task[None]] = []

    async def probe() -> None:
        while not lost:
            try:
                await check()
            except EndpointUnreachable as error:
                error.details["broken"] = True
                lost.append(error)
                if caller is not None:
                    caller.cancel()
            await asyncio.sleep(ALIVE_SECONDS)

    timer = loop.call_later(ALIVE_SECONDS, lambda: probing.append(loop.create_task(probe())))
    try:
        return await request
    except asyncio.CancelledError:
        # Before Python 3.11 a task does not count its cancellations.
        uncancel = getattr(caller, "uncancel", int)
        if not lost or uncancel() > 0:
            raise
        raise lost[0] from None
    finally:
        timer.cancel()
        for task in probing:
            task.cancel()
