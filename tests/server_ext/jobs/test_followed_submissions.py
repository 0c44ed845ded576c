"""Submissions with ``Accept: text/event-stream``: the row, the events and the result of a job in one response, and If-Match."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from samples.http_client import GateFile, Http, error_of, events_of, in_background, one_node
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack

FOLLOWING = {"Accept": "text/event-stream"}


def call(inputs: Any, **facts: Any) -> dict[str, Any]:
    with pack(inputs, MemoryStore()) as packed:
        return {"key": uuid.uuid4().hex, "inputs": packed.wire, **facts}


@pytest.fixture
def caller(server: Http) -> Http:
    """A caller in protocol 2."""
    return Http(server.process, protocol=2)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["status"] if event["event"] == "status" else event["event"] for event in events]


def test_a_short_job_is_answered_with_row_events_and_result_at_once(caller: Http) -> None:
    answer = caller.post("/graphs/double/jobs", json=call({"x": 2.5}, wait=10), headers=FOLLOWING, stream=True)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert int(answer.headers["Content-Length"]) > 0
    events = events_of(answer)
    assert kinds(events) == ["job", "IN_QUEUE", "IN_PROGRESS", "COMPLETED", "result"]
    row, result = events[0]["data"], events[-1]["data"]
    assert row["job_id"] == result["job_id"] == events[1]["data"]["job_id"]
    assert row["status"] == "COMPLETED"
    assert result["output"] == caller.get(f"/jobs/{row['job_id']}/output").json()["output"]
    assert events[1:-1] == events_of(caller.get(f"/jobs/{row['job_id']}/events", stream=True))


def test_a_long_job_is_followed_from_its_row_to_its_result(caller: Http, gate_file: GateFile) -> None:
    body = call(gate_file.inputs(x=1), wait=0.01)
    answer = caller.post("/graphs/gate/jobs", json=body, headers=FOLLOWING, stream=True)
    assert answer.status_code == 202
    listening = in_background(lambda: events_of(answer))
    gate_file.wait_begun()
    gate_file.open()
    events = listening.result(20)
    assert kinds(events) == ["job", "IN_QUEUE", "IN_PROGRESS", "COMPLETED", "result"]
    assert events[0]["data"]["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert events[-1]["data"]["status"] == "COMPLETED"


def test_a_repeated_submission_sends_the_events_of_its_job_again(caller: Http) -> None:
    body = call({"x": 3}, wait=10)
    first, second = (events_of(caller.post("/graphs/double/jobs", json=body, headers=FOLLOWING, stream=True)) for _ in range(2))
    assert first == second


def test_a_failed_job_has_its_error_in_the_result(caller: Http) -> None:
    events = events_of(caller.post("/graphs/fail/jobs", json=call({"x": 1}, wait=10), headers=FOLLOWING, stream=True))
    assert events[-1]["event"] == "result"
    assert events[-1]["data"]["error"]["type"] == "BlockFailed"
    assert events[-1]["data"]["output"] is None


def test_a_result_too_large_for_an_event_is_left_out(caller: Http) -> None:
    body = call({"x": ["y" * 400] * 2000}, wait=30)
    events = events_of(caller.post("/graphs/double/jobs", json=body, headers=FOLLOWING, stream=True))
    assert kinds(events)[-1] == "COMPLETED"
    job_id = events[0]["data"]["job_id"]
    assert len(json.dumps(caller.get(f"/jobs/{job_id}/output").json()["output"])) > 512 << 10


def test_a_caller_that_accepts_no_stream_gets_json(caller: Http, server: Http) -> None:
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = caller.post("/graphs/double/jobs", json=call({"x": 1}, wait=10), headers=headers)
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.json()["status"] == "COMPLETED"
    old = server.post("/graphs/double/jobs", json=call({"x": 1}, wait=10), headers=FOLLOWING)
    assert old.json()["status"] == "COMPLETED"


def test_a_job_that_waits_for_inputs_is_answered_with_its_row(caller: Http) -> None:
    import torch

    store = MemoryStore()
    with pack({"x": torch.randn(20_000)}, store) as packed:
        body = {"key": uuid.uuid4().hex, "inputs": packed.wire, "wait": 10}
    answer = caller.post("/graphs/double/jobs", json=body, headers=FOLLOWING)
    assert answer.status_code == 202
    assert answer.json()["status"] == "WAITING_INPUTS"
    caller.post(f"/jobs/{answer.json()['job_id']}/cancel")


def test_a_call_whose_key_was_cancelled_before_is_answered_as_cancelled(caller: Http) -> None:
    body = call({"x": 1}, wait=10)
    caller.post(f"/jobs/keys/{body['key']}/cancel")
    events = events_of(caller.post("/graphs/double/jobs", json=body, headers=FOLLOWING, stream=True))
    assert kinds(events) == ["job", "result"]
    assert events[-1]["data"]["status"] == "CANCELLED"


def test_a_call_of_a_replaced_graph_is_refused_if_it_names_the_old_hash(caller: Http, server: Http) -> None:
    server.deploy("replaced", one_node("double"))
    contract = caller.get("/graphs/replaced/contract").json()
    assert contract["conditional"] is True
    named = {"If-Match": f'"{contract["hash"]}"'}
    body = call({"x": 2}, wait=10)
    first = caller.post("/graphs/replaced/jobs", json=body, headers=named).json()
    assert first["status"] == "COMPLETED"
    assert caller.post("/graphs/replaced/jobs", json=body, headers={"If-Match": '"other"'}).json()["job_id"] == first["job_id"]
    server.deploy("replaced", one_node("say"))
    refused = caller.post("/graphs/replaced/jobs", json=call({"x": "2"}, wait=10), headers=named)
    assert error_of(refused) == (409, "JobConflict")
    assert refused.json()["error"]["details"]["reason"] == "contract"
    assert refused.json()["error"]["details"]["hash"] == caller.get("/graphs/replaced/contract").json()["hash"]
    for headers in ({}, {"If-Match": "*"}):
        assert caller.post("/graphs/replaced/jobs", json=call({"x": "2"}, wait=10), headers=headers).json()["status"] == "COMPLETED"
