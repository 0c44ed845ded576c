"""A gateway whose endpoints die, fill up and come back, that is killed and restarted itself, and two gateways on one database."""

from __future__ import annotations

import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from samples.endpoints import EndpointProcess
from samples.gateways import GatewayProcess
from samples.http_client import GateFile, Http, one_node, until

PLUGINS = ["samples.served_blocks"]
GRAPHS = {"double": ("x",), "gate": ("path", "x"), "keeper": ("path", "x")}


class Pair:
    """Two endpoints with one slot each, and gateways before them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoints = {
            name: EndpointProcess(name, folder / name, plugins=PLUGINS, slots=1, max_queue=2) for name in ("anvil", "bellows")
        }
        self.gateways: list[GatewayProcess] = []
        for process in self.endpoints.values():
            process.begin()
        for process in self.endpoints.values():
            process.ready()
            self.deploy(process)

    @staticmethod
    def deploy(process: EndpointProcess) -> None:
        http = Http(process)
        for name, inputs in GRAPHS.items():
            http.deploy(name, one_node(name, inputs))

    def gateway(self, name: str | None = None, **settings: Any) -> GatewayProcess:
        process = GatewayProcess(self.folder / (name or uuid.uuid4().hex), self.endpoints.values(), **settings).start()
        self.gateways.append(process)
        return process

    def revive(self) -> None:
        """Start the endpoints again that a test has killed."""
        for process in self.endpoints.values():
            if process._process is None:
                process.start()


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    found = Pair(tmp_path_factory.mktemp("pair"))
    yield found
    for process in found.endpoints.values():
        process.kill()


@pytest.fixture
def pair(endpoints: Pair) -> Iterator[Pair]:
    endpoints.revive()
    yield endpoints
    for process in endpoints.gateways:
        process.kill()
    endpoints.gateways.clear()
    # a held run of one test is not one of the next
    for endpoint in endpoints.endpoints.values():
        if endpoint._process is not None:
            http = Http(endpoint)
            for row in http.get("/jobs?limit=100").json()["jobs"]:
                if row["finished"] is None:
                    http.post(f"/jobs/{row['job_id']}/cancel", json={})


@pytest.fixture
def gate_file(tmp_path: Path) -> Iterator[GateFile]:
    found = GateFile(tmp_path)
    yield found
    found.open()


def place_of(gateway: GatewayProcess, job_id: str) -> str:
    return str(gateway.get(f"/v1/jobs/{job_id}").json()["endpoint"])


def test_jobs_are_spread_by_load(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway()
    held = [gateway.submit("gate", gate_file.inputs(x=number))["job_id"] for number in range(2)]
    until(lambda: [gateway.status(job_id) for job_id in held] == ["IN_PROGRESS"] * 2)
    assert {place_of(gateway, job_id) for job_id in held} == {"anvil", "bellows"}


def test_what_endpoints_cannot_take_waits_in_the_gateway(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway(ahead=1)
    held = [gateway.submit("gate", gate_file.inputs(x=number))["job_id"] for number in range(8)]
    until(lambda: gateway.get("/v1/health").json()["jobs"]["IN_PROGRESS"] == 4)
    time.sleep(0.7)
    assert gateway.get("/v1/health").json()["jobs"]["IN_QUEUE"] == 4
    gate_file.open()
    assert [gateway.result(job_id)["output"] for job_id in held] == [{"y": number} for number in range(8)]


def test_a_full_queue_of_the_gateway_is_429_with_retry_after(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway(max_queue=3, ahead=0)
    held = [gateway.submit("gate", gate_file.inputs(x=1))["job_id"] for _ in range(2)]
    until(lambda: [gateway.status(job_id) for job_id in held] == ["IN_PROGRESS"] * 2)
    for _ in range(3):
        gateway.submit("gate", gate_file.inputs(x=1))
    answer = gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 1}})
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "QueueFull")
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_job_whose_endpoint_dies_runs_at_another(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway()
    job_id = gateway.submit("gate", gate_file.inputs(x=7))["job_id"]
    gate_file.wait_begun()
    first = place_of(gateway, job_id)
    pair.endpoints[first].kill()
    gate_file.wait_begun(2)
    gate_file.open()
    found = gateway.result(job_id)
    assert (found["status"], found["output"], found["attempts"], found["retries"]) == ("COMPLETED", {"y": 7}, 2, 1)
    assert found["endpoint"] != first


def test_a_job_of_a_stateful_graph_does_not_run_elsewhere(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway(graphs={"keeper": "anvil"})
    job_id = gateway.submit("keeper", gate_file.inputs(x=7))["job_id"]
    gate_file.wait_begun()
    pair.endpoints["anvil"].kill()
    found = gateway.result(job_id)
    assert (found["status"], found["error"]["type"]) == ("FAILED", "EndpointUnreachable")
    assert "keeps state" in found["error"]["message"]


def test_retries_obey_the_budget(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway(retry_reserve=0.0)
    job_id = gateway.submit("gate", gate_file.inputs(x=7))["job_id"]
    gate_file.wait_begun()
    pair.endpoints[place_of(gateway, job_id)].kill()
    found = gateway.result(job_id)
    assert (found["status"], found["error"]["code"], gate_file.runs) == ("FAILED", "retry_budget", 1)


def test_jobs_wait_while_no_endpoint_answers(pair: Pair) -> None:
    gateway = pair.gateway(graphs={"double": {"replicas": ["anvil", "bellows"]}})
    for process in pair.endpoints.values():
        process.kill()
    until(lambda: not any(gateway.get("/v1/health").json()["endpoints"].values()))
    job_id = gateway.submit("double", {"x": 2})["job_id"]
    time.sleep(0.3)
    assert gateway.status(job_id) == "IN_QUEUE"
    pair.revive()
    assert gateway.result(job_id)["output"] == {"y": 4}


def test_a_killed_gateway_resumes_its_jobs_without_running_them_again(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway("resumed", lease=600.0, ahead=0)
    jobs = [gateway.submit("gate", gate_file.inputs(x=number))["job_id"] for number in range(4)]
    gate_file.wait_begun(2)
    gateway.kill()
    gateway.start()
    assert [gateway.status(job_id) for job_id in jobs] == ["IN_PROGRESS"] * 2 + ["IN_QUEUE"] * 2
    gate_file.open()
    assert [gateway.result(job_id)["output"] for job_id in jobs] == [{"y": number} for number in range(4)]
    assert gate_file.runs == 4


def test_a_stopped_gateway_gives_its_jobs_back(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway("stopped", grace=0.1)
    job_id = gateway.submit("gate", gate_file.inputs(x=3))["job_id"]
    gate_file.wait_begun()
    gateway.stop()
    rows = sqlite3.connect(gateway.data_dir / "gateway.sqlite").execute("SELECT status, attempts FROM jobs").fetchall()
    assert rows == [("IN_QUEUE", 0)]
    gate_file.open()
    gateway.start()
    assert gateway.result(job_id)["output"] == {"y": 3}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_gateways_share_a_database(pair: Pair, gate_file: GateFile, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    database = request.getfixturevalue("postgres") if kind == "postgresql" else f"sqlite:///{tmp_path / 'shared.sqlite'}"
    one, two = (pair.gateway(database=database, lease=1.0, pools=["pool"]) for _ in range(2))
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda number: (one, two)[number % 2].submit("double", {"x": number})["job_id"], range(40)))
    outputs = [(two, one)[number % 2].result(job_id) for number, job_id in enumerate(sent)]
    assert [found["output"] for found in outputs] == [{"y": 2 * number} for number in range(40)]
    assert {found["attempts"] for found in outputs} == {1}

    held = one.submit("gate", gate_file.inputs(x=1))["job_id"]
    other = two.submit("gate", gate_file.inputs(x=2))["job_id"]
    # each gateway may choose the same endpoint, which runs one job at a time
    gate_file.wait_begun()
    until(lambda: [two.status(job_id) for job_id in (held, other)] == ["IN_PROGRESS"] * 2)
    one.kill()
    gate_file.open()
    assert [two.result(job_id)["output"] for job_id in (held, other)] == [{"y": 1}, {"y": 2}]
    assert gate_file.runs == 2

    stopped = two.submit("gate", {"path": str(tmp_path / "never")})["job_id"]
    until(lambda: two.status(stopped) == "IN_PROGRESS")
    one.start()
    assert one.post(f"/v1/jobs/{stopped}/cancel").json()["status"] == "CANCELLED"
    assert two.status(stopped) == "CANCELLED"
    queued = one.post("/v2/pool/run", {"input": {"x": 1}}).json()["id"]
    assert two.get("/v2/pool/job-take/w1?gpu=1").json()["id"] == queued


def test_a_database_that_goes_away_is_503_and_jobs_go_on_when_it_is_back(pair: Pair, gate_file: GateFile) -> None:
    gateway = pair.gateway("away")
    job_id = gateway.submit("gate", gate_file.inputs(x=9))["job_id"]
    gate_file.wait_begun()
    file, hidden = gateway.data_dir / "gateway.sqlite", gateway.data_dir / "hidden.sqlite"
    file.rename(hidden)
    answer = gateway.post("/v1/workflows", {"graph": "double", "inputs": {"x": 1}})
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "StorageFailed")
    assert str(gateway.data_dir) not in answer.text
    gate_file.open()
    time.sleep(0.5)
    hidden.rename(file)
    assert gateway.result(job_id)["output"] == {"y": 9}
    assert gate_file.runs == 1


def test_a_second_gateway_on_the_same_data_folder_is_refused(pair: Pair) -> None:
    gateway = pair.gateway("once")
    second = GatewayProcess(gateway.data_dir, pair.endpoints.values())
    with pytest.raises(AssertionError, match="Another gateway uses the data folder"):
        second.start()
    second.kill()


def test_changed_endpoints_are_read_again(pair: Pair) -> None:
    gateway = pair.gateway("edited")
    file = Path(str(gateway.settings["endpoints"]))
    kept = file.with_suffix(".kept")
    shutil.copy(file, kept)
    file.write_text("endpoints: [", encoding="utf-8")
    time.sleep(2.5)
    assert gateway.run("double", {"x": 1})["output"] == {"y": 2}
    file.write_text("endpoints: {}", encoding="utf-8")
    until(lambda: gateway.get("/v1/endpoints").json()["endpoints"] == [])
    kept.replace(file)
    until(lambda: len(gateway.get("/v1/endpoints").json()["endpoints"]) == 2)
    assert gateway.run("double", {"x": 1})["output"] == {"y": 2}
