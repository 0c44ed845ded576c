"""Artifacts over HTTP: uploads, downloads, transfer between endpoints, and everything that must be refused."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from blake3 import blake3

from samples.endpoints import EndpointProcess
from samples.http_client import Http, error_of
from yggdrasill.server_ext.jobs.store import Retention, default_quota
from yggdrasill.values import EmbeddedStore


def named(data: bytes) -> str:
    return blake3(data).hexdigest()


def files(http: Http) -> set[Path]:
    folder = http.process.data_dir / "artifacts"
    return {path for part in ("objects", "incoming") for path in (folder / part).rglob("*") if path.is_file()}


def test_an_artifact_is_stored_once_and_read_whole_or_by_range(server: Http) -> None:
    data = os.urandom(3 << 20)
    name = named(data)
    assert server.post("/artifacts/missing", json={"hashes": [name]}).json() == {"missing": [name]}
    assert [server.put(f"/artifacts/{name}", data=data).status_code for _ in range(2)] == [201, 200]
    assert server.post("/artifacts/missing", json={"hashes": [name]}).json() == {"missing": []}
    assert server.get(f"/artifacts/{name}").content == data
    part = server.get(f"/artifacts/{name}", headers={"Range": "bytes=1000-"})
    assert (part.status_code, part.content) == (206, data[1000:])
    head = server.session.head(f"{server.url}/artifacts/{name}")
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(data)), b"")


def test_an_upload_of_unknown_length_is_accepted(server: Http) -> None:
    data = os.urandom(200_000)
    chunks = (data[place : place + 7000] for place in range(0, len(data), 7000))
    assert server.put(f"/artifacts/{named(data)}", data=chunks).status_code == 201


def test_bytes_that_do_not_match_their_hash_are_not_stored(server: Http) -> None:
    before = files(server)
    answer = server.put(f"/artifacts/{named(b'promised')}", data=b"something else")
    assert error_of(answer) == (400, "CorruptData")
    assert files(server) == before
    assert error_of(server.get(f"/artifacts/{named(b'promised')}")) == (404, "UnknownArtifact")


def test_a_truncated_upload_is_not_stored(server: Http) -> None:
    before = files(server)
    data = os.urandom(1 << 20)
    host = server.process.url.removeprefix("http://")
    address, port = host.split(":")
    head = f"PUT /yggdrasill/v1/artifacts/{named(data)} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.process.token}\r\n"
    with socket.create_connection((address, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[: 1 << 19])
    assert server.post("/artifacts/missing", json={"hashes": [named(data)]}).json()["missing"]
    assert server.put(f"/artifacts/{named(data)}", data=data).status_code == 201
    assert len(files(server)) == len(before) + 1


def test_a_body_over_the_limit_is_refused_before_it_is_read(small: Http) -> None:
    host = small.process.url.removeprefix("http://")
    address, port = host.split(":")
    for path, method in ((f"artifacts/{named(b'')}", "PUT"), ("graphs/double/jobs", "POST")):
        head = f"{method} /yggdrasill/v1/{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {small.process.token}\r\n"
        with socket.create_connection((address, int(port)), 10) as connection:
            connection.sendall(f"{head}Content-Length: {1 << 40}\r\n\r\n".encode())
            answer = connection.recv(1 << 16)
        assert b" 413 " in answer.split(b"\r\n", 1)[0]
        assert b"PayloadTooLarge" in answer


def test_a_stream_over_the_limit_is_aborted(small: Http) -> None:
    before = files(small)
    chunks = (bytes(1 << 20) for _ in range(30))
    try:
        status = small.put(f"/artifacts/{named(b'x')}", data=chunks).status_code
    except requests.ConnectionError:
        status = 400
    assert status == 400
    assert files(small) == before


def test_a_full_disk_gives_one_clear_error_and_leaves_no_files(small: Http) -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs a system that can limit the files of another process")
    before = files(small)
    data = os.urandom(9 << 20)
    old = resource.prlimit(small.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(small.process.pid, resource.RLIMIT_FSIZE, (8 << 20, old[1]))
    try:
        assert error_of(small.put(f"/artifacts/{named(data)}", data=data)) == (507, "StorageFailed")
    finally:
        resource.prlimit(small.process.pid, resource.RLIMIT_FSIZE, old)
    assert files(small) == before
    assert small.put(f"/artifacts/{named(data)}", data=data).status_code == 201


def test_many_small_artifacts_are_uploaded_in_one_batch(server: Http) -> None:
    parts = [os.urandom(size) for size in (0, 1, 500, 20_000)]
    body = b"".join(bytes.fromhex(named(part)) + len(part).to_bytes(8, "little") + part for part in parts)
    assert server.post("/artifacts/batch", data=body).json() == {"stored": 4}
    assert server.get(f"/artifacts/{named(parts[2])}").content == parts[2]
    assert error_of(server.post("/artifacts/batch", data=body[:-1])) == (400, "CorruptData")
    assert error_of(server.post("/artifacts/batch", data=body[:50])) == (400, "CorruptData")
    altered = bytes.fromhex(named(b"a")) + (1).to_bytes(8, "little") + b"b"
    assert error_of(server.post("/artifacts/batch", data=altered)) == (400, "CorruptData")
    huge = bytes(32) + (1 << 62).to_bytes(8, "little")
    assert error_of(server.post("/artifacts/batch", data=huge)) == (400, "LimitExceeded")


def test_missing_inputs_are_named_and_the_job_waits_for_them(server: Http) -> None:
    ref = {"dtype": "float32", "shape": [5000], "nbytes": 20_000, "artifact": named(os.urandom(8))}
    body = {"key": "lacking", "inputs": {"skeleton": {"x": {"$tensor": 0}}, "payloads": [ref]}, "wait": 1}
    answer = server.post("/graphs/double/jobs", json=body)
    assert error_of(answer) == (409, "UnknownArtifact")
    assert answer.json()["error"]["details"]["missing"] == [ref["artifact"]]
    row = server.get("/jobs/keys/lacking").json()
    assert (row["status"], row["missing"]) == ("WAITING_INPUTS", [ref["artifact"]])
    assert server.post("/jobs/keys/lacking/cancel").json()["key"] == "lacking"


def output_of(http: Http, x: torch.Tensor) -> dict[str, Any]:
    """Return the wire form of an output that another endpoint receives by reference."""
    wire: dict[str, Any] = http.submit("double", {"x": x}).json()["output"]
    return {"skeleton": {"x": wire["skeleton"]["y"]}, "payloads": wire["payloads"]}


def test_an_endpoint_fetches_artifacts_from_its_peer(server: Http, holder: Http) -> None:
    x = torch.randn(300_000)
    body = {"key": "handed-over", "inputs": output_of(server, x), "wait": 15}
    answer = holder.post("/graphs/double/jobs", json=body).json()
    assert torch.equal(holder.value(answer["output"])["y"], 4 * x)
    assert answer["timing"]["bytes_in"] == 1_200_000


class Trap(BaseHTTPRequestHandler):
    """Records requests, and redirects to ``target`` if it is set."""

    asked: list[str]
    target: str

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302 if self.target else 200)
        if self.target:
            self.send_header("Location", self.target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


@contextmanager
def trap(target: str = "") -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnTrap", (Trap,), {"asked": asked, "target": target}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "shape",
    [
        "{trap}{path}",
        "http://user@{host}{path}",
        "http://127.0.0.1:{port}@{trap_host}{path}",
        "{trap}/x?y={peer}{path}",
        "file:///etc/passwd",
    ],
)
def test_no_request_goes_to_addresses_outside_the_allow_list(server: Http, holder: Http, shape: str) -> None:
    wire = output_of(server, torch.randn(20_000))
    path = f"/yggdrasill/v1/artifacts/{wire['payloads'][0]['artifact']}"
    with trap() as (url, asked):
        host = server.process.url.removeprefix("http://")
        given = shape.format(
            trap=url, trap_host=url.removeprefix("http://"), path=path, host=host, port=host.split(":")[1], peer=server.process.url
        )
        wire["payloads"][0]["url"] = given
        answer = holder.post("/graphs/double/jobs", json={"key": shape, "inputs": wire})
        assert error_of(answer) in {(409, "UnknownArtifact"), (400, "CorruptData")}
        assert asked == []


def test_only_the_artifact_path_of_a_peer_is_requested(server: Http, holder: Http) -> None:
    wire = output_of(server, torch.randn(20_000))
    wire["payloads"][0]["url"] = f"{server.url}/graphs"
    assert error_of(holder.post("/graphs/double/jobs", json={"key": "other-path", "inputs": wire})) == (409, "UnknownArtifact")


def test_redirects_are_not_followed(tmp_path_factory: pytest.TempPathFactory) -> None:
    import asyncio

    from yggdrasill.server_ext.peer_fetcher import PeerFetcher
    from yggdrasill.values.payload import ArraySpec, ArtifactRef
    from yggdrasill.values.stores.memory import MemoryStore

    name = named(b"data")
    path = f"/yggdrasill/v1/artifacts/{name}"

    async def fetch(peer: str) -> bool:
        fetcher = PeerFetcher(MemoryStore(), lambda url: url.startswith(peer), 1 << 20)
        try:
            return await fetcher.fetch(ArtifactRef(name, ArraySpec("bytes", (4,), 4), peer + path))
        finally:
            await fetcher.close()

    with trap() as (inside, asked_inside), trap(target=inside + path) as (peer, asked):
        assert asyncio.run(fetch(peer)) is False
        assert (len(asked), asked_inside) == (1, [])


def test_a_signed_url_gives_access_to_one_artifact_until_it_expires(server: Http) -> None:
    wire = output_of(server, torch.randn(20_000))
    url, other = wire["payloads"][0]["url"], output_of(server, torch.randn(20_000))["payloads"][0]["artifact"]
    name = wire["payloads"][0]["artifact"]
    assert requests.get(url, timeout=10).status_code == 200
    assert requests.head(url, timeout=10).status_code == 200
    base, _, query = url.partition("?")
    expires = int(query.split("&")[0].removeprefix("exp="))
    signature = query.split("sig=")[1]
    attacks = [
        base,
        url.replace(name, other),
        f"{base}?exp={expires + 1}&sig={signature}",
        f"{base}?exp=1&sig={signature}",
        f"{base}?exp={expires}&sig={'0' * 64}",
        f"{base}?exp=0{expires}&sig={signature}",
        f"{base}?exp=&sig=",
        f"{base}?exp={expires}&sig=%C3%A9",
    ]
    for attack in attacks:
        assert error_of(requests.get(attack, timeout=10)) == (401, "AccessDenied"), attack
    assert error_of(requests.put(url, data=b"", timeout=10)) == (401, "AccessDenied")
    assert error_of(requests.get(f"{server.url}/graphs?{query}", timeout=10)) == (401, "AccessDenied")


def test_a_signed_url_expires() -> None:
    from yggdrasill.errors import AccessDenied
    from yggdrasill.server_ext.auth import LIFETIME, Signer

    signer = Signer("key", "http://endpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: 1000.0)
        url = signer.url("ab")
        assert url is not None
        signature = url.split("sig=")[1]
        signer.check("ab", str(1000 + LIFETIME), signature)
        patch.setattr("time.time", lambda: 1001.0 + LIFETIME)
        with pytest.raises(AccessDenied, match="expired"):
            signer.check("ab", str(1000 + LIFETIME), signature)


@pytest.mark.parametrize("name", ["..%2f..%2ftoken", "%2e%2e", "A" * 64, "g" * 64, "0" * 63, "0" * 65, "token", "0" * 60 + "%00ab"])
def test_an_invalid_hash_reaches_no_file(server: Http, name: str) -> None:
    assert error_of(server.get(f"/artifacts/{name}")) == (400, "InvalidArgument")
    assert error_of(server.put(f"/artifacts/{name}", data=b"x")) == (400, "InvalidArgument")


def test_outputs_are_kept_as_long_as_their_job(server: Http) -> None:
    wire = server.submit("double", {"x": torch.ones(20_000)}).json()["output"]
    assert server.get(f"/artifacts/{wire['payloads'][0]['artifact']}").status_code == 200


# -- the artifact folder --------------------------------------------------------------------------------------------


def test_the_artifact_folder_is_shown_to_local_callers_and_not_through_a_proxy(tmp_path: Path) -> None:
    process = EndpointProcess("reentrancy", tmp_path / "reentrancy", share_folder=True, artifact_quota=1 << 30).start()
    try:
        http = Http(process)
        shown = http.get("/artifacts/folder").json()
        folder = process.data_dir / "artifacts"
        assert shown == {"folder": str(folder), "store_id": (folder / "store-id").read_text(encoding="utf-8"), "quota_bytes": 1 << 30}
        for header in ("X-Forwarded-For", "Forwarded", "Via"):
            assert http.get("/artifacts/folder", headers={header: "192.0.2.7"}).json() == {**shown, "folder": None, "quota_bytes": None}
        assert requests.get(f"{http.url}/artifacts/folder", timeout=10).status_code == 401
    finally:
        process.stop()


def test_an_endpoint_that_does_not_share_its_folder_does_not_show_it(server: Http) -> None:
    assert server.get("/artifacts/folder").json()["folder"] is None


def test_the_default_quota_is_half_of_the_free_disk_space(server: Http, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    free = shutil.disk_usage(tmp_path).free
    assert default_quota(store) == pytest.approx(min(64 << 30, free // 2), rel=0.05)
    assert Retention().within(8 << 30).bytes == 4 << 30
    assert Retention().within(1 << 40) == Retention()


def test_the_least_recently_used_artifacts_are_evicted(tmp_path: Path) -> None:
    process = EndpointProcess("narrow", tmp_path / "narrow", artifact_quota=4 << 20).start()
    try:
        http = Http(process)
        names = []
        for _ in range(6):
            data = os.urandom(1 << 20)
            names.append(named(data))
            assert http.put(f"/artifacts/{names[-1]}", data=data).status_code == 201
        assert http.post("/artifacts/missing", json={"hashes": names}).json() == {"missing": names[:2]}
    finally:
        process.stop()
