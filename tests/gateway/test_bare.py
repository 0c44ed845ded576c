"""The bare dialect of a gateway before a real endpoint: submissions, results, refusals, composites, events and commands on the queue."""

from __future__ import annotations

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from samples.endpoints import EndpointProcess
from samples.gateways import GATEWAY_TOKEN, GatewayProcess
from samples.http_client import GateFile, Http, events_of, until

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


@pytest.fixture
def gate_file(tmp_path_factory: pytest.TempPathFactory) -> GateFile:
    return GateFile(tmp_path_factory.mktemp("gates"))


def error_of(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["type"]


def test_a_call_of_a_graph_returns_its_outputs(gateway: GatewayProcess) -> None:
    answer = gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 4}, "wait": 30})
    found = answer.json()
    assert (answer.status_code, found["status"], found["output"]) == (200, "COMPLETED", {"y": 8})
    assert (found["endpoint"], found["attempts"]) == ("forge", 1)


def test_a_tensor_of_an_output_is_fetched_through_the_gateway(gateway: GatewayProcess, endpoint: EndpointProcess) -> None:
    found = gateway.run("noise", seed=3)
    described = found["output"]["noise"]
    data = gateway.session.get(described["url"], timeout=30)
    direct = Http(endpoint).get(f"/artifacts/{described['url'].rpartition('/')[2]}")
    assert (described["dtype"], described["nbytes"]) == ("float32", 80_000)
    assert (data.status_code, data.content) == (200, direct.content)
    assert gateway.get(described["url"].removeprefix(gateway.url)[:-4] + "0000").status_code == 404


def test_an_error_of_the_run_is_reported_with_its_code_and_node(gateway: GatewayProcess) -> None:
    found = gateway.run("fail", {"x": 1})
    assert found["status"] == "FAILED"
    assert (found["error"]["code"], found["error"]["node"]) == ("block_failed", "node")
    assert "failed on purpose" in found["error"]["message"]


@pytest.mark.parametrize(
    "body, refusal",
    [
        ({"graph": "nope"}, (404, "UnknownGraph")),
        ({"graph": "double", "inputs": {"z": 1}}, (404, "UnknownName")),
        ({"graph": "double"}, (422, "MissingInput")),
        ({"graph": "double", "inputs": {"x": 1}, "wire": {}}, (400, "InvalidArgument")),
        ({"graph": "double", "workflow": {}}, (400, "InvalidArgument")),
        ({"graph": "double", "inputs": [1]}, (400, "InvalidArgument")),
        ({"graph": "double", "inputs": {"x": 1}, "priority": 1001}, (400, "InvalidArgument")),
        ({"graph": "double", "inputs": {"x": 1}, "priority": True}, (400, "InvalidArgument")),
        ({"graph": "double", "inputs": {"x": 1}, "ttl": 0}, (400, "InvalidArgument")),
        ({"graph": "double", "inputs": {"x": 1}, "ttl": float("nan")}, (400, "CorruptData")),
        ({"graph": "double", "inputs": {"x": 1}, "endpoint": "mill"}, (404, "UnknownEndpoint")),
        ({"graph": "double", "inputs": {"x": 1}, "mood": "good"}, (400, "InvalidArgument")),
        ({"workflow": {}}, (400, "InvalidConfig")),
        ({"workflow": {"1": {"class_type": "SaveImage", "inputs": {}}}}, (404, "UnknownName")),
        ({"workflow": {"steps": {}}}, (400, "InvalidConfig")),
        ({}, (400, "InvalidArgument")),
        ([], (400, "InvalidArgument")),
    ],
)
def test_a_bad_submission_is_refused(gateway: GatewayProcess, body: object, refusal: tuple[int, str]) -> None:
    answer = gateway.session.post(f"{gateway.url}/v1/workflows", data=json.dumps(body), timeout=30)
    assert error_of(answer) == refusal


def test_a_body_that_is_not_json_is_refused(gateway: GatewayProcess) -> None:
    answer = gateway.session.post(f"{gateway.url}/v1/workflows", data=b"{", timeout=30)
    assert error_of(answer) == (400, "CorruptData")


@pytest.mark.parametrize("path", ["", "/output", "/events", "/steps", "/files/0", "/artifacts/" + "0" * 64])
def test_an_unknown_job_is_404(gateway: GatewayProcess, path: str) -> None:
    assert error_of(gateway.get(f"/v1/jobs/{uuid.uuid4()}{path}")) == (404, "UnknownJob")


