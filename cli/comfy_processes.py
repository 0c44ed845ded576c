"""Starting, watching and stopping ComfyUI servers on this machine, one per device."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yggdrasill.cli.installation import Installation, bring_extension
from yggdrasill.errors import EndpointUnreachable, InvalidArgument, StorageFailed
from yggdrasill.server_ext.parent_watchdog import PARENT_PIPE

__all__ = ["ComfyProcess", "ComfyStart", "Device", "comfy_processes", "devices_of", "parent_pipe", "start_comfy", "stop_processes"]

_LAST_LINES = 20
_STOP_SECONDS = 10.0
_FOLDERS = ("input", "output", "temp", "user")
_NOT_INHERITED = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV", "YGGDRASILL_TOKEN"})


@dataclass(frozen=True)
class Device:
    """The device of a server; ``name`` is the endpoint's name."""

    name: str
    flags: tuple[str, ...]


def devices_of(gpus: str | None, cpus: int) -> list[Device]:
    """Return the devices of a list such as ``0,1,cpu`` of GPU numbers, plus ``cpus`` servers without a GPU.

    Raises:
        InvalidArgument: no device, a repeated one, or a word that is not a number.
    """
    words = [word.strip() for word in (gpus or "").split(",") if word.strip()] + ["cpu"] * cpus
    if not words:
        raise InvalidArgument("no device given: use --gpus 0,1 with GPU numbers, or --cpu 2 for servers without a GPU")
    numbers = [word for word in words if word != "cpu"]
    wrong = sorted({word for word in numbers if not word.isdecimal()} | {word for word in numbers if numbers.count(word) > 1})
    if wrong:
        raise InvalidArgument(f"--gpus takes numbers, each once, or 'cpu'; got {', '.join(wrong)}")
    found, cpu = [], 0
    for word in words:
        if word == "cpu":
            found.append(Device(f"cpu{cpu}", ("--cpu",)))
            cpu += 1
        else:
            found.append(Device(f"gpu{int(word)}", ("--cuda-device", str(int(word)))))
    return found


@dataclass(frozen=True)
class ComfyStart:
    """How a server is started: its device, its files in ``folder`` except those that ``folders`` names (input, output, temp, user).

    ``model_paths`` are further entries of its extra_model_paths.yaml. ``environment`` replaces that of this process.
    """

    device: Device
    folder: Path
    port: int
    flags: Sequence[str] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)
    model_paths: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] | None = None

    def folder_of(self, name: str) -> Path:
        """Return ComfyUI's folder ``name``."""
        return self.folders.get(name, self.folder / name)


