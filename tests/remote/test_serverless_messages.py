"""The messages to serverless workers: their size to the byte, their artifacts, and the stores that both sides reach."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

from samples.endpoints import free_port
from samples.serverless import ROOT, environment_of, ok, serverless_python, started, waited
from yggdrasill.errors import CorruptData, InvalidConfig, PayloadTooLarge, ProtocolMismatch, UnknownArtifact
from yggdrasill.remote.serverless.channel_artifacts import ChannelArtifacts
from yggdrasill.remote.serverless.common_stores import check_store, open_store, require_common_store
from yggdrasill.remote.serverless.messages import (
    RUN_BYTES,
    RUNSYNC_BYTES,
    check_protocol,
    encoded_bytes,
    is_readable,
    read_inline,
    smallest_first,
    without_places,
)
from yggdrasill.remote.serverless.runpod_api import endpoint_id_of, error_text
from yggdrasill.values.payload import blake3_hex, to_base64

_S3 = """
import asyncio, sys
from yggdrasill.errors import StorageFailed, UnknownArtifact
from yggdrasill.remote.serverless.common_stores import open_store
from yggdrasill.values.payload import blake3_hex

async def main():
    store = open_store("s3://artifacts/parts")
    data = memoryview(bytes(range(256)) * 10_000)
    name = blake3_hex(data)
    assert await store.missing([name]) == [name]
    await store.put(name, data)
    assert await store.missing([name, "0" * 64]) == ["0" * 64]
    assert await store.read(name) == data
    try:
        await store.read("0" * 64)
        raise AssertionError
    except UnknownArtifact:
        pass
    try:
        await open_store("s3://no-such-bucket/parts").put(name, data)
        raise AssertionError
    except StorageFailed as error:
        print(error)
    print(store.mark)

