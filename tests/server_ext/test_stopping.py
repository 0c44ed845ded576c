"""Jobs that end early: cancelled, timed out, orphaned, refused by a full queue; and slots."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest

from samples.http_client import BASE, GateFile, Http, error_of, events_of, in_background, one_node, until


def cancel(http: Http, job_id: str) -> str:
    answer = http.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 200
    return str(answer.json()["status"])


@pytest.mark.parametrize("depth", [800, 969, 985])
def test_bodies_that_are_nested_too_deeply_are_refused_and_leave_no_job(small: Http, depth: int) -> None:
    for number in range(4):
        skeleton = b"[" * depth + b"]" * depth
        body = b'{"key": "deep-%d-%d", "inputs": {"skeleton": %s, "payloads": []}, "wait": 5}' % (depth, number, skeleton)
        assert error_of(small.post("/graphs/double/jobs", data=body)) == (400, "LimitExceeded")
    assert small.run("double", {"x": 1}) == {"y": 2}


def test_a_running_job_is_cancelled_between_nodes(server: Http, gate_file: GateFile) -> None:
    config = {
        "nodes": [{"node_id": name, "block_type": f"sample/{block}", "config": {}} for name, block in (("a", "gate"), ("b", "gate"))],
        "edges": [{"source_node": "a", "source_port": "y", "target_node": "b", "target_port": "x"}],
        "exposed_inputs": [{"node_id": name, "port_name": "path", "name": "path"} for name in ("a", "b")],
        "exposed_outputs": [{"node_id": "b", "port_name": "y", "name": "y"}],
    }
    server.deploy("two-gates", config)
    job_id = server.start("two-gates", gate_file.inputs())
    gate_file.wait_begun()
    cancel(server, job_id)
    outcome = server.result(job_id)
    assert (outcome["status"], outcome["error"]["type"]) == ("CANCELLED", "Cancelled")
    assert outcome["error"]["details"]["node"] == "a"
    assert gate_file.runs == 1
    assert cancel(server, job_id) == "CANCELLED"


def test_a_queued_job_is_cancelled_immediately_and_never_runs(small: Http, gate_file: GateFile, tmp_path: Path) -> None:
    first, other = small.start("gate", gate_file.inputs()), GateFile(tmp_path)
    second = small.start("gate", other.inputs())
    gate_file.wait_begun()
    cancel(small, second)
    assert small.result(second)["status"] == "CANCELLED"
    gate_file.open()
    assert small.result(first)["status"] == "COMPLETED"
    assert other.runs == 0


def test_a_job_over_its_timeout_is_stopped(server: Http, gate_file: GateFile) -> None:
    outcome = server.submit("gate", gate_file.inputs(), timeout=0.4).json()
    assert (outcome["status"], outcome["error"]["type"]) == ("TIMED_OUT", "TimedOut")


def test_a_job_whose_caller_disconnects_is_cancelled(server: Http, gate_file: GateFile) -> None:
    job_id = server.start("gate", gate_file.inputs(), orphan_after=0.5)
    gate_file.wait_begun()
    time.sleep(1.5)
    outcome = server.result(job_id)
    assert outcome["status"] == "CANCELLED"
    assert "caller was disconnected" in outcome["error"]["message"]


def test_a_detached_job_needs_no_caller(server: Http, gate_file: GateFile) -> None:
    job_id = server.start("gate", gate_file.inputs(x=3), orphan_after=0.3, detached=True)
    time.sleep(1.0)
    gate_file.open()
    assert server.value(server.result(job_id)["output"]) == {"y": 3}


def test_a_caller_that_waits_or_listens_counts_as_connected(server: Http, gate_file: GateFile) -> None:
    waiting = in_background(server.submit, "gate", gate_file.inputs(), orphan_after=0.3)
    listened = server.start("gate", gate_file.inputs(), orphan_after=0.3)
    with server.get(f"/jobs/{listened}/events", stream=True):
        time.sleep(1.2)
        gate_file.open()
        assert waiting.result().json()["status"] == "COMPLETED"
        assert server.result(listened)["status"] == "COMPLETED"


def test_a_caller_that_dies_while_it_waits_counts_as_disconnected(server: Http, gate_file: GateFile) -> None:
    body = (
        f'{{"key":"dying-{time.time()}","inputs":{{"skeleton":{{"path":"{gate_file.path}"}},"payloads":[]}},"wait":30,"orphan_after":0.3}}'
    )
    host = server.process.url.removeprefix("http://")
    head = f"POST {BASE}/graphs/gate/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.process.token}\r\n"
    address, port = host.split(":")
    with socket.create_connection((address, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        gate_file.wait_begun()
    newest = server.get("/jobs?graph_id=gate&limit=1").json()["jobs"][0]["job_id"]
    time.sleep(1.5)
    assert server.status(newest) == "CANCELLED"


def test_a_full_queue_refuses_jobs_until_it_has_room(small: Http, gate_file: GateFile) -> None:
    jobs = [small.start("gate", gate_file.inputs()) for _ in range(3)]
    refused = small.submit("gate", gate_file.inputs(), wait=0)
    assert error_of(refused) == (429, "QueueFull")
    assert "Retry-After" in refused.headers
    gate_file.open()
    assert [small.result(job)["status"] for job in jobs] == ["COMPLETED"] * 3
    assert small.run("double", {"x": 1}) == {"y": 2}


def test_one_slot_runs_one_job_at_a_time(small: Http, gate_file: GateFile) -> None:
    first, second = (small.start("gate", gate_file.inputs()) for _ in range(2))
    gate_file.wait_begun()
    time.sleep(0.1)
    assert small.get("/health").json()["queue"] == {"queued": 1, "running": 1, "slots": 1}
    assert (small.status(first), small.status(second)) == ("IN_PROGRESS", "IN_QUEUE")
    gate_file.open()
    small.result(second)


def test_a_job_that_waits_for_an_endpoint_releases_and_reacquires_its_slot(small: Http, gate_file: GateFile, tmp_path: Path) -> None:
    outside = small.start("outside", gate_file.inputs(x=1))
    gate_file.wait_begun()
    busy = GateFile(tmp_path)
    inner = small.start("gate", busy.inputs(x=2))
    busy.wait_begun()
    gate_file.open()
    time.sleep(0.1)
    assert small.status(outside) == "IN_PROGRESS"
    busy.open()
    assert [small.value(small.result(job)["output"])["y"] for job in (inner, outside)] == [2, 1]


def test_two_jobs_run_in_two_slots(server: Http, gate_file: GateFile) -> None:
    server.deploy("other-gate", one_node("gate", ("path", "x")))
    jobs = [server.start(graph, gate_file.inputs()) for graph in ("gate", "other-gate")]
    gate_file.wait_begun(2)
    gate_file.open()
    assert [server.result(job)["status"] for job in jobs] == ["COMPLETED"] * 2


@pytest.mark.parametrize("name,block", [("plain", "gate"), ("keeps", "keeper")])
def test_a_graph_removed_while_it_runs_ends_its_run(server: Http, gate_file: GateFile, name: str, block: str) -> None:
    server.deploy(name, one_node(block, ("path", "x")))
    job_id = server.start(name, gate_file.inputs())
    gate_file.wait_begun()
    server.session.delete(f"{server.url}/graphs/{name}")
    gate_file.open()
    until(lambda: server.status(job_id) == "COMPLETED")


def test_a_key_that_is_cancelled_before_its_call_arrives_never_runs(server: Http, gate_file: GateFile) -> None:
    key = f"a/key {uuid.uuid4().hex}"
    row = server.post(f"/jobs/keys/{quote(key, safe='')}/cancel").json()
    assert (row["key"], row["status"]) == (key, "CANCELLED")
    answer = server.submit("gate", gate_file.inputs(x=1), key=key)
    assert (answer.status_code, answer.json()["job_id"], answer.json()["status"]) == (200, row["job_id"], "CANCELLED")
    assert answer.json()["error"]["type"] == "Cancelled"
    assert gate_file.runs == 0
    assert events_of(server.get(f"/jobs/{row['job_id']}/events", stream=True)) == []


def test_a_running_job_is_cancelled_by_its_key(server: Http, gate_file: GateFile) -> None:
    key = uuid.uuid4().hex
    job_id = server.start("gate", gate_file.inputs(x=1), key=key)
    gate_file.wait_begun()
    assert server.post(f"/jobs/keys/{key}/cancel").json()["job_id"] == job_id
    assert server.result(job_id)["status"] == "CANCELLED"


def test_a_key_of_invalid_length_is_not_cancelled(server: Http) -> None:
    assert error_of(server.post(f"/jobs/keys/{'k' * 201}/cancel")) == (400, "InvalidArgument")
