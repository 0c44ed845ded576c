"""The rule that urls from outside lead to public addresses only, so that no caller reaches services inside the network through this process.

A request is checked where it connects: `PublicResolver` refuses names of private addresses, also after a redirect or a change of DNS, and
`check_host` refuses addresses that are written as such, which are not resolved. The owner may allow private addresses.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument

__all__ = ["ALLOW_VARIABLE", "PublicResolver", "allows_private", "check_host", "check_resolved_host", "is_public", "refusal"]

ALLOW_VARIABLE = "YGGDRASILL_ALLOW_PRIVATE_URLS"
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_NAT64 = IPv6Address("64:ff9b::")


def allows_private(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the owner allows private addresses with ``YGGDRASILL_ALLOW_PRIVATE_URLS=1``."""
    return environment.get(ALLOW_VARIABLE, "").strip().lower() in ("1", "true", "yes")


def is_public(address: str) -> bool:
    """Return whether an IP address is reachable from the internet, also in its forms inside IPv6."""
    try:
        found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour
        if inside is None and int(found) >> 32 == int(_NAT64) >> 32:
            inside = IPv4Address(int(found) & 0xFFFFFFFF)
        if inside is not None and not is_public(str(inside)):
            return False
    return found.is_global and not found.is_multicast


def check_host(url: str) -> str:
    """Return the host of a url unless it is a private address, or a name of this machine.

    Raises:
        AccessDenied, InvalidArgument: the url has no host, or one that is not written in ASCII (``xn--...``).
    """
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    # others are converted by clients, to addresses too
    if not host or not _HOST.fullmatch(host) or "\\" in url:
        raise InvalidArgument(f"{_shown(url)!r} is not a url with a host in ASCII.")
    bare = host.rstrip(".").lower()
    if bare == "localhost" or bare.endswith(".localhost"):
        raise refusal(host, host)
    try:
        # also the forms 127.1, 0x7f000001 and 2130706433, which the system resolves as addresses
        address = socket.inet_ntoa(socket.inet_aton(bare)) if ":" not in bare else bare
    except OSError:
        return host
    if not is_public(address):
        raise refusal(host, address)
    return host


async def check_resolved_host(url: str) -> None:
    """Raise as `check_host`, also if the name of the host resolves to a private address.

    For programs that connect by themselves, such as git, which may resolve the name to another address later.

    Raises:
        AccessDenied, InvalidArgument, EndpointUnreachable: the name is unknown.
    """
    host = check_host(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise EndpointUnreachable(f"The host {host!r} is unknown ({error.strerror or error}). Check the url and the network.") from error
    for *_, address in found:
        if not is_public(str(address[0])):
            raise refusal(host, str(address[0]))


class PublicResolver(AbstractResolver):
    """A resolver of aiohttp that raises `AccessDenied` for names of private addresses. aiohttp wraps it in a ClientConnectorError."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            if not is_public(each["host"]):
                raise refusal(host, each["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


def refusal(host: str, address: str) -> AccessDenied:
    """Return the error for a host with a private address."""
    where = f"The host {host!r}" if host == address else f"The host {host!r} ({address})"
    return AccessDenied(f"{where} is inside a private network. The owner may allow such hosts with {ALLOW_VARIABLE}=1.", reason="private")


def _shown(url: str) -> str:
    """Return a url for a message, without a query that may contain a secret."""
    return url.partition("?")[0][:200]
