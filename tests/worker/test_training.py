"""Training as durable processes, with a real trainer that is small."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from yggdrasill.worker.service import WorkerService
from yggdrasill.worker.settings import TrainingSettings
from yggdrasill.worker.training import AiToolkit, clean_environment

SECONDS = 60.0


def dataset(worker: WorkerService, name: str = "cats") -> None:
    folder = worker.workspace.training_data / name
    folder.mkdir()
    (folder / "a.png").write_bytes(bytes(range(200)))


def request(**changes: Any) -> dict[str, Any]:
    return {
        "type": "train",
        "name": "cats",
        "dataset": "cats",
        "model": "tiny/model",
        "steps": 20,
        "lr": "1e-1",
        "save_every": 5,
        **changes,
    }


async def ask(worker: WorkerService, **given: Any) -> dict[str, Any]:
    return await worker.handle({"id": "job", "input": given})


async def ended(worker: WorkerService, process_id: str) -> dict[str, Any]:
    """Return the status of a process when it has ended."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        status = await ask(worker, type="process_status", process_id=process_id, log_bytes=100_000)
        if status.get("state") in ("COMPLETED", "FAILED", "CANCELLED"):
            return status
        await asyncio.sleep(0.05)
    raise TimeoutError(status)


async def step_of(worker: WorkerService, process_id: str, step: int) -> dict[str, Any]:
    """Return the status of a process when it has reached a step."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        status = await ask(worker, type="process_status", process_id=process_id)
        if status.get("progress", {}).get("step", 0) >= step:
            return status
        await asyncio.sleep(0.05)
    raise TimeoutError(status)


async def running(worker: WorkerService) -> str:
    """Return the id of the first process that runs."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = (await ask(worker, type="processes", state="IN_PROGRESS"))["processes"]
        if found:
            return str(found[0]["process_id"])
        await asyncio.sleep(0.05)
    raise TimeoutError


def yaml_of(worker: WorkerService, **train: Any) -> str:
    settings = json.dumps({"steps": 20, "lr": 0.1, "seconds_per_step": 0.0, **train})
    return f"""
job: extension
config:
  name: cats
  process:
    - type: sd_trainer
      device: cpu
      save: {{save_every: 5}}
      datasets: [{{folder_path: cats}}]
      model: {{name_or_path: tiny/model}}
      train: {settings}
"""


async def test_train_runs_in_the_background_and_leaves_weights_a_log_and_a_loss_curve(worker: WorkerService) -> None:
    dataset(worker)
    begun = await ask(worker, **request())
    assert begun["state"] == "IN_QUEUE"
    status = await ended(worker, begun["process_id"])

    assert status["state"] == "COMPLETED", status
    assert status["progress"]["step"] == status["progress"]["steps"] == 20
    assert status["output"]["lora"].endswith("cats_000000020.safetensors")
    assert (worker.workspace.root / status["output"]["lora"]).is_file()
    assert "done" in status["log"]
    losses = [loss for _, loss in status["losses"]]
    assert losses == sorted(losses, reverse=True)
    listed = await ask(worker, type="processes")
    assert [row["process_id"] for row in listed["processes"]] == [begun["process_id"]]
    assert str(worker.workspace.root) not in json.dumps([status, listed])


async def test_a_request_may_wait_for_the_end_and_receives_progress(worker: WorkerService) -> None:
    dataset(worker)
    reports: list[dict[str, Any]] = []
    job = {"id": "j", "input": {"type": "train_with_yaml", "yaml": yaml_of(worker, seconds_per_step=0.1), "wait": True}}
    result = await worker.handle(job, reports.append)
    assert result["state"] == "COMPLETED", result
    assert reports[-1]["step"] == 20
    assert {report["state"] for report in reports} >= {"IN_PROGRESS", "COMPLETED"}


async def test_a_trainer_that_fails_fails_the_process_with_the_end_of_its_output(worker: WorkerService) -> None:
    dataset(worker)
    result = await ask(worker, type="train_with_yaml", yaml=yaml_of(worker, exit_code=3), wait=True)
    assert result["code"] == "trainer_failed"
    assert "exit code 3" in result["error"]
    assert "cannot continue" in result["error"]
    assert str(worker.workspace.root) not in result["error"]
    assert result["details"]["process_id"]


