"""Training as durable processes: the interface of a trainer, ai-toolkit behind it, and the runner that claims and runs processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from yggdrasill.errors import InvalidConfig, MissingFile, StorageFailed, UnknownJob, YggdrasillError, format_options
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED
from yggdrasill.worker.failures import Scrubber
from yggdrasill.worker.processes import Process, ProcessStore
from yggdrasill.worker.settings import TrainingSettings
from yggdrasill.worker.workspace import Workspace

__all__ = ["KIND", "AiToolkit", "Trainer", "TrainingRunner", "clean_environment"]

KIND = "training"
"""The kind of the rows that a `TrainingRunner` claims."""
_LOG = logging.getLogger("yggdrasill.worker")
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|APIKEY|CREDENTIALS?)(_|$)", re.IGNORECASE)
_STEP = re.compile(r"(\d+)/(\d+) \[")
_LOSS = re.compile(r"loss: *([-+]?[\d.]+(?:[eE][-+]?\d+)?)")
_LINE = re.compile(rb"[\r\n]+")
_POLL = 0.25
_WRITE_SECONDS = 1.0
_STOP_SECONDS = 15.0
_READ_SECONDS = 5.0
_MAX_LINE = 4096


class Trainer(Protocol):
    """A program that trains by a configuration in ai-toolkit's form and that continues from its last save if it is started again."""

    def check(self) -> None:
        """Raise `MissingFile` (code ``trainer_missing``) if the program is not installed."""
        ...

    def command(self, config: Path) -> list[str]:
        """Return the command that trains by the configuration file ``config``."""
        ...

    def working_folder(self) -> Path:
        """Return the folder in which the command runs."""
        ...

    def progress(self, line: str) -> dict[str, Any]:
        """Return what a line of its output reports: ``step``, ``steps`` and ``loss``, each if present."""
        ...


