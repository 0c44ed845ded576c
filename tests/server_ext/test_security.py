"""Attacks on an endpoint: credentials, Host and Origin, request bodies, configs, secrets."""

from __future__ import annotations

import gzip
import json
import os
import socket
import stat
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from samples.endpoints import EndpointProcess
from samples.http_client import BASE, SECRET_VALUE, Http, error_of, events_of, one_node
from yggdrasill.errors import AccessDenied, InvalidArgument
from yggdrasill.protocol.statuses import status_of
from yggdrasill.server_ext import auth
from yggdrasill.server_ext.auth import Guard, Signer, TokenFile, load_or_create_secret, resolve_token, rotate_token, url_for_others
from yggdrasill.server_ext.route_table import ROUTES


def ask(http: Http, method: str, path: str, **headers: str) -> requests.Response:
    """Send a request without the default headers of the session."""
    return requests.request(method, http.url + path, headers=headers, timeout=10)


# -- the token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_no_route_responds_without_the_token(server: Http, route: Any) -> None:
    path = route.path.replace("{graph_id}", "double").replace("{job_id}", "x").replace("{hash}", "0" * 64)
    assert error_of(ask(server, route.method, path)) == (401, "AccessDenied")


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong-token", "Basic {token}", "{token}", "Bearer {token}x", "Bearer {cut}", "Bearer \u00e9"]
)
def test_other_credentials_are_refused(server: Http, given: str) -> None:
    token = server.process.token
    header = given.format(token=token, cut=token[:-1]).encode("latin-1")
    answer = requests.get(server.url + "/health", headers={"Authorization": header}, timeout=10)
    assert error_of(answer) == (401, "AccessDenied")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("name", ["token", "access_token", "api_key"])
def test_a_token_in_the_url_is_refused_even_beside_the_right_one(server: Http, name: str) -> None:
    assert error_of(server.get(f"/health?{name}={server.process.token}")) == (401, "AccessDenied")


def test_the_token_file_is_private_and_created_once(tmp_path: Path) -> None:
    token = resolve_token(tmp_path, environment={})
    assert len(token) >= 32
    assert resolve_token(tmp_path, environment={}) == token
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
        (tmp_path / "token").chmod(0o644)
        load_or_create_secret(tmp_path / "token")
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert resolve_token(tmp_path, environment={"YGGDRASILL_TOKEN": "from-environment"}) == "from-environment"
    assert resolve_token(tmp_path, "given-by-the-caller", {"YGGDRASILL_TOKEN": "from-environment"}) == "given-by-the-caller"


@pytest.mark.parametrize("weak", ["short", "fifteen-letters", "with space in it", "line\nbreak-here", "t\u00f6ken-with-umlaut"])
def test_a_weak_token_is_refused(tmp_path: Path, weak: str) -> None:
    with pytest.raises(InvalidArgument, match="token must have"):
        resolve_token(tmp_path, weak)


def test_a_rotated_token_replaces_the_old_one_at_once(tmp_path: Path) -> None:
    tokens: list[str] = []
    guard = Guard(TokenFile(tmp_path, tokens.append))
    old = resolve_token(tmp_path, environment={})
    guard.authenticate(f"Bearer {old}")
    new = rotate_token(tmp_path)
    assert len(new) >= 32
    guard.authenticate(f"Bearer {new}")
    with pytest.raises(AccessDenied, match="wrong"):
        guard.authenticate(f"Bearer {old}")
    assert tokens == [old, new]
    assert os.name != "posix" or stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize("content", ["", "short", None])
def test_a_token_file_that_is_damaged_later_leaves_the_token(tmp_path: Path, content: str | None) -> None:
    guard, token = Guard(TokenFile(tmp_path, lambda found: None)), resolve_token(tmp_path, environment={})
    if content is None:
        (tmp_path / "token").unlink()
    else:
        (tmp_path / "token").write_text(content, encoding="utf-8")
    guard.authenticate(f"Bearer {token}")


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("yggdrasill.server_ext.auth.time.monotonic", lambda: self.now)