@dataclass(eq=False)
class ComfyProcess:
    """A server process. Its files are in ``folder``, its output in ``server.log`` there."""

    name: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def url(self) -> str:
        """The URL at which it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def data_dir(self) -> Path:
        """The data folder of its endpoint."""
        return self.folder / "user" / "yggdrasill"

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    def last_lines(self) -> str:
        """Return the last lines of its output."""
        text = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_LAST_LINES:])

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> float:
        """Wait until ``ready`` is true and return the seconds that took.

        Raises:
            EndpointUnreachable: the server ended, or the time limit passed; the message ends with its last output.
        """
        started = time.monotonic()
        while not ready():
            if not self.alive:
                raise EndpointUnreachable(
                    f"server {self.name!r} ended during the start (return code {self.process.returncode}). Its last output:\n{self.last_lines()}",
                    endpoint=self.name,
                )
            if time.monotonic() - started > seconds:
                raise EndpointUnreachable(
                    f"server {self.name!r} is not ready after {seconds:g} s; allow more with --patience. Its last output:\n{self.last_lines()}",
                    endpoint=self.name,
                )
            time.sleep(0.2)
        return time.monotonic() - started


@contextlib.contextmanager
def comfy_processes(
    installation: Installation, devices: Sequence[Device], folder: Path, *, port: int, flags: Sequence[str] = ()
) -> Iterator[list[ComfyProcess]]:
    """Start one server per device on ports from ``port`` (0: any free ones), with files in ``folder`` and the installation's models and nodes.

    All servers are stopped on exit, and stop by themselves if this process is killed (not on Windows).

    Raises:
        InvalidArgument: a port is taken. StorageFailed
    """
    ports = _ports(port, len(devices))
    started: list[ComfyProcess] = []
    with parent_pipe() as pipe, _stopped(started):
        for device, number in zip(devices, ports, strict=True):
            started.append(start_comfy(installation, ComfyStart(device, folder / device.name, number, flags), pipe))
        yield started


@contextlib.contextmanager
def parent_pipe() -> Iterator[tuple[int, ...]]:
    """A pipe that the servers inherit; it closes when this process ends, so that they stop. Empty without inheritable pipes."""
    if os.name != "posix":
        yield ()
        return
    inherited, kept_open = os.pipe()
    try:
        yield (inherited,)
    finally:
        os.close(inherited)
        os.close(kept_open)


@contextlib.contextmanager
def _stopped(started: Sequence[ComfyProcess]) -> Iterator[None]:
    """Terminate the running servers on exit, and kill those that do not end in time."""
    try:
        yield
    finally:
        stop_processes(started)


def stop_processes(started: Sequence[ComfyProcess]) -> None:
    """Terminate the servers that run, and kill those that do not end within ten seconds."""
    for each in started:
        if each.alive:
            each.process.terminate()
    for each in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.process.wait(timeout=_STOP_SECONDS)
        if each.alive:
            each.process.kill()
            each.process.wait()


def start_comfy(installation: Installation, start: ComfyStart, pipe: tuple[int, ...] = ()) -> ComfyProcess:
    """Start a server that stops when the `parent_pipe` ``pipe`` closes. A ``port`` of 0 is any free one.

    Raises:
        StorageFailed: its folders cannot be made. EndpointUnreachable: Python cannot be started. InvalidArgument: the port is taken.
    """
    device, folder = start.device, start.folder
    port = start.port or _ports(0, 1)[0]
    extra = _prepare(installation, start)
    database = (start.folder_of("user") / "comfyui.db").as_posix()
    command = [str(installation.python), "main.py", *device.flags, "--disable-auto-launch", "--port", str(port)]
    command += [word for name in _FOLDERS for word in (f"--{name}-directory", str(start.folder_of(name)))]
    command += ["--database-url", f"sqlite:///{database}", *extra, *start.flags]
    given = os.environ if start.environment is None else start.environment
    environment = {key: value for key, value in given.items() if key not in _NOT_INHERITED}
    environment |= {PARENT_PIPE: str(pipe[0])} if pipe else {}
    try:
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - the installation that the user named
                command,
                cwd=installation.folder,
                env={**environment, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
                pass_fds=pipe,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    except OSError as error:
        raise EndpointUnreachable(f"cannot start {installation.python}: {error.strerror or error}", endpoint=device.name) from error
    return ComfyProcess(device.name, folder, port, process)


def _prepare(installation: Installation, start: ComfyStart) -> list[str]:
    """Create the server's folders and return the flags that add this extension, if the installation does not have it, and other models."""
    folder, entries = start.folder, {name: dict(paths) for name, paths in start.model_paths.items()}
    try:
        for name in _FOLDERS:
            start.folder_of(name).mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        if not installation.has_extension():
            target = folder / "custom_nodes" / "yggdrasill"
            target.parent.mkdir(exist_ok=True)
            bring_extension(target)
            entries["yggdrasill"] = {"custom_nodes": str(target.parent)}
        if not entries:
            return []
        paths = folder / "extra_model_paths.yaml"
        # JSON is valid YAML for every path
        paths.write_text(json.dumps(entries) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageFailed(f"cannot prepare {str(folder)!r}: {error.strerror or error}", path=str(folder)) from error
    return ["--extra-model-paths-config", str(paths)]


def _ports(first: int, count: int) -> list[int]:
    """Return free ports: consecutive ones from ``first``, or any if it is 0.

    Raises:
        InvalidArgument: a port is in use.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for index, held in enumerate(sockets):
            wanted = first + index if first else 0
            try:
                held.bind(("127.0.0.1", wanted))
            except (OSError, OverflowError) as error:
                raise InvalidArgument(
                    f"port {wanted} cannot be used ({error}); stop the program that uses it, or choose another first port with --port, 0 for free ports"
                ) from None
        return [held.getsockname()[1] for held in sockets]