asyncio.run(main())
"""


async def held(size: int, artifacts: ChannelArtifacts) -> dict[str, int]:
    data = memoryview(os.urandom(size))
    await artifacts.put(blake3_hex(data), data)
    return {blake3_hex(data): size}


@pytest.mark.parametrize("bound,sync", [(RUN_BYTES, False), (RUNSYNC_BYTES, True)], ids=["run", "runsync"])
async def test_a_request_fills_the_limit_and_never_exceeds_it(bound: int, sync: bool) -> None:
    artifacts = ChannelArtifacts("runpod://x", None)
    largest = (bound - 1000) // 4 * 3
    body, needs_sync = await artifacts.body({"call": {}}, await held(largest, artifacts), {})
    assert bound - 2000 < len(body) <= bound
    assert needs_sync is sync
    body, needs_sync = await artifacts.body({"call": {}}, await held(1000, artifacts), {})
    assert (len(body) < 4000, needs_sync) == (True, False)
    half = bound // 8 * 3 + 1000
    over = {**await held(half, artifacts), **await held(half, artifacts)}
    if sync:
        with pytest.raises(PayloadTooLarge, match="store"):
            await artifacts.body({"call": {}}, over, {})
    else:
        assert (await artifacts.body({"call": {}}, over, {}))[1] is True


async def test_with_a_store_what_does_not_fit_is_stored_and_the_smallest_stay(tmp_path: Path) -> None:
    artifacts = ChannelArtifacts("runpod://x", str(tmp_path))
    small, middle = await held(1000, artifacts), await held(6_000_000, artifacts)
    large, huge = await held(7_000_000, artifacts), await held(30_000_000, artifacts)
    body, sync = await artifacts.body({"call": {}}, {**small, **middle, **large, **huge}, {})
    message = json.loads(body)["input"]
    assert (len(body) <= RUN_BYTES, sync) == (True, False)
    assert message["artifacts"].keys() == small.keys() | middle.keys()
    assert message["stored"] == {**large, **huge}
    assert message["store"] == open_store(str(tmp_path)).mark
    assert str(tmp_path) not in body.decode()
    other = ChannelArtifacts("runpod://x", str(tmp_path))
    assert await other.missing({**small, **large, **huge}) == list(small)
    assert bytes(await other.read(*huge)) == bytes(await artifacts.read(*huge))


async def test_a_message_that_is_too_large_without_artifacts_is_refused() -> None:
    artifacts = ChannelArtifacts("runpod://x", None)
    assert (await artifacts.body({"call": {"text": "x" * 12_000_000}}, {}, {}))[1] is True
    with pytest.raises(PayloadTooLarge):
        await artifacts.body({"call": {"text": "x" * RUNSYNC_BYTES}}, {}, {})


async def test_results_are_verified_and_their_store_is_compared(tmp_path: Path) -> None:
    artifacts = ChannelArtifacts("runpod://x", None)
    data = b"some bytes"
    name = blake3_hex(memoryview(data))
    await artifacts.receive({"artifacts": {name: to_base64(memoryview(data))}})
    assert bytes(await artifacts.read(name)) == data
    with pytest.raises(CorruptData, match="do not match"):
        await artifacts.receive({"artifacts": {name: to_base64(memoryview(b"other bytes"))}})
    with pytest.raises(CorruptData):
        read_inline({name: "no base64 !"})
    with pytest.raises(InvalidConfig, match="does not have"):
        await artifacts.receive({"stored": {name: 3}, "store": {"kind": "folder", "id": "another"}})
    with pytest.raises(UnknownArtifact):
        await artifacts.read("0" * 64)


def test_the_smallest_artifacts_are_chosen_until_the_room_is_used() -> None:
    sizes = {"a": 300, "b": 100, "c": 200}
    assert smallest_first(sizes, encoded_bytes(100) + encoded_bytes(200)) == ["b", "c"]
    assert smallest_first(sizes, encoded_bytes(100) - 1) == []
    assert smallest_first({}, 0) == []


@pytest.mark.parametrize(
    "method,path,readable",
    [
        ("GET", "/capabilities", True),
        ("GET", "/nodes?classes=A,B", True),
        ("GET", "/graphs/a%2Fb/contract", True),
        ("POST", "/checkpoints/fingerprints", True),
        ("POST", "/models", False),
        ("GET", "/jobs", False),
        ("DELETE", "/graphs/a", False),
        ("GET", "/graphs/a/../../admin", False),
        ("GET", "/nodes?classes=A/../x", False),
    ],
)
def test_only_requests_that_read_are_passed_on(method: str, path: str, readable: bool) -> None:
    assert is_readable(method, path) is readable


def test_places_of_artifacts_are_removed_from_messages() -> None:
    wire = {"skeleton": {}, "payloads": [{"artifact": "0" * 64, "url": "http://10.0.0.1/x", "store": "abc", "nbytes": 4}]}
    assert without_places(wire)["payloads"] == [{"artifact": "0" * 64, "nbytes": 4}]


@pytest.mark.parametrize("version", [99, 0, "2", None, True])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(ProtocolMismatch, match="Install the same version"):
        check_protocol(version, "caller")


@pytest.mark.parametrize("url", ["runpod://", "runpod://a/b", "runpod://a b", "http://a", "runpod://../a"])
def test_an_invalid_endpoint_id_is_named(url: str) -> None:
    with pytest.raises(InvalidConfig, match="runpod://ENDPOINT_ID"):
        endpoint_id_of(url)


def test_an_error_of_a_worker_is_shown_without_traceback_and_paths() -> None:
    given = json.dumps(
        {"error_type": "ValueError", "error_message": "no model at /srv/models/a.safetensors", "error_traceback": "File /srv/secret.py"}
    )
    assert error_text(given) == "no model at [path]"
    assert len(error_text("x" * 5000)) < 500


def test_a_worker_compares_its_store_with_that_of_the_caller(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert require_common_store(store, store.mark) is store
    with pytest.raises(InvalidConfig, match="YGGDRASILL_ARTIFACT_STORE"):
        require_common_store(None, store.mark)
    with pytest.raises(InvalidConfig, match="is not the caller's") as caught:
        require_common_store(store, {"kind": "s3", "id": "s3://b/"})
    assert str(tmp_path) not in str(caught.value)
    for wrong in ("relative", "s3://b", "s3://bucket/../x", "gs://bucket?key=1", "http://bucket/x"):
        with pytest.raises(InvalidConfig):
            check_store(wrong, "here")


@pytest.mark.timeout(300)
def test_a_bucket_is_a_common_store(tmp_path: Path) -> None:
    python, port = serverless_python(), free_port()
    url = f"http://127.0.0.1:{port}"
    environment = environment_of(
        tmp_path, BUCKET_ENDPOINT_URL=url, BUCKET_ACCESS_KEY_ID="planted-secret-id", BUCKET_SECRET_ACCESS_KEY="planted-secret-key"
    )
    with started([str(python.with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)], environment, tmp_path / "s3.log"):
        waited(lambda: ok(url), tmp_path / "s3.log")
        urllib.request.urlopen(urllib.request.Request(f"{url}/artifacts", method="PUT")).close()
        done = subprocess.run([str(python), "-c", _S3], env=environment, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    assert "s3://artifacts/parts/" in done.stdout
    assert "Check the bucket" in done.stdout
    assert "planted-secret" not in done.stdout + done.stderr
