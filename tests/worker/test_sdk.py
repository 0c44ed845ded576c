"""The worker under the unmodified RunPod SDK: its test input, its local server, and its loop over a queue."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from samples.endpoints import free_port
from samples.serverless import command, environment_of, ok, post, runpod_queue, serverless_python, started, waited
from samples.tiny_trainer import toolkit

pytestmark = pytest.mark.timeout(400)  # processes that import hundreds of modules


@pytest.fixture(scope="module")
def python() -> Path:
    return serverless_python()


def test_a_test_input_is_answered_and_decides_the_exit_code(python: Path, tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    done = subprocess.run(
        command(python, "--test_input", json.dumps({"input": {"type": "health"}})),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'status': 'ok'" in done.stdout
    environment["RUNPOD_SERVERLESS"] = "1"
    arguments = [part for part in command(python, "--test_input", json.dumps({"input": {"type": "nothing"}})) if part != "serverless"]
    failed = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "Unknown type 'nothing'" in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
    assert "planted-secret" not in done.stdout + done.stderr + failed.stdout + failed.stderr


def test_the_local_server_answers_typed_requests(python: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with started(command(python, "--rp_serve_api", "--rp_api_port", str(port)), environment_of(tmp_path), log):
        base = f"http://localhost:{port}"
        waited(lambda: ok(base), log)
        answer = post(f"{base}/runsync", {"input": {"type": "list_files", "path": "output"}})
        assert answer["status"] == "COMPLETED", answer
        assert answer["output"]["files"] == []
        failed = post(f"{base}/runsync", {"input": {"type": "list_files", "path": "../.."}})
        assert failed["status"] == "FAILED", failed
        assert "outside the workspace" in json.dumps(failed)
        queued = post(f"{base}/run", {"input": {"type": "health"}})
        assert post(f"{base}/status/{queued['id']}", {})["output"]["status"] == "ok"
        comfy = post(f"{base}/runsync", {"input": {"workflow": {"1": {"class_type": "X", "inputs": {}}}}})
        assert comfy["status"] == "FAILED"
        assert str(tmp_path) not in json.dumps([answer, failed, comfy])


def test_the_loop_runs_jobs_at_once_reports_progress_cancels_and_refreshes(python: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "workspace" / "training_data" / "cats").mkdir(parents=True)
    (tmp_path / "workspace" / "training_data" / "cats" / "a.png").write_bytes(bytes(100))
    tools = toolkit(tmp_path / "toolkit")

    def train(steps: int, seconds: float) -> dict[str, Any]:
        process = {
            "type": "sd_trainer", "device": "cpu", "save": {"save_every": 5}, "datasets": [{"folder_path": "cats"}],
            "model": {"name_or_path": "tiny/model"}, "train": {"steps": steps, "lr": 0.1, "seconds_per_step": seconds},
        }  # fmt: skip
        return {"type": "train_with_yaml", "config": {"job": "extension", "config": {"name": "x", "process": [process]}}, "wait": True}

    with runpod_queue() as queue:
        variables = {
            **queue.variables(), "WORKER_CONCURRENCY": "3", "WORKER_JOB_MEMORY": "1", "TRAIN_SLOTS": "2", "AI_TOOLKIT_HOME": str(tools), "TRAIN_MODELS": "tiny/*",
        }  # fmt: skip
        with started(command(python), environment_of(tmp_path, **variables), log) as worker:
            queue.add("quick", {"type": "health"})
            queue.wait(lambda: "quick" in queue.results)
            queue.add("long", train(10_000, 0.05))
            queue.add("short", train(20, 0.05))
            queue.wait(lambda: {"long", "short"} <= set(queue.taken))
            queue.wait(lambda: any(message.get("step", 0) > 2 for message in queue.progress.get("long", [])))
            queue.add("beside", {"type": "list_files"})
            queue.wait(lambda: {"short", "beside"} <= set(queue.results))
            assert "long" not in queue.results
            assert queue.results["short"]["output"]["state"] == "COMPLETED", queue.results["short"]
            queue.stop("long")
            cancelled: list[Any] = []
            for number in range(100):
                queue.add(f"after-{number}", {"type": "processes", "state": "CANCELLED"})
                queue.wait(lambda number=number: f"after-{number}" in queue.results)
                if cancelled := queue.results[f"after-{number}"]["output"]["processes"]:
                    break
            assert len(cancelled) == 1
            queue.add("bad", {"type": "nothing"})
            queue.add("refresh", {"type": "health", "refresh_worker": True})
            queue.wait(lambda: {"bad", "refresh"} <= set(queue.results))
            assert queue.results["refresh"]["stopPod"] is True
            assert queue.results["bad"]["error"].startswith("Unknown type 'nothing'.")
            assert queue.results["bad"]["output"] == {"code": "unknown_type"}
            worker.terminate()
            worker.wait(60)
        text = json.dumps([queue.results, queue.progress]) + log.read_text(encoding="utf-8", errors="replace")
    assert "planted-secret" not in text
    files = [path for path in (tmp_path / "workspace").rglob("*") if path.is_file()]
    assert not [path for path in files if b"planted-secret" in path.read_bytes()]


def test_with_the_setting_the_worker_ends_after_a_job(python: Path, tmp_path: Path) -> None:
    with runpod_queue() as queue:
        environment = environment_of(tmp_path, **queue.variables(), REFRESH_WORKER="true")
        with started(command(python), environment, tmp_path / "log") as worker:
            queue.add("one", {"type": "health"})
            queue.wait(lambda: "one" in queue.results)
            assert queue.results["one"]["stopPod"] is True
            assert worker.wait(60) == 0
