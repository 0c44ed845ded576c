"""Artifact requests that would cost the endpoint more memory, disk or time than they should."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests
import torch
from blake3 import blake3

from samples.endpoints import EndpointProcess
from samples.http_client import GateFile, Http, error_of, in_background, one_node
from yggdrasill.values.stores.base import Writer
from yggdrasill.values.stores.embedded import EmbeddedStore
from yggdrasill.values.stores.folder import FILE_CHARGE
from yggdrasill.values.wire import references

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


@contextmanager
def health_times(http: Http) -> Iterator[list[float]]:
    """Measure how long ``GET /health`` takes, again and again, while the block runs."""
    seconds: list[float] = []
    done = threading.Event()

    def measure() -> None:
        with requests.Session() as session:
            session.headers.update(http.session.headers)
            while not done.is_set():
                started = time.perf_counter()
                assert session.get(f"{http.url}/health", timeout=20).status_code == 200
                seconds.append(time.perf_counter() - started)

    measuring = in_background(measure)
    try:
        yield seconds
    finally:
        done.set()
        measuring.result(30)


@pytest.mark.skipif(sys.platform == "win32", reason="uses locks of POSIX")
def test_the_endpoint_stores_while_another_process_holds_the_lock_file_of_earlier_versions(server: Http) -> None:
    import fcntl

    uploads = []
    with (server.process.data_dir / "artifacts" / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for number in range(12):
            data = b"%d" % number * 1000
            headers = dict(server.session.headers)
            url = f"{server.url}/artifacts/{blake3(data).hexdigest()}"
            uploads.append(in_background(requests.put, url, data=data, headers=headers, timeout=30))
        with health_times(server) as seconds:
            assert {upload.result(30).status_code for upload in uploads} == {201}
            time.sleep(0.2)
        assert sorted(seconds)[len(seconds) // 2] < 0.05


def test_a_call_that_names_50_000_artifacts_does_not_stop_the_endpoint(server: Http) -> None:
    payloads = [{"dtype": "uint8", "shape": [3], "nbytes": 3, "artifact": f"{number:064x}"} for number in range(50_000)]
    body = json.dumps({"key": "names many", "inputs": {"skeleton": {"x": 1}, "payloads": payloads}})
    began = time.monotonic()
    with health_times(server) as seconds:
        answer = requests.post(f"{server.url}/graphs/double/jobs", data=body, headers=dict(server.session.headers), timeout=60)
        elapsed = time.monotonic() - began
    assert error_of(answer) == (409, "UnknownArtifact")
    assert len(answer.json()["error"]["details"]["missing"]) == 50_000
    assert len(seconds) > 5
    # on a machine that computes something else too, the request itself takes seconds
    assert max(seconds) < max(1.0, elapsed / 2)


def test_the_requests_of_unfinished_jobs_are_bounded_by_bytes(tmp_path: Path, gate_file: GateFile) -> None:
    process = EndpointProcess("queueing", tmp_path, plugins=["samples.served_blocks"], max_queue_bytes=1 << 20, grace=0.5).start()
    try:
        http = Http(process)
        http.deploy("gate", one_node("gate", ("path", "x")))
        first = http.start("gate", gate_file.inputs(x=1))
        large = gate_file.inputs(x="x" * 600_000)
        second = http.start("gate", large)
        answer = http.submit("gate", large, wait=0.0)
        assert error_of(answer) == (429, "QueueFull")
        assert "bytes" in answer.json()["error"]["message"]
        assert error_of(http.submit("gate", gate_file.inputs(x="x" * 500_000), wait=0.0)) == (429, "QueueFull")
        assert http.submit("gate", gate_file.inputs(x="x" * 100_000), wait=0.0).status_code == 202
        gate_file.open()
        for job_id in (first, second):
            assert http.result(job_id)["status"] == "COMPLETED"
        assert http.run("gate", large)
        assert http.run("gate", gate_file.inputs(x="x" * 2_000_000)), "one request is always accepted"
    finally:
        process.stop()


def test_the_artifacts_that_calls_wait_for_are_bounded(server: Http) -> None:
    def call(key: str, first: int) -> requests.Response:
        payloads = [{"dtype": "uint8", "shape": [3], "nbytes": 3, "artifact": f"{first + number:064x}"} for number in range(90_000)]
        return server.post("/graphs/double/jobs", json={"key": key, "inputs": {"skeleton": {"x": 1}, "payloads": payloads}})

    found = [error_of(call(f"waits for {number}", number * 100_000)) for number in range(4)]
    assert found[0] == (409, "UnknownArtifact")
    assert found[-1] == (429, "QueueFull")
    assert server.run("double", {"x": torch.ones(20_000)})["y"].sum() == 40_000


def test_evicting_from_30_000_artifacts_does_not_stop_the_endpoint(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "objects" / "00" / "00"
    folder.mkdir(parents=True)
    for number in range(30_000):
        (folder / f"{number:064x}").touch()
    quota = 30_000 * FILE_CHARGE + (1 << 20)
    process = EndpointProcess("full", tmp_path, plugins=["samples.served_blocks"], artifact_quota=quota).start()
    try:
        http = Http(process)
        with health_times(http) as seconds:
            for number in range(8):
                data = bytes([number]) * (18 << 20)
                url = f"{http.url}/artifacts/{blake3(data).hexdigest()}"
                assert requests.put(url, data=data, headers=dict(http.session.headers), timeout=60).status_code == 201
        assert len(list(folder.iterdir())) < 30_000
        assert max(seconds) < 0.4
        assert sorted(seconds)[len(seconds) // 2] < 0.05
    finally:
        process.stop()


def test_results_beyond_the_limits_are_removed_when_a_write_needs_room(tmp_path: Path) -> None:
    # at most half of the quota for results: from the third call on, the results before it must go
    process = EndpointProcess("crowded", tmp_path, plugins=["samples.served_blocks"], artifact_quota=30 << 20).start()
    try:
        http = Http(process)
        http.deploy("double", one_node("double"))
        for number in range(12):
            x = torch.full((8 << 20,), number, dtype=torch.uint8)
            answer = http.submit("double", {"x": x}).json()
            assert (answer["status"], answer["error"]) == ("COMPLETED", None)
    finally:
        process.stop()


def test_an_artifact_that_a_job_stored_names_principal_and_job_and_a_lease_without_a_row_ends_with_a_restart(tmp_path: Path) -> None:
    process = EndpointProcess("named", tmp_path, plugins=["samples.served_blocks"]).start()
    http = Http(process)
    http.deploy("double", one_node("double"))
    try:
        answer = http.submit("double", {"x": torch.arange(20_000)}).json()
    finally:
        process.stop()
    (found,) = references(answer["output"])
    folder = tmp_path / "artifacts"
    with closing(EmbeddedStore(folder)) as store:
        stat = store.stat(found.hash)
        assert stat is not None
        assert stat.writer == Writer("owner", answer["job_id"])
        store.lease("job:of an earlier life", [found.hash])
        store.lease("another owner", [found.hash])
    process.start()
    process.stop()
    with closing(EmbeddedStore(folder)) as store:
        assert set(store.lease_owners()) == {f"job:{answer['job_id']}", "another owner"}
