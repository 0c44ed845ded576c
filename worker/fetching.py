"""Downloads from URLs that a client named: only http(s), only public addresses, bounded in size, every redirect checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import aiohttp

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, LimitExceeded, YggdrasillError
from yggdrasill.remote.public_hosts import ALLOW_VARIABLE, PublicResolver, check_host

__all__ = ["Fetcher"]

_CHUNK = 1 << 18
_MAX_REDIRECTS = 5
_MAX_URL = 8000
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Fetcher:
    """Downloads files of at most ``limit`` bytes; with ``private_urls`` also from addresses inside the network."""

    limit: int
    private_urls: bool = False
    seconds: float = 600.0

    async def read(self, url: str, *, limit: int | None = None, what: str = "the url") -> bytes:
        """Return the content at ``url``. Raise as `write`."""
        data = bytearray()
        async for chunk in self._chunks(url, min(self.limit, limit or self.limit), what):
            data += chunk
        return bytes(data)

    async def write(self, url: str, file: BinaryIO, *, limit: int | None = None, what: str = "the url") -> int:
        """Write the content at ``url`` to ``file`` and return the number of bytes.

        Raises:
            InvalidArgument: not an http(s) URL (code ``invalid_url``).
            AccessDenied: it, or a redirect, names an address inside the network (code ``private_url``).
            LimitExceeded: it is larger than the limit. EndpointUnreachable: the server failed (code ``fetch_failed``).
        """
        done = 0
        async for chunk in self._chunks(url, min(self.limit, limit or self.limit), what):
            await asyncio.to_thread(file.write, chunk)
            done += len(chunk)
        return done

    def check(self, url: object, what: str = "the url") -> str:
        """Return the URL if it may be fetched as far as its text shows. Raise as `write`."""
        text = url if isinstance(url, str) and len(url) <= _MAX_URL else ""
        try:
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        except ValueError:
            usable = False
        if not usable or any(ord(sign) <= 32 for sign in text):
            raise InvalidArgument(f"{what} must start with http:// or https://, and name a host and no user.", code="invalid_url")
        if not self.private_urls:
            try:
                check_host(text)
            except AccessDenied:
                raise _private(what) from None
            except InvalidArgument:
                raise InvalidArgument(f"{what} must name a host in ASCII.", code="invalid_url") from None
        return text

    async def _chunks(self, url: str, limit: int, what: str) -> AsyncIterator[bytes]:
        try:
            async with self._response(url, what) as response:
                if (response.content_length or 0) > limit:
                    raise _too_large(what, limit)
                done = 0
                async for chunk in response.content.iter_chunked(_CHUNK):
                    done += len(chunk)
                    if done > limit:
                        raise _too_large(what, limit)
                    yield chunk
        except YggdrasillError:
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if isinstance(error.__cause__, AccessDenied) or isinstance(getattr(error, "os_error", None), AccessDenied):
                raise _private(what) from None
            raise EndpointUnreachable(
                f"Cannot fetch {what} ({type(error).__name__}). Check that it is public and answers.", code="fetch_failed"
            ) from error

    @asynccontextmanager
    async def _response(self, url: str, what: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response after redirects, each of which is checked as the URL is."""
        connector = aiohttp.TCPConnector(resolver=None if self.private_urls else PublicResolver(), use_dns_cache=False)
        timeout = aiohttp.ClientTimeout(total=self.seconds, sock_connect=30.0, sock_read=60.0)
        headers = {"Accept-Encoding": "identity", "User-Agent": "yggdrasill-worker"}
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), headers=headers, trust_env=False
        ) as session:
            for _ in range(_MAX_REDIRECTS + 1):
                url = self.check(url, what)
                async with session.get(url, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        if response.status != 200:
                            raise EndpointUnreachable(f"Cannot fetch {what}: HTTP status {response.status}.", code="fetch_failed")
                        yield response
                        return
                    url = urljoin(url, response.headers.get("Location", ""))
        raise EndpointUnreachable(f"Cannot fetch {what}: more than {_MAX_REDIRECTS} redirects.", code="fetch_failed")


def _private(what: str) -> AccessDenied:
    return AccessDenied(
        f"{what} names an address inside the network, which this worker does not fetch. Use a public URL, or set {ALLOW_VARIABLE}=1 on the worker.",
        code="private_url",
        reason="url",
    )


def _too_large(what: str, limit: int) -> LimitExceeded:
    return LimitExceeded(f"{what} has more than {limit} bytes, the limit of this worker (FETCH_LIMIT).", limit=limit)
