"""Retries: how long a lost endpoint is tried again, and when."""

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
    """Seconds without a response before giving up: ``first`` for an endpoint that has not answered this call yet, ``later`` for one that
    has.
    """

    first: float = 2.0
    later: float = 60.0


class Retry:
    """Retry state of one call: whether the endpoint ever answered, and since when it is lost. ``deadline`` is monotonic time."""

    def __init__(self, retry_policy: RetryPolicy | None = None, deadline: float | None = None) -> None:
        self.retry_policy = retry_policy or RetryPolicy()
        self.deadline = deadline
        self.reached = False
        self._in_doubt = False
        self._lost_at: float | None = None
        self._delay = 0.05

    def answered(self) -> None:
        """Record that the endpoint answered; the time since its loss starts anew."""
        self.reached, self._lost_at, self._delay = True, None, 0.05

    async def pause(self, error: EndpointUnreachable) -> None:
        """Wait before the next attempt, or raise ``error`` once the policy allows no more attempts.

        The wait doubles up to 2 s, and is at least ``details["retry_after"]`` seconds, if the endpoint requested that.

        ``details["reached"]`` is then True if the endpoint answered this call, or was lost after a request may have reached it.
        """
        now = time.monotonic()
        self._in_doubt = self._in_doubt or error.details.get("broken") is True
        if self._lost_at is None:
            self._lost_at = now
        requested = float(error.details.get("retry_after", 0.0))
        allowed = self.retry_policy.later if self.reached else self.retry_policy.first
        if now + max(self._delay, requested) - self._lost_at > allowed:
            error.details["reached"] = self.reached or self._in_doubt
            raise error
        self.check_deadline()
        spread = random.uniform(0.7, 1.0)  # noqa: S311 - spreads retries, guards nothing
        await asyncio.sleep(max(self._delay * spread, requested))
        self._delay = min(2 * self._delay, 2.0)

    def check_deadline(self) -> None:
        """Raise `TimedOut` once the deadline has passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimedOut("the call to the endpoint took longer than its timeout; raise the timeout or make the call smaller")

    def left(self, most: float) -> float:
        """Return the seconds until the deadline, at most ``most``."""
        return most if self.deadline is None else max(0.0, min(most, self.deadline - time.monotonic()))

    async def persist(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of ``act``, retried while the endpoint is unreachable."""
        while True:
            try:
                result = await act()
            except EndpointUnreachable as error:
                await self.pause(error)
            else:
                self.answered()
                return result
