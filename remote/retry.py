"""How long a lost endpoint is tried again, and when."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from yggdrasill.errors import EndpointUnreachable, TimedOut

__all__ = ["Retry", "RetryPolicy"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """Seconds without an answer: from an endpoint that has not answered this call yet, and from one that has."""

    first: float = 2.0
    later: float = 60.0


class Retry:
    """One call's memory of its endpoint: whether it ever answered, and since when it does not. ``deadline`` is monotonic time."""

    def __init__(self, retry_policy: RetryPolicy | None = None, deadline: float | None = None) -> None:
        self.retry_policy = retry_policy or RetryPolicy()
        self.deadline = deadline
        self.reached = False
        self._in_doubt = False
        self._lost_at: float | None = None
        self._delay = 0.05

    def answered(self) -> None:
        """The endpoint answered: the clock starts anew when it is lost again."""
        self.reached, self._lost_at, self._delay = True, None, 0.05

    async def pause(self, error: EndpointUnreachable) -> None:
        """Wait before the next try, twice as long each time up to 2 s, or raise ``error`` once the policy allows no more.

        ``details["reached"]`` then says whether the endpoint answered this call, or was lost when it had been asked already.
        """
        now = time.monotonic()
        self._in_doubt = self._in_doubt or error.details.get("broken") is True
        if self._lost_at is None:
            self._lost_at = now
        allowed = self.retry_policy.later if self.reached else self.retry_policy.first
        if now + self._delay - self._lost_at > allowed:
            error.details["reached"] = self.reached or self._in_doubt
            raise error
        self.check_deadline()
        await asyncio.sleep(self._delay * random.uniform(0.7, 1.0))  # noqa: S311 - spreads retries, guards nothing
        self._delay = min(2 * self._delay, 2.0)

    def check_deadline(self) -> None:
        """Raise `TimedOut` once the deadline has passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimedOut("the call to the endpoint took longer than its timeout allows; raise the timeout or call something smaller")

    def left(self, most: float) -> float:
        """Seconds until the deadline, at most ``most``."""
        return most if self.deadline is None else max(0.0, min(most, self.deadline - time.monotonic()))

    async def persist(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """The result of ``act``, tried again for as long as the endpoint is merely unreachable."""
        while True:
            try:
                result = await act()
            except EndpointUnreachable as error:
                await self.pause(error)
            else:
                self.answered()
                return result