def guesses_taken(guard: Guard, address: str, number: int) -> int:
    """Send this number of different wrong tokens, and return how many were compared."""
    compared = 0
    for _ in range(number):
        with pytest.raises(AccessDenied) as caught:
            guard.authenticate(f"Bearer {uuid.uuid4().hex}", address)
        compared += caught.value.details["reason"] == "token"
        assert status_of(caught.value) == (401 if caught.value.details["reason"] == "token" else 429)
    return compared


def test_a_guesser_is_slowed_down_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, guard = Clock(monkeypatch), Guard("the-right-token-of-all")
    assert guesses_taken(guard, "10.0.0.1", 500) == 20
    clock.now += 5.0
    assert guesses_taken(guard, "10.0.0.1", 500) == 5
    with pytest.raises(AccessDenied, match="Too many"):
        guard.authenticate("Bearer the-right-token-of-all", "10.0.0.1")
    guard.authenticate("Bearer the-right-token-of-all", "10.0.0.2")
    clock.now += 1.0
    guard.authenticate("Bearer the-right-token-of-all", "10.0.0.1")


def test_one_outdated_token_is_one_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    guard = Guard("the-right-token-of-all")
    for _ in range(500):
        with pytest.raises(AccessDenied, match="wrong"):
            guard.authenticate("Bearer the-token-of-yesterday", "10.0.0.1")
    guard.authenticate("Bearer the-right-token-of-all", "10.0.0.1")


def test_the_addresses_of_one_site_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    guard = Guard("the-right-token-of-all")
    assert sum(guesses_taken(guard, f"fd00:1:2:3::{number:x}", 1) for number in range(1, 200)) == 20
    assert guesses_taken(guard, "fd00:1:2:4::1", 100) == 20


# -- Host and Origin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8400", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::2]", "a@127.0.0.1@b"]
)
def test_another_host_name_is_refused(server: Http, host: str) -> None:
    for credential in ("", "Bearer a-token-that-is-wrong"):
        answer = server.get("/health", headers={"Host": host, "Authorization": credential})
        assert (answer.status_code == 400 and not answer.text.startswith("{")) or error_of(answer) == (403, "AccessDenied")


@pytest.mark.parametrize("host", ["forge.proxy.runpod.net", "gpubox:8400"])
def test_the_right_token_is_accepted_under_any_host_name(server: Http, host: str) -> None:
    assert server.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_foreign_pages_are_refused_even_with_the_token(server: Http, headers: dict[str, str]) -> None:
    assert error_of(server.get("/health", headers=headers)) == (403, "AccessDenied")
    assert error_of(server.post("/graphs/double/jobs", headers=headers, json={})) == (403, "AccessDenied")


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "LOCALHOST:9", "[::1]:8400", "forge.lan:8400", "forge.lan"])
def test_a_guard_accepts_its_configured_names(host: str) -> None:
    guard = Guard("a-token-of-eight", ["0.0.0.0", "forge.lan", "::"])
    guard.check_source(host, f"http://{host}", "same-origin")
    guard.check_source(host, None, None)


@pytest.mark.parametrize("listening", ["0.0.0.0", "::", ""])
@pytest.mark.parametrize("host", ["192.168.1.20:8188", "192.168.1.20", "[fd00::17]:8188", "10.0.0.7:80"])
def test_literal_addresses_are_accepted_when_listening_on_all_addresses(listening: str, host: str) -> None:
    guard = Guard("a-token-of-eight", [listening])
    guard.check_source(host, f"http://{host}", "same-origin")
    with pytest.raises(AccessDenied, match="may not use this endpoint"):
        guard.check_source(host, "http://evil.example", None)


@pytest.mark.parametrize("host", ["192.168.1.21", "192.168.1.20.evil.example", "evil.example"])
def test_other_addresses_are_refused_when_listening_on_one(host: str) -> None:
    guard = Guard("a-token-of-eight", ["192.168.1.20"])
    guard.check_source("192.168.1.20:8188", None, None)
    with pytest.raises(AccessDenied):
        guard.check_source(host, None, None)


