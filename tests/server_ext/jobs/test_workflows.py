"""Jobs of workflows without a deployment (POST /workflows), on an endpoint with a fake ComfyUI host."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.comfy_graphs import graph_output, node
from samples.http_client import GateFile, Http, error_of, events_of
from samples.served_prompts import DOUBLE, GATE


def row_of(host: Http, job_id: str) -> str:
    """Return the request in the job file; call this while the endpoint is stopped."""
    with contextlib.closing(sqlite3.connect(host.process.data_dir / "jobs.sqlite")) as db:
        return str(db.execute("SELECT request FROM jobs WHERE job_id = ?", (job_id,)).fetchone()[0])


def test_a_prompt_runs_without_a_deployment(host: Http) -> None:
    x = torch.randn(9000)
    answer = host.submit_workflow(DOUBLE, {"x": x})
    assert answer.status_code == 200, answer.text
    assert torch.equal(host.value(answer.json()["output"])["y"], 2 * x)
    assert host.get("/graphs").json()["graphs"] == []
    assert not list((host.process.data_dir / "graphs").glob("*"))


def test_a_job_has_the_graph_id_of_its_request(host: Http) -> None:
    job_id = host.submit_workflow(DOUBLE, {"x": 1}, graph_id="upscale").json()["job_id"]
    assert host.get(f"/jobs/{job_id}").json()["graph_id"] == "upscale"
    assert [row["job_id"] for row in host.get("/jobs?graph_id=upscale").json()["jobs"]] == [job_id]


def test_the_same_key_returns_the_same_job_and_never_another_prompt(host: Http, tmp_path: Path) -> None:
    gate_file, key = GateFile(tmp_path), uuid.uuid4().hex
    first = host.submit_workflow(GATE, gate_file.inputs(x=1), key=key, wait=0.0).json()["job_id"]
    assert host.submit_workflow(GATE, gate_file.inputs(x=1), key=key, wait=0.0).json()["job_id"] == first
    other = {**GATE, "4": graph_output("z", ("3", 0))}
    for changed in (
        host.submit_workflow(other, gate_file.inputs(x=1), key=key, wait=0.0),
        host.submit_workflow(GATE, gate_file.inputs(x=2), key=key, wait=0.0),
        host.submit_workflow(GATE, gate_file.inputs(x=1), key=key, wait=0.0, graph_id="other"),
    ):
        assert error_of(changed) == (409, "JobConflict")
    gate_file.open()
    assert host.value(host.result(first)["output"]) == {"y": 1}
    assert gate_file.runs == 1


def test_a_workflow_job_has_events_and_can_be_cancelled(host: Http, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    job_id = host.submit_workflow(GATE, gate_file.inputs(x=1), wait=0.0, orphan_after=60.0).json()["job_id"]
    gate_file.wait_begun()
    host.post(f"/jobs/{job_id}/cancel", json={})
    gate_file.open()
    assert host.result(job_id)["status"] == "CANCELLED"
    with host.get(f"/jobs/{job_id}/events", stream=True) as stream:
        states = [event["data"].get("status") for event in events_of(stream) if event["event"] == "status"]
    assert states == ["IN_QUEUE", "IN_PROGRESS", "CANCELLED"]


def test_a_workflow_job_is_cancelled_when_its_caller_disconnects(host: Http, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    job_id = host.submit_workflow(GATE, gate_file.inputs(x=1), wait=0.0, orphan_after=0.2).json()["job_id"]
    gate_file.wait_begun()
    time.sleep(1.0)
    gate_file.open()
    assert host.result(job_id)["status"] == "CANCELLED"


@pytest.mark.parametrize(
    "prompt, expected, message",
    [
        ({}, (400, "InvalidConfig"), "a prompt must be a mapping"),
        ({"nodes": [], "links": []}, (400, "InvalidConfig"), "Export (API)"),
        ({"1": {"inputs": {}}}, (400, "InvalidConfig"), "needs a class_type"),
        ({**DOUBLE, "4": graph_output("y", ("1", 0))}, (400, "InvalidConfig"), "two outputs named 'y'"),
        ({str(number): node("FakeDouble") for number in range(20_001)}, (400, "LimitExceeded"), "the limit is 20000"),
    ],
    ids=["empty", "editor's", "no class", "two of a name", "too many"],
)
def test_an_invalid_prompt_is_refused(host: Http, prompt: Any, expected: tuple[int, str], message: str) -> None:
    answer = host.submit_workflow(prompt, {"x": 1})
    assert error_of(answer) == expected
    assert message in answer.json()["error"]["message"]


def test_inputs_are_checked_like_those_of_a_deployed_workflow(host: Http) -> None:
    assert host.submit_workflow(DOUBLE, {}).json()["error"]["type"] == "MissingInput"
    assert host.submit_workflow(DOUBLE, {"x": 1, "z": 2}).json()["error"]["type"] == "UnknownName"
    assert error_of(host.submit_workflow(DOUBLE, {"x": 1}, options={"num_steps": 3})) == (400, "InvalidArgument")


def test_an_endpoint_without_comfyui_refuses_workflows(server: Http) -> None:
    answer = server.submit_workflow(DOUBLE, {"x": 1})
    assert error_of(answer) == (400, "InvalidConfig")
    assert "this endpoint is not a ComfyUI" in answer.json()["error"]["message"]


def test_node_classes_come_from_comfyui_and_are_limited_per_request(server: Http) -> None:
    assert error_of(server.get("/nodes?classes=KSampler")) == (400, "InvalidConfig")
    assert error_of(server.get("/nodes")) == (400, "InvalidArgument")
    assert error_of(server.get("/nodes?classes=" + ",".join(map(str, range(101))))) == (400, "InvalidArgument")


def test_a_prompt_over_the_size_of_a_body_is_refused_before_it_is_read(small: Http) -> None:
    assert error_of(small.submit_workflow({"1": node("FakeDouble", value="x" * 70_000)}, {})) == (413, "PayloadTooLarge")


def test_a_workflow_job_runs_again_after_a_kill_and_its_final_row_has_no_prompt(host: Http, tmp_path: Path) -> None:
    gate_file, key = GateFile(tmp_path), uuid.uuid4().hex
    x = torch.randn(8000)
    job_id = host.submit_workflow(GATE, gate_file.inputs(x=x), key=key, wait=0.0).json()["job_id"]
    gate_file.wait_begun()
    host.process.kill()
    assert "FakeGate" in row_of(host, job_id)
    gate_file.open()
    host.process.start()
    again = host.submit_workflow(GATE, gate_file.inputs(x=x), key=key).json()
    assert again["job_id"] == job_id
    assert torch.equal(host.value(again["output"])["y"], x)
    assert gate_file.runs == 2
    host.process.kill()
    assert row_of(host, job_id) == "{}"
    host.process.start()
