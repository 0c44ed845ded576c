"""Links and folders as they are in practice: slow, buffered, cut off, shared by mistake."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samples.endpoints import EndpointProcess, free_port
from samples.http_client import BASE, GateFile, Http, in_background, one_node, until
from samples.links import VanishingMachine, buffering_proxy, slow_link, vanishing_machine
from yggdrasill.executor.context import enter_run
from yggdrasill.remote import RemoteGraph


def remote(http: Http, graph_id: str, url: str) -> RemoteGraph:
    return RemoteGraph(endpoint=http.process.client(url), graph_id=graph_id)


def status_in_list(http: Http, job_id: str) -> str:
    """Return the status of a job without a contact that counts as its caller's."""
    return {row["job_id"]: str(row["status"]) for row in http.get("/jobs").json()["jobs"]}[job_id]


def test_a_result_arrives_once_over_a_slow_link(server: Http) -> None:
    x = torch.rand(500_000)
    with slow_link(server.process.url, down=1 << 20) as link:
        assert torch.equal(remote(server, "double", link.url).run({"x": x})["y"], x * 2)
        assert x.nbytes < link.to_client < 1.2 * x.nbytes


def test_a_call_through_a_proxy_that_holds_back_every_answer_returns(server: Http, gate_file: GateFile) -> None:
    with buffering_proxy(server.process.url) as url:
        call = in_background(remote(server, "gate", url).run, gate_file.inputs(x=torch.arange(50_000)))
        gate_file.wait_begun()
        time.sleep(1.0)
        gate_file.open()
        assert torch.equal(call.result(20)["y"], torch.arange(50_000))
    assert gate_file.runs == 1


def test_a_caller_that_disconnects_from_a_proxy_is_noticed_behind_it(server: Http, gate_file: GateFile) -> None:
    with buffering_proxy(server.process.url) as url:
        key = uuid.uuid4().hex
        body = {"key": key, "inputs": {"skeleton": gate_file.inputs(x=1), "payloads": []}, "orphan_after": 0.5}
        job_id = server.session.post(f"{url}{BASE}/graphs/gate/jobs", json=body, timeout=20).json()["job_id"]
        gate_file.wait_begun()
        with pytest.raises(OSError, match="timed out"):
            server.session.get(f"{url}{BASE}/jobs/{job_id}/events", timeout=1.0)
        until(lambda: status_in_list(server, job_id) == "CANCELLED", 5.0)


def test_progress_is_reported_once_over_a_slow_link(server: Http) -> None:
    server.deploy("report", one_node("report", ("x", "repeat")))
    seen: list[float] = []
    with (
        slow_link(server.process.url, up=200_000, down=200_000) as link,
        enter_run(progress=lambda path, done, total, text: seen.append(done)),
    ):
        assert remote(server, "report", link.url).run({"x": "a", "repeat": 1}) == {"y": "a"}
    assert seen == sorted(set(seen))


@pytest.mark.faults
def test_an_upload_through_a_slow_proxy_that_buffers_is_sent_once(server: Http) -> None:
    x = torch.rand(2_000_000)
    with slow_link(server.process.url, up=160_000) as link:
        # the link accepts everything at once, and the endpoint is silent for 50 seconds
        assert torch.equal(remote(server, "double", link.url).run({"x": x})["y"], x * 2)
        assert x.nbytes < link.to_server < 1.2 * x.nbytes


# -- machines that vanish -----------------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Iterator[VanishingMachine]:
    with vanishing_machine() as found:
        if found is None:
            pytest.skip("this process may not make a network namespace")
        yield found


@pytest.fixture
def reached(machine: VanishingMachine, tmp_path: Path) -> Iterator[Http]:
    """Return an endpoint that the vanishing machine reaches."""
    process = EndpointProcess(
        "reached", tmp_path, plugins=["samples.served_blocks"], host="0.0.0.0", allow_hosts=[machine.here], port=free_port()
    ).start()
    http = Http(process)
    http.deploy("gate", one_node("gate", ("path", "x")))
    yield http
    process.stop()