@pytest.mark.parametrize(
    "host", ["192.168.1.20.evil.example", "0x7f.1", "3232235796", "0.0.0.0:8188", "[::]", "224.0.0.1", "1.2.3.4@evil.example"]
)
def test_names_and_special_addresses_are_refused_when_listening_on_all_addresses(host: str) -> None:
    with pytest.raises(AccessDenied):
        Guard("a-token-of-eight", ["0.0.0.0"]).check_source(host, None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "[", "forge.lan.evil", "http://forge.lan@evil/"])
def test_a_guard_refuses_other_names(host: str) -> None:
    with pytest.raises(AccessDenied) as caught:
        Guard("a-token-of-eight", ["0.0.0.0", "forge.lan"]).check_source(host, None, None)
    assert caught.value.details["reason"] == "host"


@pytest.mark.parametrize(
    "host, origin",
    [
        ("forge.lan:80", "http://forge.lan"),
        ("forge.lan", "http://forge.lan:80"),
        ("forge.lan:443", "https://forge.lan"),
        ("forge.lan", "http://forge.lan:8188"),
        ("forge.lan", "https://FORGE.lan:8443"),
    ],
)
def test_default_ports_and_ports_that_a_proxy_dropped_are_equal(host: str, origin: str) -> None:
    Guard("a-token-of-eight", ["forge.lan"]).check_source(host, origin, None)


@pytest.mark.parametrize(
    "host, origin",
    [
        ("forge.lan:8188", "http://forge.lan"),
        ("forge.lan:443", "http://forge.lan"),
        ("forge.lan:8188", "http://forge.lan:8189"),
        ("forge.lan", "http://evil.example"),
        ("forge.lan", "null"),
        ("forge.lan", "file://forge.lan"),
        ("forge.lan:x", "http://forge.lan"),
    ],
)
def test_other_origins_are_refused(host: str, origin: str) -> None:
    with pytest.raises(AccessDenied, match="may not use this endpoint"):
        Guard("a-token-of-eight", ["forge.lan"]).check_source(host, origin, None)


def test_the_names_of_this_machine_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    auth._own_names.cache_clear()
    monkeypatch.setattr("socket.gethostname", lambda: "GPUBox")
    monkeypatch.setattr("socket.getfqdn", lambda: "gpubox.studio.example")
    try:
        guard = Guard("a-token-of-eight", ["0.0.0.0"])
        for host in ("gpubox:8188", "gpubox.local:8188"):
            guard.check_source(host, f"http://{host}", "same-origin")
        for _ in range(100):
            if "gpubox.studio.example" in auth._own_names():
                break
            time.sleep(0.02)
        guard.check_host("gpubox.studio.example")
        with pytest.raises(AccessDenied):
            guard.check_host("gpubox.evil.example")
    finally:
        auth._own_names.cache_clear()


def test_hosts_of_the_environment_are_read_and_a_star_allows_every_name() -> None:
    assert auth.hosts_of_environment({}) == []
    assert auth.hosts_of_environment({"YGGDRASILL_ALLOW_HOSTS": "a.example, b.example *"}) == ["a.example", "b.example", "*"]
    Guard("a-token-of-eight", ["*"]).check_source("x7.proxy.runpod.net", "https://x7.proxy.runpod.net", "same-origin")
    with pytest.raises(AccessDenied):
        Guard("a-token-of-eight", ["*"]).check_source("x7.proxy.runpod.net", "https://evil.example", None)


def test_the_refusal_of_a_name_says_where_it_can_be_added() -> None:
    with pytest.raises(AccessDenied, match=r"'forge\.lan' is not allowed.*--allow-host.*YGGDRASILL_ALLOW_HOSTS"):
        Guard("a-token-of-eight").check_host("forge.lan")
    with pytest.raises(AccessDenied, match=r"'allow_hosts' in settings\.yaml") as caught:
        Guard("a-token-of-eight", setting="'allow_hosts' in settings.yaml").check_host("forge.lan")
    assert "--allow-host" not in caught.value.message


# -- signed urls --------------------------------------------------------------------------------------------------


