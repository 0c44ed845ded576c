"""Outputs that are published before the run ends, on an endpoint with a fake ComfyUI host."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from blake3 import blake3

from samples.http_client import GateFile, Http, events_of, until
from samples.served_prompts import EARLY_AND_LATE
from yggdrasill.server_ext.bodies import send_artifact
from yggdrasill.server_ext.jobs import execution
from yggdrasill.values.stores import ThreadedStore
from yggdrasill.values.stores.shared import SharedFolderStore
from yggdrasill.values.stores.threaded import InFlightArtifacts


def begin(host: Http, gate_file: GateFile, x: torch.Tensor) -> tuple[str, dict[str, Any]]:
    """Start a job that waits for the gate file; return its id and the event of its early output."""
    job_id = host.submit_workflow(EARLY_AND_LATE, gate_file.inputs(x=x), wait=0.0, orphan_after=60.0).json()["job_id"]
    gate_file.wait_begun()
    with host.get(f"/jobs/{job_id}/events", stream=True, headers={"Last-Event-ID": "0"}) as answer:
        for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
            if line.startswith("data: ") and "artifacts" in line:
                data: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return job_id, data
    raise AssertionError("the stream ended")


def leased(host: Http) -> set[str]:
    """Return the hashes in the leases of the endpoint's index, read from a copy, because the endpoint has it open alone."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (host.process.data_dir / "artifacts").glob("index.sqlite*"):
            shutil.copy(path, folder)
        db = sqlite3.connect(Path(folder) / "index.sqlite")
        rows = db.execute("SELECT hashes FROM leases").fetchall()
        db.close()
    return {row[0][at : at + 32].hex() for row in rows for at in range(0, len(row[0]), 32)}


def test_an_output_can_be_fetched_while_the_run_continues(host: Http, tmp_path: Path) -> None:
    gate_file, x = GateFile(tmp_path), torch.randn(9000)
    job_id, event = begin(host, gate_file, x)
    (entry,) = event["artifacts"]
    assert host.status(job_id) == "IN_PROGRESS"
    data = host.get(f"/artifacts/{entry['artifact']}").content
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32), 2 * x)
    gate_file.open()
    outcome = host.result(job_id)
    assert outcome["status"] == "COMPLETED"
    value = host.value(outcome["output"])
    assert list(value) == ["early", "late"]
    assert torch.equal(value["early"], 2 * x)
    assert torch.equal(value["late"], x)


def test_a_stopped_job_keeps_no_early_outputs(host: Http, tmp_path: Path) -> None:
    gate_file, before = GateFile(tmp_path), leased(host)
    job_id, event = begin(host, gate_file, torch.randn(9000))
    assert event["artifacts"][0]["artifact"] in leased(host)
    host.post(f"/jobs/{job_id}/cancel", json={})
    gate_file.open()
    assert host.result(job_id)["status"] == "CANCELLED"
    until(lambda: leased(host) == before)


def test_an_artifact_is_registered_until_it_is_written() -> None:
    in_flight, name, first = InFlightArtifacts(), "0" * 64, memoryview(b"bytes")
    with in_flight.register(name, first):
        with in_flight.register(name, memoryview(b"bytes")):
            assert in_flight.get(name) is first
        assert in_flight.get(name) is first
    assert in_flight.get(name) is None


def test_an_artifact_comes_from_memory_while_it_is_written_and_from_the_disk_afterwards(tmp_path: Path) -> None:
    store, in_flight, data = SharedFolderStore(tmp_path), InFlightArtifacts(), os.urandom(3 << 20)
    name = blake3(data).hexdigest()

    async def answer(request: web.Request) -> web.StreamResponse:
        return await send_artifact(request, ThreadedStore(store), in_flight, request.match_info["hash"])

    async def ask() -> None:
        app = web.Application()
        app.router.add_get("/{hash}", answer)
        async with TestClient(TestServer(app)) as client:
            for _ in range(2):
                with in_flight.register(name, memoryview(data)) if not store.has(name) else nullcontext():
                    whole = await client.get(f"/{name}")
                    assert await whole.read() == data
                    part = await client.get(f"/{name}", headers={"Range": f"bytes={2 << 20}-"})
                    assert (part.status, await part.read()) == (206, data[2 << 20 :])
                store.put(data)

    asyncio.run(ask())


def test_small_outputs_emit_no_event(host: Http, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    job_id = host.submit_workflow(EARLY_AND_LATE, gate_file.inputs(x=3), wait=0.0, orphan_after=60.0).json()["job_id"]
    gate_file.open()
    assert host.value(host.result(job_id)["output"]) == {"early": 6, "late": 3}
    with host.get(f"/jobs/{job_id}/events", stream=True, headers={"Last-Event-ID": "0"}) as answer:
        assert "output" not in [event["event"] for event in events_of(answer)]


@pytest.mark.parametrize(
    "output, is_small",
    [
        (torch.zeros(4096), True),
        (torch.zeros(4097), False),
        (torch.zeros(1, dtype=torch.uint8).expand(20_000), False),
        (5, True),
        ("text", True),
        (None, True),
        ([torch.zeros(1)], False),
        ({"samples": torch.zeros(1)}, False),
    ],
)
def test_only_an_output_that_becomes_part_of_the_message_is_packed_at_the_end(output: Any, is_small: bool) -> None:
    assert execution._is_small(output) is is_small
