"""Places of model files: addresses that are allowed, tokens that stay with their host, and what hubs report."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from samples.file_server import FileServer, digest_of
from yggdrasill.errors import AccessDenied, InvalidArgument, UnsupportedFormat
from yggdrasill.version_specs.sources import Facts, SourcePool, hub_url, shown_url

Result = TypeVar("Result")


def in_pool(act: Callable[[SourcePool], Awaitable[Result]], *, allow_private: bool = True, **environment: str) -> Result:
    async def run() -> Result:
        async with SourcePool(allow_private=allow_private, silence=5.0, environment=environment) as pool:
            return await act(pool)

    return asyncio.run(run())


def facts(url: str, **settings: Any) -> Facts:
    return in_pool(lambda pool: pool.open(url).facts(), **settings)


@pytest.mark.parametrize("path", ["plain", "norange", "gate", "cut", "to/to/plain"])
def test_the_size_is_found_out_without_the_file(server: FileServer, path: str) -> None:
    server.add("a", 5_000_000)
    assert facts(f"{server.url}/{path}/a") == Facts(5_000_000)
    assert server.requests[0][1]["range"] == "bytes=0-0"


def test_a_server_may_not_know_the_size(server: FileServer) -> None:
    server.add("a")
    assert facts(f"{server.url}/to/plain/a").nbytes == 300_000


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/a",
        "https://localhost/a",
        "https://[::1]/a",
        "https://169.254.169.254/a",
        "https://10.0.0.1/a",
        "http://example.com/a",
    ],
)
def test_private_addresses_and_plain_http_are_refused(url: str) -> None:
    with pytest.raises(AccessDenied, match=r"The owner may allow such (hosts|urls) with YGGDRASILL_ALLOW_PRIVATE_URLS=1\."):
        facts(url, allow_private=False)


def test_a_name_of_a_private_address_is_refused_where_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(AccessDenied, match=r"'rebound\.example' \(127\.0\.0\.1\) is inside a private network"):
        facts("https://rebound.example/a", allow_private=False)


def test_a_redirect_to_another_scheme_is_refused(server: FileServer) -> None:
    with pytest.raises(InvalidArgument, match=r"'file:///etc/passwd' is not an https url"):
        facts(f"{server.url}/to/file:///etc/passwd")


def test_a_hub_reports_the_hash_of_a_file(server: FileServer) -> None:
    data = server.add("a.safetensors")
    found = facts(f"{server.url}/hub/a.safetensors", HF_TOKEN="hf_secret", HF_ENDPOINT=server.url)
    assert found == Facts(len(data), digest_of(data))


def test_a_token_is_sent_to_no_other_host(server: FileServer) -> None:
    server.add("a")
    hub = server.url.replace("127.0.0.1", "localhost")
    facts(f"{hub}/to/{server.url}/plain/a", HF_TOKEN="hf_secret", HF_ENDPOINT=hub)
    assert [headers.get("authorization") for _, headers in server.requests] == ["Bearer hf_secret", None]


@pytest.mark.parametrize(
    "url, expected",
    [
        ("hf://Comfy-Org/flux/vae/ae.safetensors", "https://huggingface.co/Comfy-Org/flux/resolve/main/vae/ae.safetensors"),
        ("hf://a/b@v1.0/c d.gguf", "https://huggingface.co/a/b/resolve/v1.0/c%20d.gguf"),
        ("https://huggingface.co/a/b/blob/main/c.gguf", "https://huggingface.co/a/b/resolve/main/c.gguf"),
        ("https://huggingface.co/a/b/resolve/main/c.gguf", "https://huggingface.co/a/b/resolve/main/c.gguf"),
        ("https://example.com/a/b/blob/c", "https://example.com/a/b/blob/c"),
    ],
)
def test_urls_of_a_hub_become_urls_of_files(url: str, expected: str) -> None:
    assert hub_url(url, {}) == expected


@pytest.mark.parametrize("url", ["hf://", "hf://a", "hf://a/b", "hf://a/b/", "hf://a//c"])
def test_another_form_of_hub_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="has not the form hf://OWNER/REPOSITORY"):
        hub_url(url, {})


def test_a_url_is_shown_without_query_and_fragment() -> None:
    assert shown_url("https://h/a?token=1#x") == "https://h/a"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_an_object_store_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UnsupportedFormat, match=rf'{scheme}:// needs the package obstore\. Install it: pip install "yggdrasill\[stores\]"'):
        facts(f"{scheme}://bucket/a")
