"""Webhooks: the result of a job is posted to a URL of its client, signed, and again with growing pauses until it is accepted.

The signature is that of Standard Webhooks: ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature`` (``v1,`` and the base64 of the
HMAC-SHA256 of ``ID.TIMESTAMP.BODY``). Requests go to public addresses only, unless the owner of the gateway allows others, and follow no
redirects.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from yggdrasill.errors import AccessDenied, InvalidArgument, YggdrasillError
from yggdrasill.gateway.models import Job
from yggdrasill.gateway.work import Work
from yggdrasill.remote.public_hosts import PublicResolver, check_host

__all__ = ["DELAYS", "Webhooks", "check_webhook", "sign"]

DELAYS = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0)
"""Seconds before each repetition of a delivery that was not accepted."""
_LONGEST_URL = 2000
_SECONDS = 15.0
_LEASE_SECONDS = 60.0
_POLL_SECONDS = 1.0
_AT_ONCE = 16
_LOG = logging.getLogger("yggdrasill.gateway")


def check_webhook(url: Any, *, allow_private: bool) -> str:
    """Return the URL of a webhook.

    Raises:
        InvalidArgument: not an http or https URL, credentials in it, or an address that is not public.
    """
    try:
        is_text = isinstance(url, str) and len(url) <= _LONGEST_URL and url.isascii() and url.isprintable()
        parts = urlsplit(url if is_text else "")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or port == 0:
        raise InvalidArgument(f"The webhook must be an http or https URL of at most {_LONGEST_URL} characters, without user and password.")
    if allow_private:
        return str(url)
    try:
        check_host(str(url))
    except AccessDenied:
        raise InvalidArgument(
            f"The webhook's host {parts.hostname[:100]!r} is inside the network of the gateway. Use a public one, or start the gateway with "
            "--allow-private-webhooks."
        ) from None
    return str(url)


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header ``webhook-signature`` of a message."""
    text = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, text, hashlib.sha256).digest()).decode("ascii")


class Webhooks:
    """Delivers the webhooks of ended jobs. ``describe(job, output)`` returns the body in the dialect of the job."""

    def __init__(
        self,
        work: Work,
        secret: str,
        describe: Callable[[Job, Any], dict[str, Any]],
        *,
        allow_private: bool,
        delays: tuple[float, ...] = DELAYS,
    ) -> None:
        self._work, self._secret, self._describe = work, secret.encode("utf-8"), describe
        self._allow_private, self._delays = allow_private, delays
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Begin to deliver."""
        resolver = None if self._allow_private else PublicResolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, limit=_AT_ONCE, force_close=True, use_dns_cache=False),
            timeout=aiohttp.ClientTimeout(total=_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._task = asyncio.create_task(self._forever())

    async def close(self) -> None:
        """Stop. What was not delivered is due after the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._session is not None:
            await self._session.close()

    def wake(self) -> None:
        """Look for ended jobs now."""
        self._wake.set()

    async def _forever(self) -> None:
        while True:
            try:
                due = await asyncio.wrap_future(self._work.due_webhooks(_AT_ONCE, _LEASE_SECONDS))
                await asyncio.gather(*(self._deliver(job, output) for job, output in due))
            except YggdrasillError as error:
                _LOG.warning("Webhooks wait for the store: %s", error.message)
                due = []
            if not due:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _POLL_SECONDS)
                self._wake.clear()

    async def _deliver(self, job: Job, output: Any) -> None:
        problem = await self._post(job, output)
        again = None if problem is None or job.webhook_attempts >= len(self._delays) else self._delays[job.webhook_attempts]
        if problem is not None:
            host = urlsplit(str(job.webhook)).hostname
            _LOG.info("The webhook of job %s at %s was not accepted (%s); attempt %d", job.job_id, host, problem, job.webhook_attempts + 1)
        await asyncio.wrap_future(self._work.record_webhook(job.job_id, sent=problem is None, again_after=again))

    async def _post(self, job: Job, output: Any) -> str | None:
        """Post the result of a job. Return None if it was accepted, else why not, without the URL."""
        assert self._session is not None  # noqa: S101 - `start` has opened it
        body = json.dumps(self._describe(job, output), separators=(",", ":")).encode()
        message_id, timestamp = f"{job.job_id}.{job.retries}", int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, message_id, timestamp, body),
        }
        try:
            check_webhook(job.webhook, allow_private=self._allow_private)
            async with self._session.post(str(job.webhook), data=body, headers=headers, allow_redirects=False) as answer:
                return None if answer.status < 300 else f"HTTP {answer.status}"
        except InvalidArgument:
            return "the address is not public"
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            return type(error).__name__
