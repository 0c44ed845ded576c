"""The unmodified ``runpod`` package, client and worker, with the gateway in the place of RunPod's API.

It is installed in an environment of its own, because it brings about a hundred packages: ``RUNPOD_PYTHON`` names its Python, or
``~/tools/venvs/runpod/bin/python`` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.gateways import GATEWAY_TOKEN, GatewayProcess
from samples.http_client import until
from yggdrasill.gateway.dialects.runpod_worker import environment_of_worker

SDK = Path(os.environ.get("RUNPOD_PYTHON", "~/tools/venvs/runpod/bin/python")).expanduser()
pytestmark = pytest.mark.skipif(not SDK.exists(), reason="the runpod SDK is not installed; set RUNPOD_PYTHON")

WORKER = """
import asyncio, os, sys
import runpod

async def handler(job):
    given = job["input"]
    if given.get("fail"):
        return {"error": "failed on purpose"}
    if given.get("raise"):
        raise ValueError("raised on purpose")
    if given.get("big"):
        return {"text": "x" * given["big"]}
    for step in range(given.get("steps", 0)):
        runpod.serverless.progress_update(job, {"step": step})
        await asyncio.sleep(0.3)
    if given.get("hang"):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            open(given["hang"], "w").close()
            raise
    return {"twice": 2 * given["x"]}

async def streaming(job):
    for number in range(job["input"]["count"]):
        yield {"number": number}
        await asyncio.sleep(0.05)

config = {"handler": streaming if os.environ.get("STREAMS") else handler, "return_aggregate_stream": True, "concurrency_modifier": lambda current: 3}
if os.environ.get("REFRESH"):
    config["refresh_worker"] = True
runpod.serverless.start(config)
"""

CLIENT = """
import json, sys, time
import runpod
command, arguments = sys.argv[1], json.loads(sys.argv[2])
runpod.api_key = arguments["key"]
endpoint = runpod.Endpoint(arguments["pool"])
if command == "run_sync":
    found = endpoint.run_sync({"input": arguments["input"]}, timeout=30)
elif command == "health":
    found = endpoint.health(timeout=20)
elif command == "purge":
    found = endpoint.purge_queue(timeout=20)
else:
    run = endpoint.run({"input": arguments["input"]})
    if command == "run":
        found = [run.output(timeout=30), run.status()]
    elif command == "stream":
        found = [list(run.stream()), run.status(), run.output()]
    elif command == "cancel":
        while run.status() != "IN_PROGRESS":
            time.sleep(0.1)
        found = [run.cancel(timeout=20), run.status()]
    elif command == "start":
        found = run.job_id
print("RESULT" + json.dumps(found))
"""


class Sdk:
    """Runs workers and clients of the SDK for one gateway."""

    def __init__(self, gateway: GatewayProcess, folder: Path) -> None:
        self.gateway, self.folder = gateway, folder
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "worker.py").write_text(WORKER, encoding="utf-8")
        (folder / "client.py").write_text(CLIENT, encoding="utf-8")

    def _environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**kept, "RUNPOD_ENDPOINT_BASE_URL": f"{self.gateway.url}/v2", **more}

    def worker(self, pool: str, name: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a worker of the SDK."""
        settings = {"RUNPOD_SKIP_GPU_CHECK": "true", "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_PING_INTERVAL": "1000"}
        environment = self._environment(**environment_of_worker(self.gateway.url, pool, name, GATEWAY_TOKEN), **settings, **more)
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [str(SDK), "worker.py"], env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker with the process that sends its pings, as the end of its machine does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def client(self, command: str, pool: str, given: Any = None) -> Any:
        """Return what a client of the SDK received."""
        arguments = json.dumps({"key": GATEWAY_TOKEN, "pool": pool, "input": given})
        done = subprocess.run(
            [str(SDK), "client.py", command, arguments],
            env=self._environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
        assert line is not None, done.stdout + done.stderr
        return json.loads(line.removeprefix("RESULT"))

    def status(self, pool: str, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.gateway.get(f"/v2/{pool}/status/{job_id}").json()
        return found

    def start(self, pool: str, given: Any, **facts: Any) -> str:
        answer = self.gateway.post(f"/v2/{pool}/run", {"input": given, **facts})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])


