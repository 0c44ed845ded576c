"""RunPod's API for one serverless endpoint: submission, status, cancellation and health of jobs, over HTTP."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from yggdrasill.errors import (
    AccessDenied,
    EndpointFailed,
    EndpointUnreachable,
    InvalidConfig,
    LimitExceeded,
    PayloadTooLarge,
    ProtocolMismatch,
    QueueFull,
    UnknownEndpoint,
    UnknownJob,
    YggdrasillError,
)
from yggdrasill.remote.channel import CONNECT_SECONDS, MAX_RETRY_AFTER, open_session, translated
from yggdrasill.remote.serverless.options import API_KEY_VARIABLE, BASE_URL_VARIABLE

__all__ = ["DEFAULT_BASE_URL", "RunPodApi", "base_url", "endpoint_id_of", "error_text", "missing_key"]

DEFAULT_BASE_URL = "https://api.runpod.ai/v2"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PATH = re.compile(r"(?<![\w:/.])(/[\w.@+-]+){2,}/?|\b[A-Za-z]:\\[^\s'\"]+")
_MAX_TEXT = 400
_MAX_ANSWER = 32 << 20
_RUNSYNC_WAIT_MS = 1000


def endpoint_id_of(url: str) -> str:
    """Return the id in ``runpod://ID``. Raise `InvalidConfig` for another URL."""
    found = url.removeprefix("runpod://").rstrip("/")
    if not url.startswith("runpod://") or not _ID.fullmatch(found):
        raise InvalidConfig(f"The url of a RunPod endpoint is 'runpod://ENDPOINT_ID', got {url[:100]!r}.")
    return found


def base_url() -> str:
    """Return the address of the API. Raise `InvalidConfig` if the environment names none that a key may be sent to."""
    found = os.environ.get(BASE_URL_VARIABLE, "").strip().rstrip("/") or DEFAULT_BASE_URL
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidConfig(f"{BASE_URL_VARIABLE} must be an http or https URL without credentials, such as {DEFAULT_BASE_URL!r}.")
    return found


def error_text(error: object) -> str:
    """Return the message of a failed job for people, without its traceback and without paths of its machine."""
    if isinstance(error, str):
        try:
            document = json.loads(error)
        except ValueError:
            document = None
        error = document if isinstance(document, Mapping) else error
    if isinstance(error, Mapping):
        error = error.get("error_message") or error.get("message") or error.get("error") or "no message"
    text = _PATH.sub("[path]", " ".join(str(error).split()))
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ..."


def missing_key(url: str) -> InvalidConfig:
    """Return the error for an endpoint without an API key."""
    return InvalidConfig(
        f"Endpoint {url!r} needs an API key of RunPod. Set the environment variable {API_KEY_VARIABLE}, or the one that 'token_env' of the endpoint "
        "names, in the environment of this process."
    )


class RunPodApi:
    """The API of the endpoint ``runpod://ID``, named ``name`` in messages. The key is an argument of each request and appears in no error.

    Use on one event loop. Redirects are not followed.
    """

    def __init__(self, url: str, ca: str | None = None) -> None:
        self.url, self.endpoint_id = url, endpoint_id_of(url)
        self._ca = ca
        self._session: Any = None

    async def run(self, key: str | None, body: bytes, idempotency_key: str, *, sync: bool) -> dict[str, Any]:
        """Queue a job and return ``{"id", "status", ...}``. With ``sync``, by /runsync, whose answer may be that of a finished job."""
        path = f"/runsync?wait={_RUNSYNC_WAIT_MS}" if sync else "/run"
        return await self._request("POST", path, key, body, timeout=120.0, headers={"Idempotency-Key": idempotency_key})

    async def status(self, key: str | None, job_id: str) -> dict[str, Any]:
        """Return ``{"id", "status", "delayTime"?, "executionTime"?, "output"?, "error"?}``. Raise `UnknownJob` for an expired job."""
        return await self._request("GET", f"/status/{quote(job_id, safe='')}", key)

    async def cancel(self, key: str | None, job_id: str) -> None:
        """Cancel a job, also a running one. Raise `UnknownJob`."""
        await self._request("POST", f"/cancel/{quote(job_id, safe='')}", key)

    async def health(self, key: str | None) -> dict[str, Any]:
        """Return ``{"jobs": {...}, "workers": {...}}``."""
        return await self._request("GET", "/health", key, timeout=10.0)

    async def aclose(self) -> None:
        """Close the connections. A later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(
        self,
        method: str,
        path: str,
        key: str | None,
        body: bytes | None = None,
        *,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        import aiohttp

        if not key:
            raise missing_key(self.url)
        if self._session is None:
            self._session = open_session(self._ca)
        url = f"{base_url()}/{self.endpoint_id}{path}"
        sent = {"Authorization": f"Bearer {key}", "Accept": "application/json", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        # a large body is sent in chunks, so that the loop is not blocked
        data = None if body is None else io.BytesIO(body)
        limits = aiohttp.ClientTimeout(total=None, sock_connect=2 * CONNECT_SECONDS, sock_read=timeout)
        with translated(url.partition("?")[0]):
            async with self._session.request(method, url, headers=sent, data=data, timeout=limits, allow_redirects=False) as answer:
                text = await _read(answer)
                status, retry_after = answer.status, answer.headers.get("Retry-After", "")
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if status >= 300:
            raise self._refusal(status, path, document, retry_after)
        if not isinstance(document, dict):
            raise ProtocolMismatch(f"The API at {base_url()} did not answer with a JSON object. Correct {BASE_URL_VARIABLE}.")
        return document

    def _refusal(self, status: int, path: str, document: Any, retry_after: str) -> YggdrasillError:
        """Return the error for a response with an error status."""
        why = error_text(document.get("error", "")) if isinstance(document, Mapping) else ""
        because = f": {why}" if why else ""
        if status in (401, 403):
            return AccessDenied(
                f"RunPod refused the API key for {self.url!r} (HTTP {status}{because}). Check the variable that has the key, and that the key may use this "
                "endpoint.",
                status=status,
            )
        if status == 404 and path.startswith(("/status/", "/cancel/")):
            return UnknownJob(f"RunPod no longer has the job of {self.url!r}: results are kept for 30 minutes after /run. Call again.")
        if status == 404:
            return UnknownEndpoint(f"Unknown RunPod endpoint {self.endpoint_id!r}{because}. Correct the id in 'url: runpod://ID'.")
        if status == 413:
            return PayloadTooLarge(f"RunPod refused the request of {self.url!r} because it is too large{because}.")
        if status == 429:
            seconds = min(float(retry_after), MAX_RETRY_AFTER) if retry_after.isdigit() else 1.0
            return QueueFull(f"The queue of {self.url!r} is full, or requests come too fast{because}.", retry_after=max(seconds, 0.5))
        if status >= 500:
            return EndpointUnreachable(f"RunPod's API for {self.url!r} is not up (HTTP {status}{because})")
        return EndpointFailed(f"RunPod refused a request for {self.url!r} (HTTP {status}{because}).", status=status)


async def _read(answer: Any) -> bytes:
    data = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 20):
        data += chunk
        if len(data) > _MAX_ANSWER:
            raise LimitExceeded(f"An answer of RunPod's API has more than {_MAX_ANSWER} bytes.", bound=_MAX_ANSWER)
    return bytes(data)