def test_urls_of_an_endpoint_on_all_addresses_have_an_address_that_others_reach(tmp_path: Path) -> None:
    process = EndpointProcess("open", tmp_path, host="0.0.0.0", allow_hosts=["forge.lan"]).start()
    try:
        http = Http(process)
        http.deploy("double", one_node("double"))
        job = http.submit("double", {"x": torch.ones(100_000)}).json()["job_id"]
        port = process.url.rsplit(":", 1)[1]
        for host in (f"192.168.7.7:{port}", "forge.lan", f"forge.lan:{port}"):
            (payload,) = http.get(f"/jobs/{job}/output", headers={"Host": host}).json()["output"]["payloads"]
            assert payload["url"].startswith(f"http://{host}{BASE}/artifacts/")
        (payload,) = http.get(f"/jobs/{job}/output").json()["output"]["payloads"]
        assert payload["url"].startswith(http.get("/capabilities").json()["peer_url"])
        assert "127.0.0.1" not in payload["url"] or "--peer-url" in process.log()
    finally:
        process.stop()


@pytest.mark.parametrize("address, found", [("192.168.1.20", "http://192.168.1.20:8400"), ("fd00::17", "http://[fd00::17]:8400")])
def test_the_address_of_an_interface_is_used(address: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yggdrasill.server_ext.auth._interface_address", lambda: address)
    assert url_for_others("http://127.0.0.1:8400", "0.0.0.0") == found
    assert url_for_others("http://10.0.0.5:8400", "10.0.0.5") == "http://10.0.0.5:8400"


def test_a_machine_without_an_address_for_others_logs_what_to_pass(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("yggdrasill.server_ext.auth._interface_address", lambda: None)
    assert url_for_others("http://127.0.0.1:8400", "::") == "http://127.0.0.1:8400"
    assert "Pass --peer-url URL" in caplog.text


def test_an_endpoint_on_one_address_ignores_the_callers_host() -> None:
    signer = Signer("key", "http://10.0.0.5:8400/")
    url = signer.url("a" * 64, "http://evil.example")
    assert url is not None
    assert url.startswith("http://10.0.0.5:8400/yggdrasill/v1/artifacts/aaa")


def test_no_new_token_looks_like_an_option_of_a_command(tmp_path: Path) -> None:
    created = [load_or_create_secret(tmp_path / str(number)) for number in range(300)]
    rotated = [rotate_token(tmp_path) for _ in range(300)]
    assert not [token for token in created + rotated if token.startswith("-")]
    assert min(map(len, created + rotated)) >= 43


# -- protocol and bodies ------------------------------------------------------------------------------------------


def test_another_protocol_version_is_named(server: Http) -> None:
    for version in ("0", "3", "two", "-1"):
        answer = server.get("/health", headers={"X-Yggdrasill-Protocol": version})
        assert error_of(answer) == (426, "ProtocolMismatch")
        assert answer.headers["X-Yggdrasill-Protocol"] == "2"
        assert answer.json()["error"]["details"] == {"oldest": 1, "protocol": 2}


def test_every_version_of_the_supported_range_is_answered(server: Http) -> None:
    assert {server.get("/health", headers={"X-Yggdrasill-Protocol": version}).status_code for version in ("1", "2")} == {200}


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "CorruptData"),
    "no JSON": (b"\x89YGG", "CorruptData"),
    "cut short": (b'{"key": "a", "inputs": {"skel', "CorruptData"),
    "NaN": (b'{"key": NaN}', "CorruptData"),
    "a number of a million digits": (b'{"key": ' + b"9" * 50_000 + b"}", "CorruptData"),
    "a list": (b"[1, 2]", "InvalidArgument"),
    "unknown keys": (b'{"key": "a", "inputs": {"skeleton": 1, "payloads": []}, "import": "os"}', "InvalidArgument"),
    "a key of another type": (b'{"key": 5, "inputs": {"skeleton": 1, "payloads": []}}', "InvalidArgument"),
    "no waiting": (b'{"key": "a", "inputs": {"skeleton": 1, "payloads": []}, "wait": -1}', "InvalidArgument"),
    "deep JSON": (b"[" * 30_000 + b"]" * 30_000, "LimitExceeded"),
    "a deep skeleton": (b'{"key": "deep", "inputs": {"skeleton": ' + b"[" * 400 + b"]" * 400 + b', "payloads": []}, "wait": 5}', "LimitExceeded"),
    "a payload that claims much": (
        b'{"key": "claims", "inputs": {"skeleton": {"x": {"$tensor": 0}}, "payloads": [%s]}}'
        % b'{"dtype": "uint8", "shape": [4611686018427387904], "nbytes": 4611686018427387904, "inline": ""}',
        "CorruptData",
    ),
    "an invalid name": (
        b'{"key": "name", "inputs": {"skeleton": 1, "payloads": [{"dtype": "bytes", "shape": [1], "nbytes": 1, "artifact": "../token"}]}}',
        "CorruptData",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_an_invalid_body_gives_one_clear_error(server: Http, name: str) -> None:
    body, expected = BODIES[name]
    answer = server.post("/graphs/double/jobs", data=body)
    error = answer.json().get("error")
    assert error is not None
    assert error["type"] == expected
    assert server.run("double", {"x": 1}) == {"y": 2}


@pytest.mark.parametrize("payloads", [[{}], [{"nbytes": "many"}], [{"dtype": "uint8", "shape": [1], "nbytes": 1, "inline": ""}]])
def test_a_malformed_state_of_a_deployment_is_refused(server: Http, payloads: list[Any]) -> None:
    body = {"kind": "graph", "config": one_node("double"), "state": {"skeleton": {}, "payloads": payloads}}
    for version in ("1", "2"):
        answer = server.put("/graphs/malformed", json=body, headers={"X-Yggdrasill-Protocol": version})
        assert error_of(answer) == (400, "CorruptData")


def test_a_body_of_too_many_items_is_refused_before_it_is_built(server: Http) -> None:
    answer = server.post("/graphs/double/jobs", data=b"[" + b"[]," * 3_000_000 + b"[]]")
    assert error_of(answer) == (400, "LimitExceeded")


def test_compressed_bodies_are_refused_and_not_unpacked(server: Http) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    for path, method in (("/graphs/double/jobs", "POST"), (f"/artifacts/{'0' * 64}", "PUT"), ("/artifacts/batch", "POST")):
        answer = server.session.request(method, server.url + path, data=bomb, headers={"Content-Encoding": "gzip"}, timeout=10)
        assert error_of(answer) == (400, "InvalidArgument")


def test_a_body_over_the_limit_in_chunks_is_refused(small: Http) -> None:
    chunks = (b" " * 10_000 for _ in range(10))
    assert error_of(small.post("/graphs/double/jobs", data=chunks)) == (413, "PayloadTooLarge")


def test_slow_and_broken_connections_do_not_affect_others(server: Http) -> None:
    host = server.process.url.removeprefix("http://")
    address, port = host.split(":")
    for text in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" * 100,
        b"POST " + b"a" * 20_000,
        b"PUT /yggdrasill/v1/artifacts/x HTTP/1.1\r\n",
    ):
        with socket.create_connection((address, int(port))) as connection:
            connection.sendall(text)
    assert server.get("/health").status_code == 200


# -- configs ------------------------------------------------------------------------------------------------------


def node(**config: Any) -> dict[str, Any]:
    return one_node("double", **config)


def world(**facts: Any) -> dict[str, Any]:
    return {"world_id": "w", "cycle": [], "stages": {}, **facts}


ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "a config from a file": ("graph", {"ref": "/etc/passwd"}),
    "a node's config from a file": (
        "graph",
        {"nodes": [{"node_id": "a", "block_type": "sample/double", "config": {"ref": "secrets.yaml"}}]},
    ),
    "a graph from a file": ("pipeline", {"graphs": [{"pipeline_node_id": "a", "ref": "graphs/x.json"}]}),
    "a pipeline from a file": ("stage", {"pipelines": [{"stage_node_id": "a", "pipeline_config": {"ref": "x"}}]}),
    "a stage from a file": ("world", world(stages={"a": {"ref": "x.json"}}, cycle=["a"])),
    "a text from a file": ("world", world(initial_world={"story": {"ref": "../token.txt"}})),
    "weights from anywhere": ("graph", node(checkpoint_ref="/etc/passwd")),
    "weights above the root": ("graph", node(checkpoint_path="../token")),
    "weights by file url": ("graph", node(checkpoint_ref="file:///etc/passwd")),
    "weights from a home": ("graph", node(checkpoint_ref="~/.ssh/id_rsa")),
    "a path deep inside": ("graph", node(model={"weights": [{"vocab_file": "/etc/shadow"}]})),
    "a secret by name": ("graph", node(api_key="env:YGGDRASILL_TOKEN")),
    "a secret in a list": ("graph", node(headers=[" ENV:HOME"])),
    "a secret's variable": ("graph", node(api_key_env="YGGDRASILL_TOKEN")),
    "an unknown endpoint": ("pipeline", {"graphs": [{"pipeline_node_id": "a", "endpoint_url": "http://169.254.169.254/"}]}),
    "an unknown endpoint of a block": ("graph", node(endpoint_url="http://169.254.169.254/latest")),
    "an unknown base url": ("graph", node(base_url="http://10.0.0.1/")),
    "paths in a list": ("graph", node(paths=["/etc/passwd"])),
    "a path in a list": ("graph", node(path=["/etc/passwd"])),
    "a path in a mapping": ("graph", node(path={"x": "/etc/passwd"})),
    "files": ("graph", node(files="/etc/passwd")),
    "a model by path": ("graph", node(model="/etc/passwd")),
    "weights upwards": ("graph", node(weights="../../token")),
    "a host": ("graph", node(host="169.254.169.254")),
    "a url in a list": ("graph", node(url=["http://169.254.169.254/"])),
    "urls in a list": ("graph", node(urls=["http://169.254.169.254/"])),
    "an address": ("graph", node(address="http://169.254.169.254/")),
    "a proxy": ("graph", node(proxy="http://10.0.0.1")),
    "a webhook": ("graph", node(webhook="http://10.0.0.1")),
    "a world's storage anywhere": ("world", world(storage={"state_dir": "/tmp/x"})),
    "a world's storage above its own": ("world", world(storage={"state_dir": "../../.."})),
    "a world that is a path": ("world", world(world_id="../../x", storage={"state_dir": "s"})),
    "code by name": ("graph", {"nodes": [{"node_id": "a", "block_type": "os:system", "config": {}}]}),
    "code by module": ("graph", {"nodes": [{"node_id": "a", "block_type": "sample/double", "config": {}, "module": "os"}]}),
    "another kind than it says": ("pipeline", one_node("double")),
    "no end of nesting": ("graph", json.loads('{"metadata": ' + '{"a":' * 300 + "1" + "}" * 301)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_config_cannot_use_files_secrets_or_addresses_of_the_host(server: Http, name: str) -> None:
    kind, config = ATTACKS[name]
    answer = server.put("/graphs/attack", json={"kind": kind, "config": config})
    status, error = error_of(answer)
    assert (status, error) == ((404, "UnknownBlockType") if name == "code by name" else (400, "InvalidConfig"))
    assert server.get("/graphs/attack").status_code == 404


def test_a_state_over_the_limit_is_refused_by_its_declared_size(server: Http) -> None:
    claim = {"dtype": "uint8", "shape": [17 << 20], "nbytes": 17 << 20, "artifact": "0" * 64}
    state = {"skeleton": {"node": {"weight": {"$tensor": 0}}}, "payloads": [claim]}
    answer = server.put("/graphs/attack", json={"kind": "graph", "config": one_node("linear"), "state": state})
    assert error_of(answer) == (400, "LimitExceeded")


def test_a_checkpoint_under_the_root_is_loaded(server: Http) -> None:
    root = server.process.data_dir / "models"
    root.mkdir(exist_ok=True)
    (root / "add.json").write_text(json.dumps({"offset": 5}), encoding="utf-8")
    server.deploy("rooted", one_node("add", ("a", "b"), ("out",), checkpoint_ref="add.json"))
    assert server.run("rooted", {"a": 1, "b": 2}) == {"out": 8}
    (root / "out.json").symlink_to("/etc/passwd")
    answer = server.put(
        "/graphs/linked", json={"kind": "graph", "config": one_node("add", ("a", "b"), ("out",), checkpoint_ref="out.json")}
    )
    assert error_of(answer) == (400, "InvalidConfig")


def test_a_worlds_storage_is_inside_its_folder(server: Http) -> None:
    stage = {"stage_id": "s", "pipelines": []}
    server.deploy("stored", world(world_id="mid", storage={"state_dir": "snapshots"}, stages={"s": stage}, cycle=["s"]), "world")
    server.run("stored", {"state": None, "action": None})
    folder = next((server.process.data_dir / "worlds").glob("stored-*"))
    assert [path.name for path in (folder / "snapshots").glob("*.ygg")] == ["mid-last.ygg"]


# -- secrets ------------------------------------------------------------------------------------------------------


def test_no_response_log_or_file_contains_secrets(server: Http) -> None:
    token = server.process.token
    answer = server.submit("leak", {"x": 1})
    job_id = answer.json()["job_id"]
    texts = [answer.text, server.get(f"/jobs/{job_id}").text, server.get("/jobs").text, server.get("/capabilities").text]
    texts += [json.dumps(events_of(server.get(f"/jobs/{job_id}/events", stream=True))), server.get("/health", headers={"X": token}).text]
    texts += [server.get("/graphs/leak").text, server.process.log()]
    assert "refused key [secret] and token [secret]" in texts[0]
    assert "[secret]" in texts[-1]
    assert "calling with key [secret]" in texts[4]
    files = {
        path: path.read_bytes()
        for path in server.process.data_dir.rglob("*")
        if path.is_file() and path.name not in ("token", "signing_key")
    }
    assert len(files) > 5
    for secret in (token, SECRET_VALUE):
        assert not [text for text in texts if secret in text]
        assert not [path for path, data in files.items() if secret.encode() in data]


def test_the_openapi_document_describes_every_route(server: Http) -> None:
    document = server.get("/openapi.json").json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, BASE + route.path) for route in ROUTES}
    text = json.dumps(document)
    names = {name.split('"')[0] for name in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])
    assert document["paths"][BASE + "/graphs/{graph_id}/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/JobModel"
    }