def request_of(http: Http, machine: VanishingMachine, method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {BASE}{path} HTTP/1.1\r\nHost: {machine.here}\r\nAuthorization: Bearer {http.process.token}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def port_of(http: Http) -> int:
    return int(http.process.url.rsplit(":", 1)[1])


@pytest.mark.faults
def test_a_machine_that_vanishes_with_an_open_event_stream_is_noticed(
    reached: Http, machine: VanishingMachine, gate_file: GateFile
) -> None:
    job_id = reached.start("gate", gate_file.inputs(), orphan_after=2.0)
    machine.send(port_of(reached), request_of(reached, machine, "GET", f"/jobs/{job_id}/events"), answered=True)
    gate_file.wait_begun()
    time.sleep(4.0)
    assert status_in_list(reached, job_id) == "IN_PROGRESS"
    machine.vanish()
    until(lambda: reached.get("/jobs?status=CANCELLED").json()["jobs"], 45.0)


@pytest.mark.faults
def test_a_machine_that_vanishes_while_it_waits_for_an_answer_is_noticed(
    reached: Http, machine: VanishingMachine, gate_file: GateFile
) -> None:
    inputs = {"skeleton": gate_file.inputs(), "payloads": []}
    body = json.dumps({"key": uuid.uuid4().hex, "inputs": inputs, "wait": 15.0, "orphan_after": 2.0}).encode()
    machine.send(port_of(reached), request_of(reached, machine, "POST", "/graphs/gate/jobs", body), answered=False)
    gate_file.wait_begun()
    machine.vanish()
    until(lambda: reached.get("/jobs?status=CANCELLED").json()["jobs"], 30.0)


# -- two processes on one folder ----------------------------------------------------------------------------------


def refusal_of(process: EndpointProcess) -> str:
    """Return the last lines of the log of an endpoint that does not start."""
    process.begin()
    try:
        with pytest.raises(AssertionError, match="did not start") as refused:
            process.ready()
    finally:
        process.kill()
    return str(refused.value)


def test_a_second_process_on_a_data_folder_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    first = EndpointProcess("first", tmp_path / "data", plugins=["samples.served_blocks"]).start()
    try:
        http = Http(first)
        http.deploy("double", one_node("double"))
        x = torch.arange(20_000)
        job_id = http.start("double", {"x": x})
        message = refusal_of(EndpointProcess("second", tmp_path / "data", plugins=["samples.served_blocks"]))
        assert "Another endpoint uses" in message or "Another process uses" in message
        assert str(tmp_path / "data") in message
        assert "Traceback" not in message
        assert torch.equal(http.value(http.result(job_id)["output"])["y"], 2 * x)
        assert http.run("double", {"x": 3}) == {"y": 6}
    finally:
        first.stop()
    second = EndpointProcess("second", tmp_path / "data", plugins=["samples.served_blocks"]).start()
    try:
        assert Http(second).result(job_id)["status"] == "COMPLETED"
    finally:
        second.stop()


@pytest.mark.skipif(os.name == "nt", reason="a symbolic link needs rights that a user of this system may not have")
def test_a_second_process_whose_artifact_folder_is_that_of_the_first_is_refused(tmp_path: Path) -> None:
    first = EndpointProcess("first", tmp_path / "data", plugins=["samples.served_blocks"]).start()
    try:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "artifacts").symlink_to(tmp_path / "data" / "artifacts", target_is_directory=True)
        message = refusal_of(EndpointProcess("second", tmp_path / "other", plugins=["samples.served_blocks"]))
        assert "Another process uses" in message
        assert "artifacts" in message
        assert "Traceback" not in message
        http = Http(first)
        http.deploy("double", one_node("double"))
        assert torch.equal(http.run("double", {"x": torch.arange(20_000)})["y"], 2 * torch.arange(20_000))
    finally:
        first.stop()
