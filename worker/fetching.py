"""Downloads from URLs that a client named: only http(s), only public addresses, bounded in size, every redirect checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urljoin, urlsplit

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Fetcher", "is_public"]

_CHUNK = 1 << 18
_MAX_REDIRECTS = 5
_MAX_URL = 8000
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSLATED = tuple(IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96"))


def is_public(text: str) -> bool:
    """Return whether an IP address belongs to the public internet. Addresses that contain a translated IPv4 address do not."""
    try:
        address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is not None:
            return is_public(str(mapped))
        if any(address in network for network in _TRANSLATED):
            return False
    return address.is_global and not address.is_multicast


@dataclass(frozen=True)
class Fetcher:
    """Downloads files of at most ``limit`` bytes. ``allow`` names hosts (``host`` or ``host:port``) that may be inside the network."""

    limit: int
    allow: Sequence[str] = ()
    seconds: float = 600.0

    async def read(self, url: str, *, limit: int | None = None, what: str = "url") -> bytes:
        """Return the content at ``url``. Raise as `write`."""
        data = bytearray()
        async for chunk in self._chunks(url, min(self.limit, limit or self.limit), what):
            data += chunk
        return bytes(data)

    async def write(self, url: str, file: BinaryIO, *, limit: int | None = None, what: str = "url") -> int:
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

    def check(self, url: object, what: str = "url") -> str:
        """Return the URL if it may be fetched as far as its text shows. Raise as `write`."""
        text = url if isinstance(url, str) else ""
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            parts, host, port = urlsplit(""), "", None
        if parts.scheme not in ("http", "https") or not host or len(text) > _MAX_URL or any(ord(sign) <= 32 for sign in text):
            raise InvalidArgument(f"{what} must be a URL that starts with http:// or https:// and names a host.", code="invalid_url")
        if not self._is_allowed(host, port) and (_is_literal(host) and not is_public(host)):
            raise _private(what)
        return text

    def _is_allowed(self, host: str, port: int | None) -> bool:
        return host in self.allow or f"{host}:{port}" in self.allow

    async def _chunks(self, url: str, limit: int, what: str) -> AsyncIterator[bytes]:
        import aiohttp

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
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if isinstance(error, (AccessDenied, EndpointUnreachable)):
                raise
            denied = _cause(error, AccessDenied)
            if denied is not None:
                raise denied from None
            raise EndpointUnreachable(
                f"Cannot fetch {what}: {type(error).__name__}. Check that the URL is public and answers.", code="fetch_failed"
            ) from error

    @asynccontextmanager
    async def _response(self, url: str, what: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response after redirects, each of which is checked as the URL is."""
        import aiohttp

        connector = aiohttp.TCPConnector(resolver=_resolver(self, what), use_dns_cache=False)
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


def _resolver(fetcher: Fetcher, what: str) -> Any:
    """Return an aiohttp resolver that refuses names with an address inside the network, so that no later lookup can name another one."""
    from aiohttp.abc import AbstractResolver
    from aiohttp.resolver import ThreadedResolver

    class PublicResolver(AbstractResolver):
        def __init__(self) -> None:
            self._inner = ThreadedResolver()

        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
            found = await self._inner.resolve(host, port, family)
            if not fetcher._is_allowed(host, port) and not all(is_public(str(entry["host"])) for entry in found):  # noqa: SLF001
                raise _private(what)
            return list(found)

        async def close(self) -> None:
            await self._inner.close()

    return PublicResolver()


def _is_literal(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _cause(error: BaseException, kind: type[AccessDenied]) -> AccessDenied | None:
    """Return the error of ``kind`` behind an error of aiohttp, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind):
            return seen
        inner = getattr(seen, "os_error", None)
        seen = seen.__cause__ or seen.__context__ or (inner if inner is not seen else None)
    return None


def _private(what: str) -> AccessDenied:
    return AccessDenied(
        f"{what} names an address inside the network, which this worker does not fetch. Use a public URL, or add the host to FETCH_ALLOW.",
        code="private_url",
        reason="url",
    )


def _too_large(what: str, limit: int) -> LimitExceeded:
    return LimitExceeded(f"{what} has more than {limit} bytes, the limit of this worker (FETCH_LIMIT).", limit=limit)