class AiToolkit(Trainer):
    """The ai-toolkit of the settings, run as ``python run.py CONFIG``."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._folder, self._python = settings.toolkit, settings.python

    def check(self) -> None:
        if not (self._folder / "run.py").is_file():
            raise MissingFile(
                "No trainer is installed on this worker. Install ai-toolkit and name its folder with AI_TOOLKIT_HOME.",
                code="trainer_missing",
            )

    def command(self, config: Path) -> list[str]:
        beside = [self._folder / name for name in ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe")]
        python = self._python or next((each for each in beside if each.is_file()), Path(sys.executable))
        return [str(python), str(self._folder / "run.py"), str(config)]

    def working_folder(self) -> Path:
        return self._folder

    def progress(self, line: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if (step := _STEP.search(line)) is not None:
            found |= {"step": int(step[1]), "steps": int(step[2])}
        if (loss := _LOSS.search(line)) is not None:
            with contextlib.suppress(ValueError):
                found["loss"] = float(loss[1])
        return found


def clean_environment(environment: Mapping[str, str] = os.environ, *, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the environment for a program that a job starts: without secrets, except those that it needs to work, and without this Python's."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV"}
    kept = {name: value for name, value in environment.items() if name not in dropped and (name in keep or not _SECRET_NAME.search(name))}
    return {**kept, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


class TrainingRunner:
    """Claims training processes of ``store``, its own and those whose worker died, and runs up to ``settings.slots`` at a time."""

    def __init__(
        self, store: ProcessStore, workspace: Workspace, trainers: Mapping[str, Trainer], settings: TrainingSettings, scrubber: Scrubber
    ) -> None:
        self.store = store
        self.trainers = dict(trainers)
        self._workspace, self._settings, self._scrubber = workspace, settings, scrubber
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to claim processes, in the running event loop."""
        if self._loop_task is None or self._loop_task.done():
            self._closed = False
            self._wake = asyncio.Event()
            self._loop_task = asyncio.get_running_loop().create_task(self._claim_processes())

    async def close(self) -> None:
        """Stop claiming, and stop the trainers that run; their processes can be claimed by another worker at once."""
        self._closed = True
        self._wake.set()
        tasks = [task for task in (self._loop_task, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop_task = None

    async def submit(self, trainer: str, name: str, config: Mapping[str, Any]) -> Process:
        """Store a training process by a checked configuration.

        Raises:
            InvalidConfig: an unknown trainer. MissingFile: it is not installed (code ``trainer_missing``). StorageFailed
        """
        if trainer not in self.trainers:
            raise InvalidConfig(f"Unknown trainer {trainer!r}. Available: {format_options(self.trainers)}.", code="unknown_trainer")
        self.trainers[trainer].check()
        process = await asyncio.to_thread(self.store.create, KIND, name, {"trainer": trainer, "config": dict(config)})
        self.start()
        self._wake.set()
        return process

    async def wait_idle(self) -> None:
        """Wait until no process of this worker runs and none waits that it could claim."""
        while self._running or self.store.has_claimable(frozenset({KIND})):  # noqa: ASYNC110 - other workers change the store
            await asyncio.sleep(_POLL)

    async def follow(self, process_id: str) -> AsyncIterator[Process]:
        """Yield the row of a process whenever it changes, the final one last. Raise `StorageFailed` if the store is gone."""
        before: Process | None = None
        while before is None or not before.is_final:
            try:
                row = await asyncio.to_thread(self.store.get, process_id)
            except UnknownJob as error:
                if before is None:
                    raise
                raise StorageFailed(
                    "The row of the process was removed while it ran. Check the volume.", code="process_store_lost"
                ) from error
            if row != before:
                before = row
                yield row
            if not row.is_final:
                await asyncio.sleep(_POLL)

    # -- claiming -----------------------------------------------------------------------------------------------

    async def _claim_processes(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                while len(self._running) < self._settings.slots and await self._claim_one():
                    pass
            except YggdrasillError as error:
                _LOG.warning("%s", self._scrubber.text(str(error)))
            # not wait_for(), which loses a cancellation that comes together with the event
            waking = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({waking}, timeout=max(0.2, self.store.lease_seconds / 3))
            finally:
                waking.cancel()

    async def _claim_one(self) -> bool:
        if not any(_is_installed(trainer) for trainer in self.trainers.values()):
            return False
        process = await asyncio.to_thread(self.store.claim, kinds=frozenset({KIND}), max_attempts=self._settings.attempts)
        if process is None:
            return False
        task = asyncio.get_running_loop().create_task(self._attempt(process))
        self._running[process.process_id] = task
        task.add_done_callback(lambda _: self._forget(process.process_id))
        return True

    def _forget(self, process_id: str) -> None:
        self._running.pop(process_id, None)
        self._wake.set()

    # -- one attempt --------------------------------------------------------------------------------------------

    async def _attempt(self, process: Process) -> None:
        store = self.store
        try:
            if process.attempt > self._settings.attempts:
                error = {"error": f"The worker was lost in each of {self._settings.attempts} attempts.", "code": "worker_lost"}
                await asyncio.to_thread(store.finish, process, FAILED, error=error)
            elif store.is_cancelled(process.process_id):
                await asyncio.to_thread(store.finish, process, CANCELLED, error=_CANCELLED)
            else:
                await self._train(process)
        except asyncio.CancelledError:
            store.release(process)
            raise
        except YggdrasillError as error:
            _LOG.warning("training %s: %s", process.process_id, self._scrubber.text(str(error)))
            with contextlib.suppress(StorageFailed):
                await asyncio.to_thread(store.finish, process, FAILED, error=self._scrubber.failure(error))
        except OSError as error:
            _LOG.exception("training %s failed", process.process_id)
            failure = {
                "error": f"The trainer could not be started or its files not be written ({error.strerror}).",
                "code": "trainer_failed",
            }
            with contextlib.suppress(StorageFailed):
                await asyncio.to_thread(store.finish, process, FAILED, error=failure)

    async def _train(self, process: Process) -> None:
        trainer = self.trainers.get(str(process.request.get("trainer")))
        if trainer is None:
            raise InvalidConfig(f"This worker lacks the trainer. Available: {format_options(self.trainers)}.", code="unknown_trainer")
        trainer.check()
        folder = self._workspace.output / "training" / process.process_id
        config = await asyncio.to_thread(self._write_config, process, folder)
        watch = _Attempt(process, self.store, trainer, self._scrubber)
        stopped: str | None = None
        reading: asyncio.Task[None] | None = None
        try:
            async with self._program(trainer, config) as program:
                reading = asyncio.create_task(watch.read(program))
                stopped = await watch.keep(program)
        finally:
            # a trainer that is stopped may have saved steps whose lines are not read yet; the next attempt does not repeat them
            if reading is not None:
                await watch.end(reading, write=stopped != "lost")
        if stopped == "lost":
            return
        if stopped == "cancelled":
            await asyncio.to_thread(self.store.finish, watch.process, CANCELLED, error=_CANCELLED)
        elif program.returncode == 0:
            output = await asyncio.to_thread(self._results, folder)
            await asyncio.to_thread(self.store.finish, watch.process, COMPLETED, output=output)
        else:
            tail = self._scrubber.text(self.store.tail(process.process_id, 4000))
            error = {"error": f"The trainer ended with exit code {program.returncode}. Its last output:\n{tail}", "code": "trainer_failed"}
            await asyncio.to_thread(self.store.finish, watch.process, FAILED, error=error)

    def _write_config(self, process: Process, folder: Path) -> Path:
        config = dict(process.request["config"])
        for inner in config["config"]["process"]:
            inner["training_folder"] = str(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = self.store.folder_of(process.process_id) / "config.yaml"
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        except OSError as error:
            raise StorageFailed(f"Cannot write the training's files: {error.strerror}. Check the volume.", path=str(folder)) from error
        return path

    @asynccontextmanager
    async def _program(self, trainer: Trainer, config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the trainer below a supervisor, which ends it when this block or this process ends."""
        read_end, write_end = os.pipe() if os.name == "posix" else (-1, -1)
        try:
            program = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(_SUPERVISOR), str(read_end) if read_end >= 0 else "-", *trainer.command(config),
                cwd=trainer.working_folder(),
                env=clean_environment(keep=("HF_TOKEN",)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(read_end,) if read_end >= 0 else (),
            )  # fmt: skip
            try:
                yield program
            finally:
                if program.returncode is None:
                    program.send_signal(signal.SIGTERM)
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(asyncio.shield(program.wait()), _STOP_SECONDS)
        finally:
            for descriptor in (read_end, write_end):
                if descriptor >= 0:
                    os.close(descriptor)

    def _results(self, folder: Path) -> dict[str, Any]:
        """Return the files of a training, relative to the workspace, and the newest weights among them."""
        paths = sorted(
            (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()), key=lambda path: path.stat().st_mtime
        )
        files = [{"path": self._workspace.name(path), "size": path.stat().st_size} for path in paths]
        weights = [entry["path"] for entry in files if str(entry["path"]).endswith(".safetensors")]
        return {"folder": self._workspace.name(folder), "files": files, **({"lora": weights[-1]} if weights else {})}


class _Attempt:
    """Reads the output of a trainer into the row, and keeps the lease, until it ends or must end."""

    def __init__(self, process: Process, store: ProcessStore, trainer: Trainer, scrubber: Scrubber) -> None:
        self.process = process
        self._store, self._trainer, self._scrubber = store, trainer, scrubber
        self._lines: list[str] = []
        self._losses: dict[int, float] = {}
        self._progress = dict(process.progress)
        self._written = 0.0

    async def read(self, program: asyncio.subprocess.Process) -> None:
        """Read the output to its end."""
        assert program.stdout is not None  # noqa: S101 - it is a pipe
        rest = b""
        while chunk := await program.stdout.read(1 << 16):
            *lines, rest = _LINE.split(rest + chunk)
            for line in lines:
                self._add(line)
            if len(rest) > _MAX_LINE:
                self._add(rest)
                rest = b""
        self._add(rest)

    def _add(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()[:_MAX_LINE]
        if not text:
            return
        self._lines.append(self._scrubber.text(text))
        found = self._trainer.progress(text)
        self._progress |= found
        if "loss" in found and "step" in self._progress:
            self._losses[int(self._progress["step"])] = found["loss"]

    async def keep(self, program: asyncio.subprocess.Process) -> str | None:
        """Wait for the end of the trainer. Return ``cancelled`` or ``lost`` if it must end before, else None.

        Raises:
            StorageFailed: the store of processes is gone.
        """
        store, renewed = self._store, time.monotonic()
        ending = asyncio.create_task(program.wait())
        try:
            while not ending.done():
                await asyncio.wait({ending}, timeout=_POLL)
                now = time.monotonic()
                if now - self._written > _WRITE_SECONDS:
                    await asyncio.to_thread(self._write)
                    self._written = now
                if await asyncio.to_thread(store.is_cancelled, self.process.process_id):
                    return "cancelled"
                if now - renewed > store.lease_seconds / 3:
                    if not await asyncio.to_thread(store.renew, self.process):
                        return "lost"
                    renewed = now
            return None
        finally:
            ending.cancel()

    async def end(self, reading: asyncio.Task[None], *, write: bool) -> None:
        """Read the rest of the output after the end of the trainer and write it. A program that keeps the pipe open is not waited for."""
        await asyncio.wait({reading}, timeout=_READ_SECONDS)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        if write:
            await asyncio.to_thread(self._write)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        losses, self._losses = self._losses, {}
        if lines:
            self._store.append_log(self.process.process_id, "\n".join(lines) + "\n")
        for step, loss in losses.items():
            self._store.add_loss(self.process.process_id, step, loss)
        if self._progress != self.process.progress:
            self.process = replace(self.process, progress=dict(self._progress))
            self._store.update(self.process)


_CANCELLED = {"error": "The process was cancelled.", "code": "cancelled"}


def _is_installed(trainer: Trainer) -> bool:
    try:
        trainer.check()
    except MissingFile:
        return False
    return True