@pytest.mark.parametrize(
    "method, path, parameters",
    [
        ("get", "/jobs", {("query", "limit"), ("query", "status"), ("query", "graph_id")}),
        ("get", "/jobs/{job_id}/output", {("path", "job_id"), ("query", "wait")}),
        ("get", "/jobs/{job_id}/events", {("path", "job_id"), ("header", "Last-Event-ID")}),
        ("get", "/events", {("header", "Last-Event-ID")}),
        (
            "get",
            "/artifacts/{hash}",
            {
                ("path", "hash"),
                *(("header", name) for name in ("Range", "If-None-Match", "If-Range")),
                *(("query", name) for name in ("sig", "exp")),
            },
        ),
        ("get", "/nodes", {("query", "classes")}),
    ],
)
def test_the_openapi_document_describes_the_parameters(server: Http, method: str, path: str, parameters: set[tuple[str, str]]) -> None:
    described = server.get("/openapi.json").json()["paths"][BASE + path][method]["parameters"]
    assert {(entry["in"], entry["name"]) for entry in described} == parameters | {("header", "X-Yggdrasill-Protocol")}
    assert {entry["name"] for entry in described if entry["required"]} == {
        name for place, name in parameters if place == "path" or name == "classes"
    }


def test_the_openapi_document_describes_bodies_that_are_not_json(server: Http) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    for method, path in (("put", "/artifacts/{hash}"), ("post", "/artifacts/batch")):
        assert list(paths[BASE + path][method]["requestBody"]["content"]) == ["application/octet-stream"]
    assert list(paths[BASE + "/artifacts/{hash}"]["get"]["responses"]["206"]["content"]) == ["application/octet-stream"]
    assert list(paths[BASE + "/events"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]
