"""Jobs in protocol 2 over HTTP: rows before inputs and builds, deployments as jobs, and ends in every state."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.endpoints import EndpointProcess
from samples.http_client import GateFile, Http, error_of, events_of, one_node, until
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import pack

BUILD_SECONDS = 3.0


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    """Return a caller in protocol 2 of an endpoint with two slots."""
    process = EndpointProcess("staging", tmp_path_factory.mktemp("staging"), plugins=["samples.served_blocks"], slots=2, grace=0.3).start()
    caller = Http(process, protocol=2)
    for name in ("gate", "keeper"):
        deploy(caller, name, one_node(name, ("path", "x")), wait=30)
    deploy(caller, "double", one_node("double"), wait=30)
    yield caller
    process.stop()


def deploy(http: Http, graph_id: str, config: dict[str, Any], **facts: Any) -> tuple[int, dict[str, Any]]:
    answer = http.put(f"/graphs/{graph_id}", json={"kind": "graph", "config": config, **facts})
    return answer.status_code, answer.json()


def weighty(**config: Any) -> dict[str, Any]:
    return one_node("weighty", ("path", "x"), build_seconds=BUILD_SECONDS, **config)


def call(value: Any, store: MemoryStore | None = None, **facts: Any) -> dict[str, Any]:
    """Return the body of a call. Its artifacts are in ``store``."""
    store = store or MemoryStore()
    with pack(value, store) as packed:
        store.lease("test", packed.artifacts)
        return {"key": uuid.uuid4().hex, "inputs": packed.wire, **facts}


def start(http: Http, graph_id: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(f"/graphs/{graph_id}/jobs", json=body)
    assert answer.status_code in (200, 202), answer.text
    row: dict[str, Any] = answer.json()
    return row


def with_tensor() -> tuple[torch.Tensor, MemoryStore, dict[str, Any]]:
    """Return a tensor, a store with its bytes, and the body of a call that needs them."""
    x, store = torch.randn(20_000), MemoryStore()
    return x, store, call({"x": x}, store, wait=10)


def upload(http: Http, store: MemoryStore, names: list[str]) -> None:
    for name in names:
        assert http.put(f"/artifacts/{name}", data=bytes(store.read(name))).status_code in (200, 201)


@pytest.mark.parametrize("how", ["inputs", "submission"])
def test_a_call_with_missing_inputs_waits_for_them_and_runs_when_they_arrive(endpoint: Http, how: str) -> None:
    x, store, body = with_tensor()
    began = time.monotonic()
    row = start(endpoint, "double", body)
    assert time.monotonic() - began < 5
    assert (row["status"], len(row["missing"])) == ("WAITING_INPUTS", 1)
    assert endpoint.get(f"/jobs/{row['job_id']}").json()["missing"] == row["missing"]
    unchanged = endpoint.post(f"/jobs/{row['job_id']}/inputs", json={}).json()
    assert unchanged["job_id"] == row["job_id"]
    until(lambda: endpoint.status(row["job_id"]) == "WAITING_INPUTS")
    upload(endpoint, store, row["missing"])
    if how == "inputs":
        assert endpoint.post(f"/jobs/{row['job_id']}/inputs", json={}).json()["status"] in (
            "STAGING",
            "IN_QUEUE",
            "IN_PROGRESS",
            "COMPLETED",
        )
    else:
        assert start(endpoint, "double", body)["job_id"] == row["job_id"]
    outcome = endpoint.result(row["job_id"])
    assert outcome["status"] == "COMPLETED"
    assert torch.equal(endpoint.value(outcome["output"])["y"], 2 * x)
    assert endpoint.post(f"/jobs/{row['job_id']}/inputs", json={}).json()["status"] == "COMPLETED"
    events = events_of(endpoint.get(f"/jobs/{row['job_id']}/events", stream=True))
    states = [event["data"]["status"] for event in events if event["event"] == "status"]
    assert states[:2] == ["STAGING", "WAITING_INPUTS"]
    assert states[-4:] == ["STAGING", "IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    waiting = next(event for event in events if event["data"].get("status") == "WAITING_INPUTS")
    assert waiting["data"]["missing"] == row["missing"]


def test_a_call_whose_inputs_are_stored_is_queued_at_once(endpoint: Http) -> None:
    _, store, body = with_tensor()
    upload(endpoint, store, [body["inputs"]["payloads"][0]["artifact"]])
    row = start(endpoint, "double", body)
    events = events_of(endpoint.get(f"/jobs/{row['job_id']}/events", stream=True))
    states = [event["data"]["status"] for event in events if event["event"] == "status"]
    assert states == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def test_a_deployment_and_its_calls_answer_before_it_is_built(endpoint: Http, gate_file: GateFile) -> None:
    gate_file.open()
    status, row = deploy(endpoint, "slow", weighty())
    assert (status, row["kind"], row["graph_id"]) == (202, "deploy", "slow")
    called = start(endpoint, "slow", call(gate_file.inputs(x=1)))
    assert called["status"] == "STAGING"
    outcome = endpoint.result(row["job_id"])
    assert (outcome["status"], outcome["output"]["created"], outcome["attempts"]) == ("COMPLETED", True, 1)
    assert outcome["output"]["kind"] == "graph"
    assert endpoint.value(endpoint.result(called["job_id"])["output"]) == {"y": 1}
    status, again = deploy(endpoint, "slow", weighty())
    assert (status, again) == (200, {"graph_id": "slow", "kind": "graph", "hash": outcome["output"]["hash"], "created": False})


def test_a_deployment_that_ends_within_wait_is_answered_with_its_output(endpoint: Http) -> None:
    status, answer = deploy(endpoint, "quick", one_node("double"), wait=20, key="deploy-quick")
    assert (status, answer["status"], answer["output"]["created"]) == (201, "COMPLETED", True)
    status, again = deploy(endpoint, "quick", one_node("double"), wait=20, key="deploy-quick")
    assert (status, again["job_id"]) == (201, answer["job_id"])
    status, other = deploy(endpoint, "quick", one_node("noise", ()), key="deploy-quick")
    assert (status, other["error"]["type"]) == (409, "JobConflict")


def test_a_failed_deployment_is_a_failed_job_with_the_error_of_the_build(endpoint: Http) -> None:
    status, answer = deploy(endpoint, "broken", weighty(build_error="these weights are damaged"), wait=20)
    assert (status, answer["status"]) == (200, "FAILED")
    assert "these weights are damaged" in answer["error"]["message"]
    assert error_of(endpoint.post("/graphs/broken/jobs", json=call({"path": "x"}))) == (404, "UnknownGraph")


def test_the_state_of_a_deployment_is_requested_and_brought_as_the_inputs_of_a_call(endpoint: Http) -> None:
    store = MemoryStore()
    with pack({"node": {"weight": torch.randn(100, 100), "bias": torch.zeros(100)}}, store) as packed:
        status, row = deploy(endpoint, "linear", one_node("linear", size=100), state=packed.wire, wait=10)
        assert (status, row["status"], row["missing"]) == (202, "WAITING_INPUTS", packed.artifacts)
        store.lease("test", packed.artifacts)
    upload(endpoint, store, row["missing"])
    endpoint.post(f"/jobs/{row['job_id']}/inputs", json={})
    outcome = endpoint.result(row["job_id"])
    assert outcome["status"] in ("COMPLETED", "FAILED")
    assert outcome["missing"] == []


def test_a_cancelled_job_that_waits_for_inputs_never_runs(endpoint: Http, gate_file: GateFile) -> None:
    gate_file.open()
    store = MemoryStore()
    row = start(endpoint, "gate", call(gate_file.inputs(x=torch.randn(20_000)), store, wait=10))
    assert row["status"] == "WAITING_INPUTS"
    endpoint.post(f"/jobs/{row['job_id']}/cancel")
    upload(endpoint, store, row["missing"])
    assert endpoint.result(row["job_id"])["status"] == "CANCELLED"
    assert endpoint.post(f"/jobs/{row['job_id']}/inputs", json={}).json()["status"] == "CANCELLED"
    time.sleep(0.3)
    assert gate_file.runs == 0


def test_a_job_that_is_cancelled_while_its_graph_is_built_never_runs(endpoint: Http, gate_file: GateFile) -> None:
    gate_file.open()
    name = f"slow-{uuid.uuid4().hex}"
    _, built = deploy(endpoint, name, weighty())
    row = start(endpoint, name, call(gate_file.inputs(x=1)))
    cancelled = start(endpoint, name, call(gate_file.inputs(x=2)))
    endpoint.post(f"/jobs/{cancelled['job_id']}/cancel")
    began = time.monotonic()
    assert endpoint.result(cancelled["job_id"])["status"] == "CANCELLED"
    assert time.monotonic() - began < BUILD_SECONDS
    assert endpoint.result(built["job_id"])["status"] == "COMPLETED"
    assert endpoint.result(row["job_id"])["status"] == "COMPLETED"
    assert gate_file.runs == 1


def test_a_cancelled_deployment_ends_at_once(endpoint: Http) -> None:
    _, row = deploy(endpoint, f"slow-{uuid.uuid4().hex}", weighty())
    until(lambda: endpoint.status(row["job_id"]) == "IN_PROGRESS")
    endpoint.post(f"/jobs/{row['job_id']}/cancel")
    began = time.monotonic()
    assert endpoint.result(row["job_id"])["status"] == "CANCELLED"
    assert time.monotonic() - began < BUILD_SECONDS
    time.sleep(BUILD_SECONDS)
    assert endpoint.status(row["job_id"]) == "CANCELLED"


def test_a_job_is_found_by_its_key(endpoint: Http) -> None:
    row = start(endpoint, "double", call({"x": 1}, wait=10))
    found = endpoint.get(f"/jobs/keys/{row['key']}")
    assert (found.status_code, found.json()["job_id"]) == (200, row["job_id"])
    assert error_of(endpoint.get("/jobs/keys/unused")) == (404, "UnknownJob")


def test_a_job_of_higher_priority_starts_first(endpoint: Http, gate_file: GateFile, tmp_path: Path) -> None:
    other = GateFile(tmp_path)
    start(endpoint, "gate", call(gate_file.inputs()))
    start(endpoint, "keeper", call(other.inputs()))
    gate_file.wait_begun()
    other.wait_begun()
    rows = [start(endpoint, "double", call({"x": 1}, priority=priority)) for priority in (-5, 0, 7)]
    assert [(row["status"], row["priority"]) for row in rows] == [("IN_QUEUE", -5), ("IN_QUEUE", 0), ("IN_QUEUE", 7)]
    gate_file.open()
    began = [endpoint.result(row["job_id"])["started"] for row in rows]
    other.open()
    assert began == sorted(began, reverse=True)


def test_a_job_that_misses_its_deadline_is_timed_out_in_any_state(endpoint: Http, gate_file: GateFile) -> None:
    _, _, lacking = with_tensor()
    rows = [
        start(endpoint, "gate", call(gate_file.inputs(), deadline=0.6)),
        start(endpoint, "double", {**lacking, "deadline": 0.6}),
    ]
    for row in rows:
        assert abs(row["deadline"] - row["created"] - 0.6) < 1e-6
        outcome = endpoint.get(f"/jobs/{row['job_id']}/output?wait=10").json()
        until(lambda row=row: endpoint.status(row["job_id"]) == "TIMED_OUT")
        outcome = endpoint.result(row["job_id"])
        assert outcome["error"]["type"] == "TimedOut"
        assert "deadline" in outcome["error"]["message"]


def test_a_caller_that_stays_silent_during_its_upload_loses_its_job(endpoint: Http) -> None:
    _, _, body = with_tensor()
    row = start(endpoint, "double", {**body, "orphan_after": 0.3})
    assert row["status"] == "WAITING_INPUTS"
    time.sleep(1.2)
    assert endpoint.status(row["job_id"]) == "CANCELLED"


def test_jobs_survive_a_kill_in_every_state(endpoint: Http, tmp_path: Path) -> None:
    gate, keeper = GateFile(tmp_path), GateFile(tmp_path)
    x, store, body = with_tensor()
    waiting = start(endpoint, "double", body)
    running = start(endpoint, "gate", call(gate.inputs(x=1)))
    stateful = start(endpoint, "keeper", call(keeper.inputs()))
    gate.wait_begun()
    keeper.wait_begun()
    queued = start(endpoint, "gate", call(gate.inputs(x=2), priority=3))
    _, built = deploy(endpoint, "late", weighty())
    staged = start(endpoint, "late", call(gate.inputs(x=3)))
    assert [endpoint.status(row["job_id"]) for row in (waiting, running, queued, staged)] == [
        "WAITING_INPUTS", "IN_PROGRESS", "IN_QUEUE", "STAGING",
    ]  # fmt: skip
    endpoint.process.kill()
    gate.open()
    endpoint.process.start()
    found = endpoint.get(f"/jobs/{waiting['job_id']}").json()
    assert (found["status"], found["missing"]) == ("WAITING_INPUTS", waiting["missing"])
    upload(endpoint, store, waiting["missing"])
    assert start(endpoint, "double", body)["job_id"] == waiting["job_id"]
    outcomes = [endpoint.result(row["job_id"]) for row in (waiting, running, queued, staged, built, stateful)]
    assert [outcome["status"] for outcome in outcomes] == ["COMPLETED"] * 5 + ["FAILED"]
    assert "keeps state between calls" in outcomes[-1]["error"]["message"]
    assert [outcome["attempts"] for outcome in outcomes] == [1, 2, 1, 1, 2, 1]
    assert outcomes[2]["priority"] == 3
    assert torch.equal(endpoint.value(outcomes[0]["output"])["y"], 2 * x)


def test_a_caller_in_protocol_1_receives_its_answers_when_the_work_is_done(endpoint: Http, gate_file: GateFile) -> None:
    gate_file.open()
    earlier = Http(endpoint.process)
    name = f"slow-{uuid.uuid4().hex}"
    began = time.monotonic()
    assert earlier.deploy(name, weighty())["created"]
    assert time.monotonic() - began >= BUILD_SECONDS
    assert earlier.run(name, gate_file.inputs(x=torch.ones(20_000)))["y"].sum() == 20_000