def test_a_submission_with_a_key_runs_once(gateway: GatewayProcess) -> None:
    key = uuid.uuid4().hex
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 1}, "key": key}), range(16)))
    assert len({answer.json()["job_id"] for answer in found}) == 1
    assert sorted(answer.status_code for answer in found) == [200] * 15 + [202]
    other = gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 2}, "key": key})
    assert error_of(other) == (409, "JobConflict")


def test_a_composite_runs_its_steps_in_order_and_hands_tensors_over(gateway: GatewayProcess, endpoint: EndpointProcess) -> None:
    steps = {
        "twice": {"graph": "double", "inputs": {"x": {"from": "noise.noise"}}},
        "noise": {"graph": "noise", "seed": 5},
        "four": {"graph": "double", "inputs": {"x": {"from": "twice.y"}}},
        "plain": {"graph": "double", "inputs": {"x": 3}},
    }
    composite = {"steps": steps, "outputs": {"big": "four.y", "small": "plain.y"}}
    job_id = gateway.post("/v1/workflows", {"workflow": composite}).json()["job_id"]
    found = gateway.result(job_id)
    assert (found["status"], found["output"]["small"]) == ("COMPLETED", 6)
    data = gateway.session.get(found["output"]["big"]["url"], timeout=30).content
    noise = Http(endpoint).run("noise", {}, run={"seed": 5})["noise"]
    assert data == (noise * 4).numpy().tobytes()
    listed = {step["step"]: step for step in gateway.get(f"/v1/jobs/{job_id}/steps").json()["steps"]}
    assert {step["status"] for step in listed.values()} == {"COMPLETED"}
    assert listed["noise"]["finished"] <= listed["twice"]["started"] <= listed["twice"]["finished"] <= listed["four"]["started"]


def test_a_composite_fails_with_its_step_and_cancels_the_others(gateway: GatewayProcess, gate_file: GateFile) -> None:
    steps = {
        "bad": {"graph": "fail", "inputs": {"x": 1}},
        "held": {"graph": "gate", "inputs": gate_file.inputs(x=1)},
        "after": {"graph": "double", "inputs": {"x": {"from": "bad.y"}}},
    }
    job_id = gateway.post("/v1/workflows", {"workflow": {"steps": steps}}).json()["job_id"]
    found = gateway.result(job_id)
    assert (found["status"], found["error"]["step"]) == ("FAILED", "bad")
    states = {step["step"]: step["status"] for step in gateway.get(f"/v1/jobs/{job_id}/steps").json()["steps"]}
    assert states == {"bad": "FAILED", "held": "CANCELLED", "after": "CANCELLED"}


@pytest.mark.parametrize(
    "steps, refusal",
    [
        ({"a": {"graph": "double", "inputs": {"x": {"from": "a.y"}}}}, "CycleFound"),
        ({"a": {"graph": "double", "inputs": {"x": {"from": "b.y"}}}}, "UnknownName"),
        ({"a": {"graph": "double", "inputs": {"x": {"from": "b"}}}}, "InvalidConfig"),
        ({"a": {"inputs": {}}}, "InvalidConfig"),
        ({"a": {"graph": "nope", "inputs": {}}}, "UnknownGraph"),
    ],
)
def test_a_bad_composite_is_refused(gateway: GatewayProcess, steps: object, refusal: str) -> None:
    answer = gateway.post("/v1/workflows", {"workflow": {"steps": steps}})
    assert answer.json()["error"]["type"] == refusal, answer.text


def test_a_cancelled_job_stops_at_its_endpoint(gateway: GatewayProcess, endpoint: EndpointProcess, gate_file: GateFile) -> None:
    job_id = gateway.submit("gate", gate_file.inputs(x=1))["job_id"]
    gate_file.wait_begun()
    assert gateway.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "CANCELLED"
    until(lambda: Http(endpoint).get("/jobs?limit=1&graph_id=gate").json()["jobs"][0]["status"] == "CANCELLED")
    assert gateway.result(job_id)["error"]["code"] == "cancelled"


def test_a_job_beyond_its_timeout_is_timed_out(gateway: GatewayProcess, endpoint: EndpointProcess, gate_file: GateFile) -> None:
    job_id = gateway.submit("gate", gate_file.inputs(x=1), timeout=0.3)["job_id"]
    found = gateway.result(job_id)
    assert (found["status"], found["error"]["code"]) == ("TIMED_OUT", "execution_timeout")
    until(lambda: Http(endpoint).get("/jobs?limit=1&graph_id=gate").json()["jobs"][0]["status"] == "CANCELLED")


