"""Urls from outside lead to public addresses, however a private one is written."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument
from yggdrasill.remote.public_hosts import PublicResolver, allows_private, check_host, check_resolved_host, is_public

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_recognised_in_every_form(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a", "http://LOCALHOST./a", "http://a.localhost/", "http://127.0.0.1:80/", "http://127.1/", "http://2130706433/", "http://0x7f000001/",
        "http://0177.0.0.1/", "http://0/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://169.254.169.254/latest/meta-data", "http://10.0.0.1./",
    ],
)  # fmt: skip
def test_a_private_address_in_a_url_is_refused(url: str) -> None:
    with pytest.raises(
        AccessDenied, match=r"is inside a private network\. The owner may allow such hosts with YGGDRASILL_ALLOW_PRIVATE_URLS=1\."
    ):
        check_host(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "no url",
        "http:///a",
        "http://１２７.0.0.1/",
        "http://127。0。0。1/",
        "http://%3127.0.0.1/",
        "http://a\\@127.0.0.1/",
        "http://[::1/",
    ],
)
def test_a_host_that_clients_would_convert_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a url with a host in ASCII"):
        check_host(url)


def test_a_refused_url_is_shown_without_its_query() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_host("http://ä/a?token=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://example.com/a", "https://8.8.8.8/", "https://xn--bcher-kva.example/a", "https://[2606:4700::1111]/"]
)
def test_a_public_host_is_returned(url: str) -> None:
    assert check_host(url)


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def resolve(self: Any, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0) for address in addresses]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)


async def resolved(host: str) -> list[ResolveResult]:
    return await PublicResolver().resolve(host)


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "8.8.8.8", "10.0.0.7")
    with pytest.raises(AccessDenied, match=r"The host 'rebound\.example' \(10\.0\.0\.7\) is inside a private network"):
        asyncio.run(resolved("rebound.example"))


def test_a_name_with_public_addresses_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "8.8.8.8")
    assert [found["host"] for found in asyncio.run(resolved("dns.example"))] == ["8.8.8.8"]


def test_a_name_is_resolved_for_programs_that_connect_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"inside.example": "192.168.0.9", "outside.example": "8.8.8.8"}

    def getaddrinfo(host: Any, *_: Any, **__: Any) -> list[Any]:
        if host not in answers:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(check_resolved_host("https://outside.example/a"))
    with pytest.raises(AccessDenied, match=r"'inside\.example' \(192\.168\.0\.9\)"):
        asyncio.run(check_resolved_host("https://inside.example/a"))
    with pytest.raises(EndpointUnreachable, match=r"The host 'none\.example' is unknown"):
        asyncio.run(check_resolved_host("https://none.example/a"))


@pytest.mark.parametrize("value, allowed", [("1", True), ("true", True), (" YES ", True), ("0", False), ("", False), ("no", False)])
def test_the_owner_allows_private_addresses_explicitly(value: str, allowed: bool) -> None:
    assert allows_private({"YGGDRASILL_ALLOW_PRIVATE_URLS": value}) is allowed
    assert not allows_private({})
