"""What a client's URL may name."""

from __future__ import annotations

import pytest

from samples.small_server import small_server
from yggdrasill.errors import AccessDenied, EndpointUnreachable, InvalidArgument, LimitExceeded, YggdrasillError
from yggdrasill.worker.failures import code_of
from yggdrasill.worker.fetching import Fetcher

LIMIT = 1000


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://example.com/a",
        "file:///etc/passwd",
        "gopher://example.com",
        "http://",
        "https:///a",
        "http://a b",
        "http://user:pw@example.com/",
        "//example.com",
        None,
        3,
        "http://\u2460.example",
        "javascript:alert(1)",
    ],
)
async def test_what_is_not_a_url_of_http_is_refused(url: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await Fetcher(LIMIT).read(url, what="workflow_url")  # type: ignore[arg-type]
    assert caught.value.details["code"] == "invalid_url"
    assert caught.value.message.startswith("workflow_url")
    assert "pw" not in caught.value.message


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[fe80::1]",
        "[64:ff9b::7f00:1]",
    ],
)
async def test_an_address_inside_the_network_is_refused(host: str) -> None:
    with pytest.raises(AccessDenied) as caught:
        await Fetcher(LIMIT).read(f"http://{host}/x")
    assert caught.value.details["code"] == "private_url"


async def test_a_name_that_resolves_to_an_address_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from aiohttp.resolver import ThreadedResolver

    async def resolve(self: object, host: str, port: int = 0, family: int = socket.AF_INET) -> list[dict[str, object]]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    with pytest.raises(AccessDenied) as caught:
        await Fetcher(LIMIT).read("http://public.example/x")
    assert caught.value.details["code"] == "private_url"


async def test_a_file_is_read_with_redirects() -> None:
    with small_server({"/a": b"content", "/to": "/a"}) as url:
        assert await Fetcher(LIMIT, private_urls=True).read(f"{url}/to?x=1") == b"content"


@pytest.mark.parametrize(
    "path, code", [("/none", "fetch_failed"), ("/large", "too_large"), ("/ring", "fetch_failed"), ("/file", "invalid_url")]
)
async def test_what_cannot_be_fetched_has_a_code(path: str, code: str) -> None:
    bodies: dict[str, bytes | str] = {"/large": b"x" * 2000, "/ring": "/ring", "/file": "file:///etc/passwd"}
    with small_server(bodies) as url, pytest.raises(YggdrasillError) as caught:
        await Fetcher(LIMIT, private_urls=True).read(url + path)
    assert code_of(caught.value) == code
    assert isinstance(caught.value, (EndpointUnreachable, LimitExceeded, InvalidArgument))


async def test_a_server_that_does_not_answer_is_unreachable() -> None:
    with small_server({}) as url:
        pass
    with pytest.raises(EndpointUnreachable):
        await Fetcher(LIMIT, private_urls=True).read(url)
