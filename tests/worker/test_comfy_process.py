"""The ComfyUI of a worker: the error of a job whose ComfyUI ends, also if another job starts it again."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from yggdrasill.cli.comfy_processes import ComfyProcess, ComfyStart
from yggdrasill.cli.installation import Installation
from yggdrasill.errors import RunError
from yggdrasill.worker import comfy_process
from yggdrasill.worker.comfy_process import ComfyService, Profile
from yggdrasill.worker.failures import Scrubber
from yggdrasill.worker.settings import Settings
from yggdrasill.worker.workspace import Workspace

PROGRAM = "import sys; print('the last words of', sys.argv[1], flush=True); sys.stdin.read(); sys.exit(7)"


@pytest.fixture
def service(settings: Settings, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> ComfyService:
    """A service whose ComfyUI is a program that prints its number and ends with code 7 when its input is closed."""
    numbers = itertools.count(1)

    def start(installation: Installation, how: ComfyStart, pipe: tuple[int, ...] = ()) -> ComfyProcess:
        how.folder.mkdir(parents=True, exist_ok=True)
        with (how.folder / "server.log").open("wb") as log:
            command = [sys.executable, "-c", PROGRAM, str(next(numbers))]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        return ComfyProcess("ComfyUI", how.folder, 1, process)

    async def answers(server: object) -> bool:
        return (settings.state_dir / "comfy" / "server.log").stat().st_size > 0

    monkeypatch.setattr(comfy_process, "start_comfy", start)
    monkeypatch.setattr(comfy_process, "_answers", answers)
    monkeypatch.setattr(ComfyService, "_installation", lambda self: Installation(Path("/comfy"), Path(sys.executable)))
    return ComfyService(settings, workspace, Scrubber({}))


async def test_a_job_receives_the_last_output_though_another_job_has_started_comfyui_again(service: ComfyService) -> None:
    profile = Profile(Path("models"))
    async with service.use(profile) as running:
        work = asyncio.create_task(service.guard(running, asyncio.sleep(60)))
        await asyncio.sleep(0)
        process = running.process.process
        assert process.stdin is not None
        process.stdin.close()
        process.wait()  # blocks the loop: nothing of the service notices the end before the next job starts
        async with service.use(profile) as again:
            assert again is not running
        with pytest.raises(RunError, match=r"return code 7(?s:.*)the last words of 1"):
            await work
    assert service.crashes == 1
    await service.close()
    other = again.process.process
    assert other.returncode is not None
    assert other.stdin is not None
    other.stdin.close()