async def test_a_running_process_is_cancelled_by_another_worker(worker: WorkerService, start: Callable[..., Any]) -> None:
    dataset(worker)
    begun = await ask(worker, type="train_with_yaml", yaml=yaml_of(worker, steps=2000, seconds_per_step=0.05))
    other = await start(training=TrainingSettings(toolkit=Path("/nowhere")))
    await step_of(other, begun["process_id"], 2)
    assert (await ask(other, type="cancel", process_id=begun["process_id"]))["cancelling"]
    status = await ended(other, begun["process_id"])
    assert status["state"] == "CANCELLED"
    assert status["error"]["code"] == "cancelled"


async def test_cancelling_a_waiting_request_cancels_its_process(worker: WorkerService) -> None:
    dataset(worker)
    job = {"id": "j", "input": {"type": "train_with_yaml", "yaml": yaml_of(worker, steps=5000, seconds_per_step=0.05), "wait": True}}
    task = asyncio.create_task(worker.handle(job))
    process_id = await running(worker)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await ended(worker, process_id))["state"] == "CANCELLED"


def check_losses(status: Mapping[str, Any], steps: int, *, lost: Collection[int] = ()) -> None:
    """Check that each step except those ``lost`` has one loss, in order."""
    found = [step for step, _ in status["losses"]]
    assert [step for step in found if step not in lost] == [step for step in range(1, steps + 1) if step not in lost]


async def test_a_worker_that_stops_leaves_its_process_to_the_next_which_continues_it(start: Callable[..., Any]) -> None:
    first = await start()
    dataset(first)
    begun = await ask(first, type="train_with_yaml", yaml=yaml_of(first, steps=60, seconds_per_step=0.05))
    await step_of(first, begun["process_id"], 8)
    await first.close()
    second = await start()
    status = await ended(second, begun["process_id"])
    assert (status["state"], status["attempt"]) == ("COMPLETED", 2)
    begun_at = [int(step) for step in re.findall(r"from step (\d+)", status["log"])]
    assert begun_at[0] == 0 < begun_at[1]
    check_losses(status, 60)


