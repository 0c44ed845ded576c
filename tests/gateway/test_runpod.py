"""RunPod's dialect over plain HTTP: states, times, policies, limits, webhooks and what workers send at the wrong moment."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from samples.endpoints import EndpointProcess
from samples.gateways import GatewayProcess
from samples.http_client import until
from yggdrasill.server_ext.principals import PrincipalFile


class Worker:
    """A worker of the pool ``pool`` that is driven by hand."""

    def __init__(self, gateway: GatewayProcess, pool: str = "pool") -> None:
        self.name, self.gateway, self.pool = f"w-{uuid.uuid4().hex[:6]}", gateway, pool

    def take(self) -> dict[str, Any]:
        answer = self.gateway.get(f"/v2/{self.pool}/job-take/{self.name}?gpu=none&job_in_progress=0")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def done(self, job_id: str, body: Any) -> requests.Response:
        path = f"/v2/{self.pool}/job-done/{self.name}/{job_id}?gpu=none&isStream=false"
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.gateway.session.post(self.gateway.url + path, data=json.dumps(body), headers=headers, timeout=30)


@pytest.fixture
def worker(gateway: GatewayProcess) -> Iterator[Worker]:
    gateway.post("/v2/pool/purge-queue")
    yield Worker(gateway)
    gateway.post("/v2/pool/purge-queue")


def run(gateway: GatewayProcess, given: Any = None, pool: str = "pool", **facts: Any) -> str:
    answer = gateway.post(f"/v2/{pool}/run", {"input": given or {"x": 1}, **facts})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "IN_QUEUE"
    return str(answer.json()["id"])


def status(gateway: GatewayProcess, job_id: str, pool: str = "pool") -> dict[str, Any]:
    found: dict[str, Any] = gateway.get(f"/v2/{pool}/status/{job_id}").json()
    return found


def test_a_job_passes_through_its_states_with_its_times(gateway: GatewayProcess, worker: Worker) -> None:
    job_id = run(gateway)
    assert status(gateway, job_id) == {"id": job_id, "status": "IN_QUEUE"}
    time.sleep(0.05)
    assert worker.take() == {"id": job_id, "input": {"x": 1}}
    found = status(gateway, job_id)
    assert (found["status"], found["workerId"]) == ("IN_PROGRESS", worker.name)
    assert found["delayTime"] >= 50
    worker.done(job_id, {"status": "IN_PROGRESS", "output": {"step": 1}})
    assert status(gateway, job_id)["output"] == {"step": 1}
    worker.done(job_id, {"output": [1, None, "a"]})
    found = status(gateway, job_id)
    assert (found["status"], found["output"]) == ("COMPLETED", [1, None, "a"])
    assert found["executionTime"] >= 0


def test_what_a_worker_sends_after_the_end_does_not_count(gateway: GatewayProcess, worker: Worker) -> None:
    job_id = run(gateway)
    worker.take()
    worker.done(job_id, {"output": 1})
    assert worker.done(job_id, {"status": "IN_PROGRESS", "output": 2}).json() == {"ignored": True}
    assert worker.done(job_id, {"output": 3}).json() == {"ignored": True}
    assert Worker(gateway).done(job_id, {"error": "not mine"}).json() == {"ignored": True}
    assert (status(gateway, job_id)["status"], status(gateway, job_id)["output"]) == ("COMPLETED", 1)
    assert worker.done(str(uuid.uuid4()), {"output": 3}).status_code == 404


def test_a_null_result_is_a_result(gateway: GatewayProcess, worker: Worker) -> None:
    job_id = run(gateway)
    worker.take()
    worker.done(job_id, {"output": None})
    assert status(gateway, job_id)["status"] == "COMPLETED"
    assert status(gateway, job_id)["output"] is None


def test_runsync_and_status_wait_for_the_given_time(gateway: GatewayProcess, worker: Worker) -> None:
    begin = time.monotonic()
    answer = gateway.post("/v2/pool/runsync?wait=1000", {"input": {"x": 1}}).json()
    assert 0.9 < time.monotonic() - begin < 10
    assert answer["status"] == "IN_QUEUE"
    job_id = worker.take()["id"]
    answering = threading.Timer(0.2, worker.done, (job_id, {"output": "late"}))
    answering.start()
    assert gateway.get(f"/v2/pool/status/{job_id}?wait=20000").json()["output"] == "late"


def test_jobs_of_low_priority_are_taken_last(gateway: GatewayProcess, worker: Worker) -> None:
    low = run(gateway, policy={"lowPriority": True})
    high = run(gateway)
    assert [worker.take()["id"], worker.take()["id"]] == [high, low]


def test_a_batch_has_at_most_the_jobs_that_were_wanted(gateway: GatewayProcess, worker: Worker) -> None:
    ids = [run(gateway) for _ in range(3)]
    taken = gateway.get(f"/v2/pool/job-take-batch/{worker.name}?gpu=none&batch_size=2").json()
    assert [job["id"] for job in taken] == ids[:2]


def test_a_worker_learns_which_job_to_stop(gateway: GatewayProcess, worker: Worker) -> None:
    job_id = run(gateway)
    worker.take()
    assert gateway.post(f"/v2/pool/cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}
    assert gateway.get(f"/v2/pool/job-stop/{worker.name}?gpu=none").json() == {"jobsToStop": [job_id]}
    assert worker.done(job_id, {"output": 1}).json() == {"ignored": True}
    assert status(gateway, job_id)["status"] == "CANCELLED"


def test_only_failed_jobs_are_retried(gateway: GatewayProcess, worker: Worker) -> None:
    job_id = run(gateway)
    assert gateway.post(f"/v2/pool/retry/{job_id}").status_code == 400
    worker.take()
    worker.done(job_id, {"error": "once"})
    assert status(gateway, job_id)["error"] == "once"
    assert gateway.post(f"/v2/pool/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert worker.take()["id"] == job_id
    worker.done(job_id, {"output": "then"})
    assert status(gateway, job_id)["output"] == "then"
    assert gateway.get("/v2/pool/health").json()["jobs"]["retried"] >= 1


def test_purging_cancels_what_waits_and_nothing_else(gateway: GatewayProcess, worker: Worker) -> None:
    running = run(gateway)
    worker.take()
    waiting = [run(gateway) for _ in range(3)]
    assert gateway.post("/v2/pool/purge-queue").json() == {"removed": 3, "status": "completed"}
    assert {status(gateway, job_id)["status"] for job_id in waiting} == {"CANCELLED"}
    assert status(gateway, running)["status"] == "IN_PROGRESS"


def test_the_unprefixed_and_architectural_routes_are_the_same(gateway: GatewayProcess, worker: Worker) -> None:
    job_id = gateway.post("/run", {"input": {"x": 2}}).json()["id"]
    assert gateway.get(f"/status/{job_id}").json()["status"] == "IN_QUEUE"
    assert gateway.get(f"/yggdrasill/serverless/pool/status/{job_id}").json()["status"] == "IN_QUEUE"
    assert gateway.get(f"/v2/other/status/{job_id}").status_code == 404
    assert worker.take()["id"] == job_id


def test_a_graph_is_an_endpoint(gateway: GatewayProcess) -> None:
    answer = gateway.post("/v2/double/runsync", {"input": {"x": 21}}).json()
    assert (answer["status"], answer["output"], answer["workerId"]) == ("COMPLETED", {"y": 42}, "forge")
    failed = gateway.post("/v2/fail/runsync", {"input": {"x": 21}}).json()
    assert failed["status"] == "FAILED"
    assert json.loads(failed["error"])["code"] == "block_failed"
    assert gateway.get("/v2/double/health").json()["workers"]["ready"] == 1


@pytest.mark.parametrize(
    "body, code",
    [
        ({}, 400),
        ({"input": 1}, 400),
        ([], 400),
        ({"input": {}, "policy": []}, 400),
        ({"input": {}, "policy": {"ttl": 5}}, 400),
        ({"input": {}, "policy": {"executionTimeout": 1}}, 400),
        ({"input": {}, "policy": {"ttl": "1"}}, 400),
        ({"input": {}, "webhook": "ftp://example.com"}, 400),
        ({"input": {}, "webhook": 5}, 400),
        ({"input": {}, "s3Config": {"accessId": "a"}}, 400),
    ],
)
def test_a_bad_request_is_refused_with_a_text(gateway: GatewayProcess, body: Any, code: int) -> None:
    answer = gateway.post("/v2/pool/run", body)
    assert answer.status_code == code, answer.text
    assert isinstance(answer.json()["error"], str)


def test_an_unknown_endpoint_is_404(gateway: GatewayProcess) -> None:
    answer = gateway.post("/v2/nowhere/run", {"input": {}})
    assert (answer.status_code, "'pool'" in answer.json()["error"]) == (404, True)


def test_requests_over_the_limits_are_413(gateway: GatewayProcess, worker: Worker) -> None:
    assert gateway.post("/v2/pool/run", {"input": {"text": "x" * (10 << 20)}}).status_code == 413
    answer = gateway.post("/v2/pool/runsync?wait=1000", {"input": {"text": "x" * (11 << 20)}})
    assert (answer.status_code, answer.json()["status"]) == (200, "IN_QUEUE")
    job_id = worker.take()["id"]
    assert worker.done(job_id, {"output": "x" * (20 << 20)}).status_code == 413
    assert (status(gateway, job_id)["status"], "too large" in status(gateway, job_id)["error"]) == ("FAILED", True)


def test_jobs_end_with_their_times_and_rows_after_their_retention(endpoint: EndpointProcess, tmp_path: Any) -> None:
    process = GatewayProcess(tmp_path / "brief", [endpoint], pools=["pool"], run_retention=0.5, max_attempts=2, worker_lease=0.6).start()
    try:
        worker = Worker(process)
        job_id = run(process)
        worker.take()
        until(lambda: status(process, job_id)["status"] == "IN_QUEUE")
        worker.take()
        until(lambda: status(process, job_id)["status"] == "FAILED")
        assert "has vanished" in status(process, job_id)["error"]
        until(lambda: process.get(f"/v2/pool/status/{job_id}").status_code == 404)
    finally:
        process.stop()


# -- callers ------------------------------------------------------------------------------------------------------------


def test_callers_see_their_own_jobs_and_workers_need_their_role(gateway: GatewayProcess, worker: Worker) -> None:
    file = PrincipalFile(gateway.data_dir)
    suffix = uuid.uuid4().hex[:6]
    alice, bob = (file.add(f"{name}-{suffix}", ["run"], max_jobs=2) for name in ("alice", "bob"))
    hammer = file.add(f"hammer-{suffix}", ["work"])

    def call(token: str, method: str, path: str, body: Any = None) -> requests.Response:
        return requests.request(method, gateway.url + path, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    job_id = call(alice, "POST", "/v2/pool/run", {"input": {"x": 1}}).json()["id"]
    assert call(bob, "GET", f"/v2/pool/status/{job_id}").status_code == 404
    assert call(bob, "POST", f"/v2/pool/cancel/{job_id}").status_code == 404
    assert call(bob, "POST", "/v2/pool/purge-queue").json()["removed"] == 0
    assert call(alice, "GET", "/v2/pool/job-take/w").status_code == 403
    assert call(hammer, "POST", "/v2/pool/run", {"input": {"x": 1}}).status_code == 403
    assert call(alice, "POST", "/v1/workflows", {"workflow": {"1": {"class_type": "A", "inputs": {}}}}).status_code == 403
    assert call(alice, "POST", "/v2/pool/run", {"input": {"x": 1}}).status_code == 200
    assert call(alice, "POST", "/v2/pool/run", {"input": {"x": 1}}).status_code == 429
    raw = requests.get(f"{gateway.url}/v2/pool/job-take/w", headers={"Authorization": hammer}, timeout=30)
    assert raw.json()["id"] == job_id
    file.revoke(f"alice-{suffix}")
    until(lambda: status(gateway, job_id)["status"] == "CANCELLED")


# -- webhooks -----------------------------------------------------------------------------------------------------------


class Receiver:
    """A server that refuses the first ``refusals`` deliveries."""

    def __init__(self) -> None:
        self.refusals = 0
        self.received: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((dict(self.headers), body))
                self.send_response(500 if len(receiver.received) <= receiver.refusals else 200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?secret=of-the-client"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_webhook_is_signed_and_repeated_until_it_is_accepted(gateway: GatewayProcess, worker: Worker, receiver: Receiver) -> None:
    receiver.refusals = 2
    job_id = run(gateway, webhook=receiver.url)
    worker.take()
    worker.done(job_id, {"output": {"y": 1}})
    until(lambda: len(receiver.received) == 3)
    time.sleep(0.3)
    assert len(receiver.received) == 3
    headers, body = receiver.received[-1]
    assert json.loads(body) == status(gateway, job_id)
    secret = (gateway.data_dir / "webhook_secret").read_text(encoding="utf-8").strip().encode()
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.new(secret, text, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    assert len({entry[0]["webhook-id"] for entry in receiver.received}) == 1
    assert "of-the-client" not in gateway.log() + gateway.get("/v1/jobs?limit=1000").text


def test_a_webhook_survives_a_kill_of_the_gateway(endpoint: EndpointProcess, tmp_path: Any, receiver: Receiver) -> None:
    receiver.refusals = 1
    process = GatewayProcess(tmp_path / "hooks", [endpoint], private_webhooks=True, webhook_delays=[1.0] * 5).start()
    try:
        process.submit("double", {"x": 1}, webhook=receiver.url)
        until(lambda: len(receiver.received) == 1)
        time.sleep(0.3)
        process.kill()
        process.start()
        until(lambda: len(receiver.received) == 2)
        assert json.loads(receiver.received[1][1])["output"] == {"y": 2}
    finally:
        process.stop()
