"""Artifact requests that would cost the endpoint more memory, disk or time than they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from samples.endpoints import EndpointProcess
from samples.http_client import Http, error_of, one_node

EMPTY_ENTRY = blake3(b"").digest() + (0).to_bytes(8, "little")


def memory_mib(http: Http) -> int:
    status = Path(f"/proc/{http.process.pid}/status")
    if not status.exists():
        pytest.skip("reads the memory of another process from /proc, which this system does not have")
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) >> 10


def test_a_batch_has_a_bounded_number_of_entries(server: Http) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(80):
            yield EMPTY_ENTRY * 5000

    before = memory_mib(server)
    assert error_of(server.post("/artifacts/batch", data=body())) == (400, "LimitExceeded")
    assert memory_mib(server) - before < 60
    assert server.post("/artifacts/batch", data=EMPTY_ENTRY * 60_000).json() == {"stored": 60_000}


@pytest.mark.parametrize("given", ["bytes=10-", "bytes=12-20", "bytes=9000000-"])
def test_a_range_after_the_last_byte_is_a_416_with_json(server: Http, given: str) -> None:
    data = b"0123456789"
    name = blake3(data).hexdigest()
    server.put(f"/artifacts/{name}", data=data)
    answer = server.get(f"/artifacts/{name}", headers={"Range": given})
    assert error_of(answer) == (416, "InvalidArgument")
    assert answer.headers["Content-Range"] == "bytes */10"
    assert "10 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("given", ["bytes=a-b", "bytes=5-2", "lines=1-2"])
def test_an_invalid_range_is_an_error_with_json(server: Http, given: str) -> None:
    data = b"0123456789"
    name = blake3(data).hexdigest()
    server.put(f"/artifacts/{name}", data=data)
    assert error_of(server.get(f"/artifacts/{name}", headers={"Range": given})) == (400, "InvalidArgument")


def artifact_file(process: EndpointProcess, name: str) -> Path:
    return process.data_dir / "artifacts" / "objects" / name[:2] / name[2:4] / name


def test_a_damaged_artifact_is_requested_uploaded_and_computed_with_again(tmp_path: Path) -> None:
    process = EndpointProcess("harmed", tmp_path, plugins=["samples.served_blocks"]).start()
    try:
        http = Http(process)
        http.deploy("double", one_node("double"))
        value = torch.arange(20_000)
        data = value.numpy().tobytes()
        name = blake3(data).hexdigest()
        assert torch.equal(http.run("double", {"x": value})["y"], value * 2)
        process.kill()
        file = artifact_file(process, name)
        file.write_bytes(b"\x07" + data[1:])
        process.start()
        assert http.post("/artifacts/missing", json={"hashes": [name]}).json() == {"missing": [name]}
        assert torch.equal(http.run("double", {"x": value})["y"], value * 2)
        file.write_bytes(b"")
        assert http.put(f"/artifacts/{name}", data=data).status_code == 201
        assert file.read_bytes() == data
    finally:
        process.stop()