def test_queued_jobs_are_paused_moved_and_prioritised(gateway: GatewayProcess, gate_file: GateFile) -> None:
    held = [gateway.submit("gate", gate_file.inputs(x=number))["job_id"] for number in range(3)]
    try:
        until(lambda: [gateway.status(job_id) for job_id in held] == ["IN_PROGRESS"] * 3)
        first, second, third = (gateway.submit("gate", gate_file.inputs(x=number))["job_id"] for number in range(3))
        paused = gateway.submit("gate", gate_file.inputs(), paused=True)["job_id"]

        def order() -> list[str]:
            return [job["job_id"] for job in gateway.get("/v1/queue").json()["jobs"] if not job["paused"]]

        assert order() == [first, second, third]
        gateway.post(f"/v1/jobs/{third}/move", {"before": second})
        assert order() == [first, third, second]
        gateway.post(f"/v1/jobs/{second}/priority", {"priority": 5})
        assert order() == [second, first, third]
        gateway.post(f"/v1/jobs/{third}/move", {})
        assert order() == [second, third, first]
        gateway.post(f"/v1/jobs/{second}/pause")
        assert order() == [third, first]
        gateway.post(f"/v1/jobs/{second}/resume")
        gate_file.open()
        for job_id in (first, second, third):
            assert gateway.result(job_id)["status"] == "COMPLETED"
        assert gateway.status(paused) == "IN_QUEUE"
        refused = gateway.post(f"/v1/jobs/{first}/pause")
        assert error_of(refused) == (400, "InvalidArgument")
        assert gateway.post(f"/v1/jobs/{paused}/cancel").json()["status"] == "CANCELLED"
    finally:
        gate_file.open()


def test_events_of_a_job_are_numbered_and_resume(gateway: GatewayProcess) -> None:
    job_id = gateway.run("double", {"x": 1})["job_id"]
    found = events_of(gateway.get(f"/v1/jobs/{job_id}/events", stream=True))
    states = [event["data"]["status"] for event in found if event["event"] == "status"]
    assert states == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    numbers = [event["id"] for event in found]
    assert numbers == sorted(set(numbers))
    rest = gateway.get(f"/v1/jobs/{job_id}/events", stream=True, headers={"Last-Event-ID": str(numbers[0])})
    assert [event["id"] for event in events_of(rest)] == numbers[1:]


def test_events_of_all_jobs_arrive_while_they_happen(gateway: GatewayProcess) -> None:
    stream = gateway.get("/v1/events", stream=True)
    found: list[dict[str, object]] = []
    reading = threading.Thread(target=lambda: found.extend(events_of(stream, 3)))
    reading.start()
    time.sleep(0.1)
    job_id = gateway.run("double", {"x": 1})["job_id"]
    reading.join(20)
    assert [event["data"]["job_id"] for event in found if isinstance(event["data"], dict)] == [job_id] * 3


def test_no_token_is_in_rows_logs_or_answers(gateway: GatewayProcess, endpoint: EndpointProcess) -> None:
    gateway.run("fail", {"x": 1})
    answers = gateway.get("/v1/jobs?limit=1000").text + gateway.get("/v1/endpoints").text + gateway.log()
    stored = b"".join(path.read_bytes() for path in gateway.data_dir.glob("gateway.sqlite*"))
    webhook_secret = (gateway.data_dir / "webhook_secret").read_text(encoding="utf-8").strip()
    for secret in (GATEWAY_TOKEN, endpoint.token, webhook_secret):
        assert secret not in answers
        assert secret.encode() not in stored


def test_health_endpoints_and_checkpoints_are_described(gateway: GatewayProcess) -> None:
    assert gateway.get("/v1/health").json()["endpoints"] == {"forge": True}
    (state,) = gateway.get("/v1/endpoints").json()["endpoints"]
    assert (state["name"], state["kind"], state["slots"]) == ("forge", "headless", 2)
    assert gateway.get("/v1/checkpoints").json() == {"checkpoints": [], "endpoints": []}
    assert requests.get(f"{gateway.url}/healthz", timeout=10).json() == {"status": "ok"}


def test_requests_without_the_token_are_refused(gateway: GatewayProcess) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "wrong"}):
        assert requests.get(f"{gateway.url}/v1/jobs", headers=headers, timeout=10).status_code == 401
    page = {**dict(gateway.session.headers), "Origin": "http://elsewhere.example"}
    assert requests.get(f"{gateway.url}/v1/jobs", headers={k: str(v) for k, v in page.items()}, timeout=10).status_code == 403
