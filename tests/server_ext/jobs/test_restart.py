"""An endpoint that is killed or shut down during jobs and started again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samples.endpoints import EndpointProcess
from samples.http_client import GateFile, Http, events_of, in_background, one_node, until


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    process = EndpointProcess("mortal", tmp_path_factory.mktemp("mortal"), plugins=["samples.served_blocks"], grace=0.3).start()
    http = Http(process)
    for name in ("gate", "keeper"):
        http.deploy(name, one_node(name, ("path", "x")))
    http.deploy("double", one_node("double"))
    yield http
    process.stop()


def test_a_killed_endpoint_resumes_its_jobs(mortal: Http, tmp_path: Path) -> None:
    running, waiting = GateFile(tmp_path), GateFile(tmp_path)
    key = uuid.uuid4().hex
    x = torch.randn(8000)
    done = mortal.submit("double", {"x": x}, key=f"done-{key}").json()
    first = mortal.start("gate", running.inputs(x=x), key=key)
    second = mortal.start("gate", waiting.inputs(x=2))
    keeper = mortal.start("keeper", waiting.inputs())
    running.wait_begun()
    mortal.process.kill()
    running.open()
    waiting.open()
    mortal.process.start()

    again = mortal.submit("gate", running.inputs(x=x), key=key).json()
    assert again["job_id"] == first
    assert torch.equal(mortal.value(again["output"])["y"], x)
    assert running.runs == 2
    assert mortal.value(mortal.result(second)["output"]) == {"y": 2}
    assert mortal.value(mortal.result(keeper)["output"]) == {"y": 1}
    kept = mortal.result(done["job_id"])
    assert torch.equal(mortal.value(kept["output"])["y"], 2 * x)
    assert mortal.submit("double", {"x": x}, key=f"done-{key}").json()["job_id"] == done["job_id"]
    assert running.runs == 2


def test_a_running_stateful_job_is_not_run_again_after_a_kill(mortal: Http, tmp_path: Path) -> None:
    gate_file = GateFile(tmp_path)
    job_id = mortal.start("keeper", gate_file.inputs())
    gate_file.wait_begun()
    mortal.process.kill()
    gate_file.open()
    mortal.process.start()
    outcome = mortal.result(job_id)
    assert (outcome["status"], outcome["error"]["type"]) == ("FAILED", "EndpointFailed")
    assert "keeps state between calls" in outcome["error"]["message"]
    assert gate_file.runs == 1


def test_a_graceful_shutdown_waits_cancels_and_keeps_the_queue(mortal: Http, tmp_path: Path) -> None:
    stuck, waiting = GateFile(tmp_path), GateFile(tmp_path)
    held = mortal.start("gate", stuck.inputs(), detached=True)
    queued = mortal.start("gate", waiting.inputs(x=5), detached=True)
    stuck.wait_begun()
    ended = in_background(mortal.process.stop)
    ended.result(20)
    assert waiting.runs == 0
    waiting.open()
    mortal.process.start()
    until(lambda: mortal.status(queued) == "COMPLETED")
    outcome = mortal.result(held)
    assert (outcome["status"], stuck.runs) == ("CANCELLED", 1)
    assert "shutting down" in outcome["error"]["message"]


def test_event_numbers_increase_across_a_restart(mortal: Http) -> None:
    before = events_of(mortal.get(f"/jobs/{mortal.start('double', {'x': 1})}/events", stream=True))
    mortal.process.kill()
    mortal.process.start()
    job_id = mortal.start("double", {"x": 1})
    headers = {"Last-Event-ID": str(before[-1]["id"])}
    after = events_of(mortal.get("/events", stream=True, headers=headers), stop_after=3)
    numbers = [event["id"] for event in (*before, *after)]
    assert numbers == sorted(set(numbers))
    # the end of the first job is sent again if the process was killed before its event was stored
    repeated = [event["data"] for event in after if event["data"]["job_id"] != job_id]
    assert repeated in ([], [before[-1]["data"]])