WORKER = """
import asyncio, json, sys
from pathlib import Path
from yggdrasill.worker.service import WorkerService
from yggdrasill.worker.settings import Settings, TrainingSettings

async def main():
    root, toolkit = map(Path, sys.argv[1:3])
    here = root.parent
    settings = Settings(root=root, comfy_home=here / "comfy", models_dir=here / "comfy/models", versions=(), cache_root=here / "cache",
        state_dir=here / "state2", graphs_dir=here / "graphs", worker_id="child", lease_seconds=1.0,
        training=TrainingSettings(toolkit=toolkit, models=("tiny/*",)))
    worker = WorkerService(settings)
    await worker.start()
    print(json.dumps(await worker.handle({"id": "x", "input": json.loads(sys.argv[3])})), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_the_worker_that_took_a_training_is_killed_and_another_answers_and_finishes_it(
    worker: WorkerService, start: Callable[..., Any]
) -> None:
    await worker.runner.close()
    dataset(worker)
    given = json.dumps({"type": "train_with_yaml", "yaml": yaml_of(worker, steps=80, seconds_per_step=0.05)})
    command = [sys.executable, "-c", WORKER, str(worker.workspace.root), str(worker.settings.training.toolkit), given]
    killed = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    line = await asyncio.to_thread(killed.stdout.readline)
    process_id = json.loads(line)["process_id"]
    row = await step_of(worker, process_id, 7)
    assert row["owner"].startswith("child-")
    trainers = children_with(process_id)
    assert trainers

    killed.send_signal(signal.SIGKILL)
    await asyncio.to_thread(killed.wait)
    killed.stdout.close()

    assert (await ask(worker, type="process_status", process_id=process_id))["state"] == "IN_PROGRESS"
    await asyncio.to_thread(wait_for_end, trainers)
    assert not any(alive(pid) for pid in trainers), "the trainer outlived its worker"
    await asyncio.sleep(1.2)
    waiting = await ask(worker, type="process_status", process_id=process_id)
    assert "lost" in waiting["waiting"]
    recorded = waiting["losses"][-1][0]
    other = await start()
    status = await ended(other, process_id)
    assert (status["state"], status["attempt"]) == ("COMPLETED", 2)
    assert status["progress"]["step"] == 80
    # the killed worker takes along what it had not written; steps that the trainer has not saved are computed again
    resumed = int(re.findall(r"from step (\d+)", status["log"])[-1])
    check_losses(status, 80, lost=range(recorded + 1, resumed + 1))


def children_with(text: str) -> list[int]:
    """Return the processes whose command line contains a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text in (folder / "cmdline").read_text(encoding="utf-8", errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for_end(pids: list[int]) -> None:
    end = time.monotonic() + SECONDS
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[:1]
    except OSError:
        return False


async def test_a_process_that_is_lost_too_often_fails(start: Callable[..., Any]) -> None:
    worker = await start()
    await worker.runner.close()
    dataset(worker)
    begun = await ask(worker, **request())
    await worker.runner.close()
    folder = worker.store.folder_of(begun["process_id"])
    for number in (1, 2, 3):
        (folder / f"attempt-{number}").touch()
        os.utime(folder / f"attempt-{number}", (1, 1))
    worker.runner.start()
    status = await ended(worker, begun["process_id"])
    assert (status["state"], status["error"]["code"]) == ("FAILED", "worker_lost")


async def test_a_store_that_disappears_in_mid_job_fails_the_job_with_a_code(worker: WorkerService) -> None:
    dataset(worker)
    job = {"id": "j", "input": {"type": "train_with_yaml", "yaml": yaml_of(worker, steps=5000, seconds_per_step=0.05), "wait": True}}
    task = asyncio.create_task(worker.handle(job))
    await running(worker)
    shutil.rmtree(worker.store.folder)
    result = await asyncio.wait_for(task, SECONDS)
    assert result["code"] == "process_store_lost"
    assert str(worker.workspace.root) not in result["error"]


async def test_the_trainer_does_not_see_secrets(worker: WorkerService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "planted-secret-of-runpod")
    monkeypatch.setenv("HF_TOKEN", "planted-secret-of-the-hub")
    dataset(worker)
    await ask(worker, type="train_with_yaml", yaml=yaml_of(worker, print_env="RUNPOD_AI_API_KEY"), wait=True)
    status = (await ask(worker, type="processes"))["processes"][0]
    assert "variable: None" in worker.store.tail(status["process_id"])
    assert set(clean_environment({"A_TOKEN": "x", "HF_TOKEN": "y", "PATH": "p"}, keep=("HF_TOKEN",))) >= {"HF_TOKEN", "PATH"}


async def test_what_a_trainer_prints_of_a_secret_reaches_no_log(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret-of-the-hub")
    worker = await start()
    dataset(worker)
    result = await ask(worker, type="train_with_yaml", yaml=yaml_of(worker, print_env="HF_TOKEN", exit_code=2), wait=True)
    assert "[secret]" in result["error"]
    for path in worker.workspace.root.rglob("*"):
        assert not path.is_file() or b"planted-secret" not in path.read_bytes(), path


async def test_a_worker_without_a_trainer_says_so(start: Callable[..., Any]) -> None:
    worker = await start(training=TrainingSettings(toolkit=Path("/nowhere"), models=("tiny/*",)))
    dataset(worker)
    assert (await ask(worker, **request()))["code"] == "trainer_missing"
    assert (await ask(worker, **request(trainer="other")))["code"] == "unknown_trainer"


def test_the_output_of_ai_toolkit_is_read() -> None:
    trainer = AiToolkit(TrainingSettings())
    line = "my_lora:   5%|5         | 101/2000 [02:33<47:57,  1.52s/it, lr: 1.0e-04 loss: 3.725e-01]"
    assert trainer.progress(line) == {"step": 101, "steps": 2000, "loss": 0.3725}
    assert trainer.progress("Loading transformer") == {}


async def test_a_worker_stops_also_at_the_moment_in_which_a_training_ends(start: Callable[..., Any]) -> None:
    for _ in range(20):
        worker = await start()
        await asyncio.sleep(0)
        worker.runner._wake.set()
        await asyncio.sleep(0)
        await asyncio.wait_for(worker.runner.close(), 10)
