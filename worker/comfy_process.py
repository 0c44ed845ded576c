"""The ComfyUI of a worker: started headless with this extension, watched, and started again after a crash or for another version."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.cli.comfy_processes import ComfyProcess, ComfyStart, Device, parent_pipe, start_comfy, stop_processes
from yggdrasill.cli.installation import Installation, find_installation
from yggdrasill.errors import EndpointFailed, EndpointUnreachable, MissingFile, RunError
from yggdrasill.remote.comfy_server import ComfyServer
from yggdrasill.worker.failures import Scrubber
from yggdrasill.worker.settings import Settings
from yggdrasill.worker.training import clean_environment
from yggdrasill.worker.workspace import Workspace

__all__ = ["CRASH_SECONDS", "ComfyService", "End", "Profile", "RunningComfy", "run_beside"]

Result = TypeVar("Result")
Ended = TypeVar("Ended")

_LOG = logging.getLogger("yggdrasill.worker")
_POLL = 0.05
CRASH_SECONDS = 3.0
"""Seconds within which the end of a process is noticed after its connections are lost."""
_COLORS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_KINDS = (
    "audio_encoders", "checkpoints", "classifiers", "clip_vision", "configs", "controlnet", "diffusers", "diffusion_models", "embeddings", "gligen",
    "hypernetworks", "latent_upscale_models", "loras", "model_patches", "photomaker", "style_models", "text_encoders", "upscale_models", "vae",
    "vae_approx",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What a ComfyUI is started for. Jobs of another profile wait until it can be started anew. ``generation`` counts installations of nodes."""

    models_dir: Path
    args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    generation: int = 0


@dataclass(frozen=True)
class End:
    """How a ComfyUI ended: its return code and its last output, read before the next start replaces the log."""

    code: int
    output: str


@dataclass(eq=False)
class RunningComfy:
    """A ComfyUI that runs. ``ended`` is done when its process has ended."""

    process: ComfyProcess
    server: ComfyServer
    boot_seconds: float
    ended: asyncio.Task[End] = field(repr=False)

    @property
    def input_folder(self) -> Path:
        """The folder of files that workflows load."""
        return self.process.folder / "input"


