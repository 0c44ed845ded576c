"""Jobs that end before their time: cancelled, timed out, left alone by their caller, refused by a full queue. Slots."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from samples.http import BASE, Door, Http, error_of, in_background, one_node, until


def cancel(http: Http, job_id: str) -> str:
    answer = http.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 200
    return str(answer.json()["status"])


def test_a_running_job_is_cancelled_between_nodes(server: Http, door: Door) -> None:
    config = {
        "nodes": [{"node_id": name, "block_type": f"sample/{block}", "config": {}} for name, block in (("a", "gate"), ("b", "gate"))],
        "edges": [{"source_node": "a", "source_port": "y", "target_node": "b", "target_port": "x"}],
        "exposed_inputs": [{"node_id": name, "port_name": "path", "name": "path"} for name in ("a", "b")],
        "exposed_outputs": [{"node_id": "b", "port_name": "y", "name": "y"}],
    }
    server.deploy("two-gates", config)
    job_id = server.start("two-gates", door.inputs())
    door.wait_begun()
    cancel(server, job_id)
    outcome = server.result(job_id)
    assert (outcome["status"], outcome["error"]["type"]) == ("CANCELLED", "Cancelled")
    assert outcome["error"]["details"]["node"] == "a"
    assert door.runs == 1
    assert cancel(server, job_id) == "CANCELLED"


def test_a_waiting_job_is_cancelled_at_once_and_never_runs(small: Http, door: Door, tmp_path: Path) -> None:
    first, other = small.start("gate", door.inputs()), Door(tmp_path)
    second = small.start("gate", other.inputs())
    door.wait_begun()
    cancel(small, second)
    assert small.result(second)["status"] == "CANCELLED"
    door.open()
    assert small.result(first)["status"] == "COMPLETED"
    assert other.runs == 0


def test_a_job_beyond_its_timeout_is_timed_out(server: Http, door: Door) -> None:
    outcome = server.submit("gate", door.inputs(), timeout=0.4).json()
    assert (outcome["status"], outcome["error"]["type"]) == ("TIMED_OUT", "TimedOut")


def test_a_job_whose_caller_stays_away_is_cancelled(server: Http, door: Door) -> None:
    job_id = server.start("gate", door.inputs(), orphan_after=0.5)
    door.wait_begun()
    time.sleep(1.5)
    outcome = server.result(job_id)
    assert outcome["status"] == "CANCELLED"
    assert "caller was disconnected" in outcome["error"]["message"]


def test_a_detached_job_needs_no_caller(server: Http, door: Door) -> None:
    job_id = server.start("gate", door.inputs(x=3), orphan_after=0.3, detached=True)
    time.sleep(1.0)
    door.open()
    assert server.value(server.result(job_id)["output"]) == {"y": 3}


def test_a_caller_that_waits_or_listens_is_there(server: Http, door: Door) -> None:
    waiting = in_background(server.submit, "gate", door.inputs(), orphan_after=0.3)
    listened = server.start("gate", door.inputs(), orphan_after=0.3)
    with server.get(f"/jobs/{listened}/events", stream=True):
        time.sleep(1.2)
        door.open()
        assert waiting.result().json()["status"] == "COMPLETED"
        assert server.result(listened)["status"] == "COMPLETED"


def test_a_caller_that_dies_while_it_waits_is_gone(server: Http, door: Door) -> None:
    body = f'{{"key":"dying-{time.time()}","inputs":{{"skeleton":{{"path":"{door.path}"}},"payloads":[]}},"wait":30,"orphan_after":0.3}}'
    host = server.process.url.removeprefix("http://")
    head = f"POST {BASE}/graphs/gate/jobs HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.process.token}\r\n"
    address, port = host.split(":")
    with socket.create_connection((address, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        door.wait_begun()
    newest = server.get("/jobs?graph_id=gate&limit=1").json()["jobs"][0]["job_id"]
    time.sleep(1.5)
    assert server.status(newest) == "CANCELLED"


def test_a_full_queue_refuses_and_takes_jobs_again_later(small: Http, door: Door) -> None:
    jobs = [small.start("gate", door.inputs()) for _ in range(3)]
    refused = small.submit("gate", door.inputs(), wait=0)
    assert error_of(refused) == (429, "QueueFull")
    assert "Retry-After" in refused.headers
    door.open()
    assert [small.result(job)["status"] for job in jobs] == ["COMPLETED"] * 3
    assert small.run("double", {"x": 1}) == {"y": 2}


def test_one_slot_runs_one_job_at_a_time(small: Http, door: Door) -> None:
    first, second = (small.start("gate", door.inputs()) for _ in range(2))
    door.wait_begun()
    time.sleep(0.1)
    assert small.get("/health").json()["queue"] == {"queued": 1, "running": 1, "slots": 1}
    assert (small.status(first), small.status(second)) == ("IN_PROGRESS", "IN_QUEUE")
    door.open()
    small.result(second)


def test_a_job_that_waits_outside_lends_its_slot_and_takes_it_again(small: Http, door: Door, tmp_path: Path) -> None:
    outside = small.start("outside", door.inputs(x=1))
    door.wait_begun()
    busy = Door(tmp_path)
    inner = small.start("gate", busy.inputs(x=2))
    busy.wait_begun()
    door.open()
    time.sleep(0.1)
    assert small.status(outside) == "IN_PROGRESS"
    busy.open()
    assert [small.value(small.result(job)["output"])["y"] for job in (inner, outside)] == [2, 1]


def test_two_jobs_run_in_two_slots(server: Http, door: Door) -> None:
    server.deploy("other-gate", one_node("gate", ("path", "x")))
    jobs = [server.start(graph, door.inputs()) for graph in ("gate", "other-gate")]
    door.wait_begun(2)
    door.open()
    assert [server.result(job)["status"] for job in jobs] == ["COMPLETED"] * 2


@pytest.mark.parametrize("name,block", [("plain", "gate"), ("keeps", "keeper")])
def test_a_graph_removed_while_it_runs_ends_its_run(server: Http, door: Door, name: str, block: str) -> None:
    server.deploy(name, one_node(block, ("path", "x")))
    job_id = server.start(name, door.inputs())
    door.wait_begun()
    server.session.delete(f"{server.url}/graphs/{name}")
    door.open()
    until(lambda: server.status(job_id) == "COMPLETED")
