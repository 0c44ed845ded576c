"""Which addresses a webhook may have, and that names lead to public addresses only."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

import pytest

from yggdrasill.errors import InvalidArgument
from yggdrasill.gateway.webhooks import PublicResolver, check_webhook, is_public


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "2002:808:808::1"])
def test_an_address_of_the_public_network_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::1", "2002:a00:1::1", "ff02::1"),
    ],
)
def test_an_address_inside_a_network_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "a.localhost", "169.254.169.254", "[::ffff:10.0.0.1]", "10.0.0.1:80"])
def test_a_webhook_inside_the_network_is_refused_unless_the_owner_allows_it(host: str) -> None:
    with pytest.raises(InvalidArgument, match="inside the network"):
        check_webhook(f"http://{host}/hook", allow_private=False)
    assert check_webhook(f"http://{host}/hook", allow_private=True)


@pytest.mark.parametrize(
    "url", [None, 3, "", "hook", "file:///etc/passwd", "http://", "http://u:p@example.com", "http://a:99999/", "http://" + "a" * 2000]
)
def test_another_text_is_not_a_webhook(url: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be an http"):
        check_webhook(url, allow_private=True)


async def test_a_name_of_a_private_address_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("10.0.0.1", "8.8.8.8")]

    async def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        return found

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", getaddrinfo)
    resolver = PublicResolver()
    assert [entry["host"] for entry in await resolver.resolve("mixed.example", 80)] == ["8.8.8.8"]
    found.pop()
    with pytest.raises(OSError, match="no public address"):
        await resolver.resolve("inside.example", 80)
