"""The pairing line: written, read back, and read as people paste it."""

from __future__ import annotations

from typing import Any

import pytest

from samples.scripted_endpoint import Answer, Received, answer, scripted_endpoint
from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.remote import EndpointRegistry
from yggdrasill.remote.endpoint import Endpoint, Pairing, pairing_line, read_pairing
from yggdrasill.remote.loop_thread import loop_thread

URL, TOKEN = "http://10.1.2.3:8188", "s3cret-tok_en"


@pytest.mark.parametrize("name", [None, "forge", "the forge"])
def test_a_line_is_read_as_it_was_written(name: str | None) -> None:
    assert read_pairing(pairing_line(URL, TOKEN, name)) == Pairing(URL, name, TOKEN)


def test_a_pairing_line_is_not_a_command_with_the_token_as_an_argument() -> None:
    assert not pairing_line(URL, TOKEN, "forge").startswith("yggdrasill ")


@pytest.mark.parametrize(
    "line, found",
    [
        (f"on another machine: yggdrasill endpoints add NAME {URL} --token {TOKEN}", Pairing(URL, None, TOKEN)),
        (f"$ yggdrasill endpoints add forge {URL} --token {TOKEN}\n", Pairing(URL, "forge", TOKEN)),
        (f"yggdrasill endpoints add NAME {URL} --token -   (the token is in /data/token)", Pairing(URL, None, None)),
        (f"yggdrasill endpoints add NAME {URL} --token-env FORGE", Pairing(URL, None, None)),
        (f"on another machine: yggdrasill-pairing: forge {URL} {TOKEN}\n", Pairing(URL, "forge", TOKEN)),
        (URL, Pairing(URL)),
        (f"  {URL} {TOKEN} ", Pairing(URL, None, TOKEN)),
        (f"{URL} --token {TOKEN}", Pairing(URL, None, TOKEN)),
        ("10.1.2.3:8188", Pairing(URL)),
        (f"10.1.2.3:8188 {TOKEN}", Pairing(URL, None, TOKEN)),
        ("forge.lan", Pairing("http://forge.lan")),
        ("gpubox:8188", Pairing("http://gpubox:8188")),
        ("[fd00::17]:8188", Pairing("http://[fd00::17]:8188")),
    ],
)
def test_what_people_paste_is_understood(line: str, found: Pairing) -> None:
    assert read_pairing(line) == found


@pytest.mark.parametrize(
    "line",
    [
        "",
        "   ",
        "forge",
        "yggdrasill endpoints add",
        "yggdrasill-pairing:",
        f"yggdrasill-pairing: {URL}",
        f"yggdrasill-pairing: forge {URL} a b",
        f"yggdrasill endpoints add {URL}",
        f"{URL} a b",
        "ftp://host",
        "it's",
        f"{'a' * 5000} {URL}",
    ],
)
def test_anything_else_is_refused_without_repeating_it(line: str) -> None:
    with pytest.raises(InvalidArgument, match="not a pairing line") as raised:
        read_pairing(line)
    assert URL not in raised.value.message


def test_the_token_is_in_no_repr() -> None:
    assert TOKEN not in repr(read_pairing(pairing_line(URL, TOKEN)))


def test_headers_for_a_gateway_are_sent_with_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SECRET", "s3cret")
    config = {
        "url": "http://127.0.0.1:1",
        "headers": {"CF-Access-Client-Id": "forge", "CF-Access-Client-Secret": {"env": "GATEWAY_SECRET"}},
    }

    async def handle(request: Received) -> Answer:
        return answer({"graphs": [], "seen": request.headers})

    with scripted_endpoint(handle) as scripted:
        registry = EndpointRegistry({"forge": {**config, "url": scripted.url}})
        loop_thread().run(registry.client("forge").graphs())
        (request,) = scripted.received
        assert request.headers["CF-Access-Client-Id"] == "forge"
        assert request.headers["CF-Access-Client-Secret"] == "s3cret"
    endpoint = Endpoint.from_config("forge", config, "here")
    assert endpoint.to_config() == config
    assert "s3cret" not in repr(endpoint)
    monkeypatch.delenv("GATEWAY_SECRET")
    with pytest.raises(InvalidConfig, match="needs the environment variable 'GATEWAY_SECRET'"):
        endpoint.sent_headers()


@pytest.mark.parametrize(
    "headers, message",
    [
        ({"Authorization": "Basic x"}, "'Authorization' cannot be an additional header"),
        ({"host": "x"}, "'host' cannot be an additional header"),
        ({"a b": "x"}, "cannot be an additional header"),
        ({"X": "a\r\nY: b"}, "must be printable ASCII"),
        ({"X": {"env": ""}}, "must be printable ASCII"),
        ({"X": {"file": "y"}}, "must be printable ASCII"),
        (["X"], "headers must be a mapping"),
    ],
)
def test_other_headers_are_refused(headers: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Endpoint.from_config("forge", {"url": URL, "headers": headers}, "endpoints.yaml")