class ComfyService:
    """Starts the ComfyUI of the settings when it is needed. Its files, except results, are in the state folder of this worker."""

    def __init__(self, settings: Settings, workspace: Workspace, scrubber: Scrubber) -> None:
        self._settings, self._workspace, self._scrubber = settings, workspace, scrubber
        self._pipes = contextlib.ExitStack()
        self._pipe: tuple[int, ...] | None = None
        self._running: RunningComfy | None = None
        self._profile: Profile | None = None
        self._users = 0
        self._changed = asyncio.Condition()
        self._starting = asyncio.Lock()
        self._restarting: asyncio.Task[None] | None = None
        self._closed = False
        #: The seconds that the last start took, and the number of crashes.
        self.boot_seconds = 0.0
        self.crashes = 0

    @property
    def output_folder(self) -> Path:
        """The folder into which ComfyUI saves results: one for each worker, because two would count file names from the same number."""
        return self._workspace.output / self._settings.worker_id

    @property
    def temp_folder(self) -> Path:
        """The folder into which ComfyUI saves previews: it adds a folder to the one that its flag names."""
        return self._settings.state_dir / "comfy" / "temp" / "temp"

    @property
    def data_dir(self) -> Path:
        """The data folder of its endpoint."""
        return self._settings.state_dir / "comfy" / "user" / "yggdrasill"

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._running is not None and self._running.process.alive

    @property
    def url(self) -> str | None:
        """The URL of the running ComfyUI."""
        return self._running.process.url if self._running is not None and self.is_running else None

    def log_tail(self) -> str:
        """Return the last lines of its output, without secrets and paths."""
        path = self._settings.state_dir / "comfy" / "server.log"
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return self._scrubber.text("\n".join(_COLORS.sub("", text).splitlines()[-20:]))

    @asynccontextmanager
    async def use(self, profile: Profile) -> AsyncIterator[RunningComfy]:
        """Yield the ComfyUI of a profile, started if necessary. It is not stopped while the block runs.

        Raises:
            EndpointFailed (code ``comfy_start_failed``): it does not start; the message has its last output.
            MissingFile (code ``comfy_missing``): it is not installed.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._profile in (None, profile) or self._users == 0)
            if self._profile != profile:
                await self._stop()
                self._profile = profile
            self._users += 1
        try:
            yield await self._ready(profile)
        finally:
            async with self._changed:
                self._users -= 1
                self._changed.notify_all()

    async def guard(self, running: RunningComfy, work: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of ``work``. If ComfyUI ends, stop the work at once.

        Raises:
            RunError (code ``comfy_crashed``): ComfyUI ended; the message has its last output.
        """

        def crashed(end: End) -> RunError:
            return RunError(
                f"ComfyUI ended while the job ran (return code {end.code}). It is started again. Its last output:\n{end.output}",
                code="comfy_crashed",
            )

        return await run_beside(running.ended, work, crashed)

    async def close(self) -> None:
        """Stop ComfyUI."""
        self._closed = True
        if self._restarting is not None:
            self._restarting.cancel()
        async with self._starting:
            await self._stop()
        self._pipes.close()
        self._pipe = None

    # -- the process --------------------------------------------------------------------------------------------

    async def _ready(self, profile: Profile) -> RunningComfy:
        async with self._starting:
            if self._running is None or not self._running.process.alive:
                if self._running is not None:
                    # its last output is read before the new process replaces the log
                    await asyncio.wait({self._running.ended})
                self._running = await self._start(profile)
            return self._running

    async def _start(self, profile: Profile) -> RunningComfy:
        installation = self._installation()
        if self._pipe is None:
            self._pipe = self._pipes.enter_context(parent_pipe())
        started = time.monotonic()
        try:
            process = await asyncio.to_thread(start_comfy, installation, self._how(profile), self._pipe)
        except EndpointUnreachable as error:
            raise EndpointFailed(f"ComfyUI cannot be started: {error.message}", code="comfy_start_failed") from error
        server = ComfyServer(process.url, "ComfyUI")
        ended = asyncio.create_task(self._end_of(process))
        try:
            while not await _answers(server):
                if ended.done() or time.monotonic() - started > self._settings.start_seconds:
                    why = (
                        f"ended with return code {ended.result().code}"
                        if ended.done()
                        else f"is not ready after {self._settings.start_seconds:g} s"
                    )
                    raise EndpointFailed(f"ComfyUI {why}. Its last output:\n{self.log_tail()}", code="comfy_start_failed")
                await asyncio.sleep(0.1)
        except BaseException:
            await asyncio.to_thread(stop_processes, [process])
            ended.cancel()
            raise
        self.boot_seconds = time.monotonic() - started
        running = RunningComfy(process, server, self.boot_seconds, ended)
        ended.add_done_callback(lambda _: self._on_end(running, profile))
        return running

    def _how(self, profile: Profile) -> ComfyStart:
        settings = self._settings
        args = (*settings.comfy_args, *profile.args)
        device = Device("ComfyUI", () if "--cpu" in args or _has_gpu() else ("--cpu",))
        models: dict[str, dict[str, str]] = {}
        for name, folder in (("version", profile.models_dir), ("workspace", self._workspace.models)):
            if folder != settings.comfy_home / "models":
                models[name] = {"base_path": str(folder), **{kind: kind for kind in _KINDS}}
        environment = {**clean_environment(keep=("HF_TOKEN",)), **dict(profile.environment)}
        return ComfyStart(device, settings.state_dir / "comfy", 0, args, {"output": self.output_folder}, models, environment)

    def _installation(self) -> Installation:
        try:
            return find_installation(self._settings.comfy_home, self._settings.comfy_python)
        except MissingFile as error:
            raise MissingFile(
                "ComfyUI is not installed on this worker. Name its folder with COMFY_HOME and its Python with COMFYUI_PYTHON.",
                code="comfy_missing",
            ) from error

    def _on_end(self, running: RunningComfy, profile: Profile) -> None:
        """Start a ComfyUI again that crashed, so that the next job finds it ready."""
        if self._closed or self._running is not running or running.ended.cancelled():
            return
        self.crashes += 1
        end = running.ended.result()
        _LOG.error("ComfyUI ended (return code %s) and is started again. Its last output:\n%s", end.code, end.output)
        self._restarting = asyncio.get_running_loop().create_task(self._restart(profile))

    async def _restart(self, profile: Profile) -> None:
        try:
            if self._profile == profile:
                await self._ready(profile)
        except (EndpointFailed, MissingFile) as error:
            _LOG.error("%s", self._scrubber.text(str(error)))

    async def _end_of(self, process: ComfyProcess) -> End:
        """Wait until a process has ended and return how it ended."""
        while (code := process.process.poll()) is None:  # noqa: ASYNC110 - a process has no event
            await asyncio.sleep(_POLL)
        return End(code, self.log_tail())

    async def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(stop_processes, [running.process])
            await asyncio.wait({running.ended}, timeout=CRASH_SECONDS)


async def run_beside(ended: asyncio.Task[Ended], work: Coroutine[Any, Any, Result], crashed: Callable[[Ended], RunError]) -> Result:
    """Return the result of ``work``, which uses a process. When the task ``ended`` of the process is done, stop it and raise ``crashed``."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not isinstance(task.exception(), EndpointUnreachable):
            return task.result()
        # a lost connection is the first sign of a crash
        await asyncio.wait({ended}, timeout=CRASH_SECONDS)
        if not ended.done():
            return await task
        raise crashed(ended.result())
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _answers(server: ComfyServer) -> bool:
    try:
        await server.load()
    except (EndpointUnreachable, EndpointFailed):
        return False
    return True


def _has_gpu() -> bool:
    return os.name == "nt" or any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