@pytest.fixture(scope="module")
def sdk(gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    found = Sdk(gateway, tmp_path_factory.mktemp("sdk"))
    try:
        found.worker("pool", "anvil")
        found.worker("streams", "brook", STREAMS="1")
        yield found
    finally:
        for process in found.processes:
            found.kill(process)


def ended(sdk: Sdk, pool: str, job_id: str) -> Callable[[], bool]:
    return lambda: sdk.status(pool, job_id)["status"] in {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}


@pytest.mark.timeout(180)
def test_the_client_runs_jobs_on_the_worker(sdk: Sdk) -> None:
    assert sdk.client("run_sync", "pool", {"x": 21}) == {"twice": 42}
    assert sdk.client("run", "pool", {"x": 4}) == [{"twice": 8}, "COMPLETED"]
    health = sdk.client("health", "pool")
    assert health["jobs"]["completed"] >= 2
    assert health["workers"]["idle"] + health["workers"]["running"] >= 1


def test_three_jobs_run_at_once_on_one_worker(sdk: Sdk) -> None:
    ids = [sdk.start("pool", {"x": number, "steps": 4}) for number in range(3)]
    until(lambda: all(ended(sdk, "pool", job_id)() for job_id in ids), 30)
    found = [sdk.status("pool", job_id) for job_id in ids]
    assert [entry["output"] for entry in found] == [{"twice": 0}, {"twice": 2}, {"twice": 4}]
    assert {entry["workerId"] for entry in found} == {"anvil"}
    # milliseconds; a job that was given to the worker again after a pause of the machine may end soon after its second start
    assert max(entry["executionTime"] for entry in found) >= 1000


def test_progress_is_seen_while_the_job_runs(sdk: Sdk) -> None:
    job_id = sdk.start("pool", {"x": 1, "steps": 6})
    until(lambda: isinstance(sdk.status("pool", job_id).get("output"), dict), 20)
    assert "step" in sdk.status("pool", job_id)["output"]
    until(ended(sdk, "pool", job_id), 20)
    assert sdk.status("pool", job_id)["output"] == {"twice": 2}


def test_failures_of_the_handler_have_its_message_and_no_traceback(sdk: Sdk) -> None:
    job_id, raised = sdk.start("pool", {"fail": True}), sdk.start("pool", {"raise": True})
    until(ended(sdk, "pool", raised), 20)
    until(ended(sdk, "pool", job_id), 20)
    assert (sdk.status("pool", job_id)["status"], sdk.status("pool", job_id)["error"]) == ("FAILED", "failed on purpose")
    assert sdk.status("pool", raised)["error"] == "ValueError: raised on purpose"
    answer = sdk.gateway.post(f"/v2/pool/retry/{raised}")
    assert answer.json() == {"id": raised, "status": "IN_QUEUE"}
    until(ended(sdk, "pool", raised), 20)


def test_a_result_over_the_limit_fails_the_job_at_once(sdk: Sdk) -> None:
    job_id = sdk.start("pool", {"big": 21 << 20})
    until(ended(sdk, "pool", job_id), 30)
    found = sdk.status("pool", job_id)
    assert found["status"] == "FAILED"
    assert "too large" in found["error"]


def test_the_client_streams_chunks_once_and_in_order(sdk: Sdk) -> None:
    chunks, status, output = sdk.client("stream", "streams", {"count": 5})
    numbers = [{"number": number} for number in range(5)]
    assert (chunks, status, output) == (numbers, "COMPLETED", numbers)


def test_a_cancel_of_the_client_reaches_the_handler(sdk: Sdk) -> None:
    mark = sdk.folder / uuid.uuid4().hex
    answer, status = sdk.client("cancel", "pool", {"x": 1, "hang": str(mark)})
    assert (answer["status"], status) == ("CANCELLED", "CANCELLED")
    until(mark.exists, 20)


def test_a_job_of_a_worker_that_vanishes_goes_to_another(sdk: Sdk) -> None:
    first = sdk.worker("fragile", "crack")
    until(lambda: "fragile" in {pool["name"] for pool in sdk.gateway.get("/v1/endpoints").json()["pools"]}, 30)
    job_id = sdk.start("fragile", {"x": 5, "steps": 4})
    until(lambda: sdk.status("fragile", job_id)["status"] == "IN_PROGRESS", 30)
    sdk.kill(first)
    sdk.worker("fragile", "weld")
    until(ended(sdk, "fragile", job_id), 40)
    found = sdk.status("fragile", job_id)
    assert (found["status"], found["output"], found["workerId"], found["retries"]) == ("COMPLETED", {"twice": 10}, "weld", 1)


def test_a_refreshed_worker_leaves_after_its_job(sdk: Sdk) -> None:
    worker = sdk.worker("refreshed", "fresh", REFRESH="1")
    until(lambda: "refreshed" in {pool["name"] for pool in sdk.gateway.get("/v1/endpoints").json()["pools"]}, 30)
    job_id = sdk.start("refreshed", {"x": 1})
    until(ended(sdk, "refreshed", job_id), 30)
    assert sdk.status("refreshed", job_id)["output"] == {"twice": 2}
    end = time.monotonic() + 40
    while worker.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    assert worker.poll() == 0
