"""Endpoints behind reverse proxies: whose headers are believed, and what they are used for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from samples.endpoints import EndpointProcess
from samples.http_client import Http, error_of, one_node
from samples.reverse_proxy import reverse_proxy
from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.connections import Caller, Forwarding


def caller(trusted: list[str], remote: str, **headers: str) -> Caller:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = make_mocked_request("GET", "/", headers={"Host": "inner:8400", **named}).clone(remote=remote)
    assert isinstance(request, web.BaseRequest)
    return Forwarding(trusted).caller(request)


def test_headers_of_an_untrusted_address_are_ignored() -> None:
    found = caller(["10.0.0.1"], "10.0.0.2", X_Forwarded_For="1.2.3.4", X_Forwarded_Proto="https", X_Forwarded_Host="forge.example")
    assert (found.address, found.url) == ("10.0.0.2", "http://inner:8400")


def test_headers_of_a_trusted_proxy_name_the_caller() -> None:
    found = caller(["10.0.0.0/8"], "10.0.0.2", X_Forwarded_For="1.2.3.4", X_Forwarded_Proto="https", X_Forwarded_Host="forge.example:9443")
    assert (found.address, found.url) == ("1.2.3.4", "https://forge.example:9443")


@pytest.mark.parametrize(
    "given, address",
    [
        ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
        ("6.6.6.6, 1.2.3.4, 10.0.0.7", "1.2.3.4"),
        ("1.2.3.4:5678", "1.2.3.4"),
        ("[2001:db8::5]:443", "2001:db8::5"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("6.6.6.6, unknown", "10.0.0.2"),
        ("10.0.0.9, 10.0.0.8", "10.0.0.9"),
        (", ".join(["6.6.6.6"] + ["10.0.0.3"] * 100), "10.0.0.3"),
        ("", "10.0.0.2"),
    ],
)
def test_the_nearest_address_that_is_no_trusted_proxy_is_the_caller(given: str, address: str) -> None:
    assert caller(["10.0.0.0/8"], "10.0.0.2", X_Forwarded_For=given).address == address


@pytest.mark.parametrize("given, scheme", [("https", "https"), ("http, HTTPS", "https"), ("javascript", "http"), ("", "http")])
def test_the_last_scheme_counts(given: str, scheme: str) -> None:
    assert caller(["::1"], "::1", X_Forwarded_Proto=given).scheme == scheme


def test_what_is_no_address_cannot_be_trusted() -> None:
    with pytest.raises(InvalidArgument, match="neither an IP address nor a network"):
        Forwarding(["proxy.lan"])


@contextlib.contextmanager
def behind(folder: Path, **settings: object) -> Iterator[tuple[EndpointProcess, str]]:
    """Start an endpoint and a proxy in front of it; yield both, the proxy as a url."""
    process = EndpointProcess("behind", folder, plugins=["samples.served_blocks"], **settings).start()
    try:
        with reverse_proxy(process.url) as url:
            yield process, url
    finally:
        process.stop()


def test_an_endpoint_behind_a_trusted_proxy_works_on_any_port(tmp_path: Path) -> None:
    with behind(tmp_path, trusted_proxies=["127.0.0.1"], allow_hosts=["forge.example"], share_folder=True) as (process, proxy):
        direct = Http(process)
        direct.deploy("double", one_node("double"))
        headers = {"X-Test-Host": "forge.example:9443", "X-Test-Proto": "https", "X-Test-For": "203.0.113.9"}
        behind_proxy = Http(process)
        behind_proxy.process = type("Reached", (), {"url": proxy, "token": process.token})()
        behind_proxy.session.headers.update(headers)
        answer = behind_proxy.submit("double", {"x": torch.ones(500_000)})
        urls = [payload["url"] for payload in answer.json()["output"]["payloads"]]
        assert urls
        assert all(url.startswith("https://forge.example:9443/yggdrasill/v1/artifacts/") for url in urls)
        assert behind_proxy.get("/artifacts/folder").json()["folder"] is None
        assert direct.get("/artifacts/folder").json()["folder"] is not None
        # the page's origin is compared with the host that its browser used
        assert behind_proxy.get("/health", headers={"Origin": "https://forge.example:9443"}).status_code == 200
        assert error_of(behind_proxy.get("/health", headers={"Origin": "https://evil.example"})) == (403, "AccessDenied")
        assert error_of(behind_proxy.get("/health", headers={"X-Test-Host": "evil.example", "Authorization": ""})) == (403, "AccessDenied")


def guess(url: str, address: str, number: int) -> list[int]:
    headers = {"X-Test-For": address, "X-Test-Host": "127.0.0.1"}
    tokens = (f"a-wrong-token-{address}-{index}" for index in range(number))
    health = f"{url}/yggdrasill/v1/health"
    return [requests.get(health, headers={**headers, "Authorization": f"Bearer {token}"}, timeout=10).status_code for token in tokens]


def test_wrong_tokens_behind_a_trusted_proxy_count_for_the_address_behind_it(tmp_path: Path) -> None:
    with behind(tmp_path, trusted_proxies=["127.0.0.1"]) as (process, proxy):
        assert guess(proxy, "203.0.113.9", 24)[-1] == 429
        assert guess(proxy, "203.0.113.10", 1) == [401]
        right = {"Authorization": f"Bearer {process.token}", "X-Test-For": "203.0.113.11", "X-Test-Host": "127.0.0.1"}
        assert requests.get(f"{proxy}/yggdrasill/v1/health", headers=right, timeout=10).status_code == 200


def test_wrong_tokens_behind_an_untrusted_proxy_count_for_the_proxy(tmp_path: Path) -> None:
    with behind(tmp_path) as (_, proxy):
        assert guess(proxy, "203.0.113.9", 24)[-1] == 429
        assert guess(proxy, "203.0.113.10", 1) == [429]


def test_an_untrusted_proxy_changes_neither_host_nor_folder(tmp_path: Path) -> None:
    with behind(tmp_path, share_folder=True) as (process, proxy):
        headers = {"Authorization": f"Bearer {process.token}", "X-Test-Host": "evil.example"}
        # the proxy passes its own Host on, which is allowed; the forwarded one is not read
        answer = requests.get(f"{proxy}/yggdrasill/v1/artifacts/folder", headers=headers, timeout=10)
        assert answer.status_code == 200
        assert answer.json()["folder"] is None
