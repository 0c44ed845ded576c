"""The caller of a request behind reverse proxies: its address, and the scheme and host that it used.

``X-Forwarded-For``, ``X-Forwarded-Proto`` and ``X-Forwarded-Host`` are read only if the connection comes from a trusted proxy. A trusted
proxy must set them or append to them. Of several values the last counts, because the trusted proxy wrote it; of ``X-Forwarded-For``, the last
address that is not itself a trusted proxy. ``Forwarded`` is not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp import web

from yggdrasill.errors import InvalidArgument

__all__ = ["Caller", "Forwarding"]

#: Headers that a proxy adds to requests. A request with one of them does not come from a program on this machine.
_PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")
_MAX_HOPS = 32


@dataclass(frozen=True)
class Caller:
    """The caller of a request. ``address`` is its IP address if known; ``host`` the host and port that it sent; ``scheme`` http or https."""

    address: str | None
    scheme: str
    host: str
    on_this_machine: bool

    @property
    def url(self) -> str:
        """The url at which the caller reached this endpoint, without a path."""
        return f"{self.scheme}://{self.host}"


class Forwarding:
    """Finds the caller of requests. ``trusted`` are addresses or networks of proxies whose headers are believed, as ``10.0.0.0/8``.

    Raises:
        InvalidArgument: one of them is neither an address nor a network.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = []
        for text in trusted:
            try:
                self._trusted.append(ip_network(text.strip(), strict=False))
            except ValueError as error:
                raise InvalidArgument(
                    f"{text[:100]!r} is neither an IP address nor a network. Pass the address from which the proxy connects, such as 127.0.0.1 or "
                    "10.0.0.0/8."
                ) from error

    def caller(self, request: web.Request) -> Caller:
        """Return the caller of a request."""
        address, host = request.remote, request.headers.get("Host", "")
        scheme = "https" if request.secure else "http"
        local = _ends_are_equal(request) and not any(name in request.headers for name in _PROXY_HEADERS)
        if not self._trusts(address):
            return Caller(address, scheme, host, local)
        given = _values(request, "X-Forwarded-Proto")
        if given and given[-1].lower() in ("http", "https"):
            scheme = given[-1].lower()
        host = (_values(request, "X-Forwarded-Host") or [host])[-1]
        return Caller(self._first_untrusted(address, _values(request, "X-Forwarded-For")), scheme, host, local)

    def _first_untrusted(self, address: str | None, hops: list[str]) -> str | None:
        """Return the nearest address that is not a trusted proxy. A value that is not an address ends the search."""
        for hop in hops[: -_MAX_HOPS - 1 : -1]:
            found = _address(hop)
            if found is None:
                return address
            address = str(found)
            if not self._trusts(address):
                return address
        return address

    def _trusts(self, address: str | None) -> bool:
        found = _address(address or "")
        return found is not None and any(found.version == network.version and found in network for network in self._trusted)


def _values(request: web.Request, name: str) -> list[str]:
    return [value.strip() for line in request.headers.getall(name, []) for value in line.split(",") if value.strip()]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in a value, which may have a port or brackets."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _ends_are_equal(request: web.Request) -> bool:
    if request.transport is None:
        return False
    ends = [request.transport.get_extra_info(name) for name in ("peername", "sockname")]
    return all(isinstance(end, tuple) for end in ends) and ends[0][0] == ends[1][0]
