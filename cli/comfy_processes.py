"""Starting, watching and stopping ComfyUI servers on this machine, one per device."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yggdrasill.cli.installation import Installation, bring_extension
from yggdrasill.errors import EndpointUnreachable, InvalidArgument, StorageFailed
from yggdrasill.server_ext.parent_watchdog import PARENT_PIPE

__all__ = ["ComfyProcess", "Device", "comfy_processes", "devices_of"]

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
    with _parent_pipe() as parent_pipe, _stopped(started):
        for device, number in zip(devices, ports, strict=True):
            started.append(_start(installation, device, folder / device.name, number, flags, parent_pipe))
        yield started


@contextlib.contextmanager
def _parent_pipe() -> Iterator[tuple[int, ...]]:
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
        for each in started:
            if each.alive:
                each.process.terminate()
        for each in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(timeout=_STOP_SECONDS)
            if each.alive:
                each.process.kill()
                each.process.wait()


def _start(
    installation: Installation, device: Device, folder: Path, port: int, flags: Sequence[str], parent_pipe: tuple[int, ...]
) -> ComfyProcess:
    extra = _prepare(installation, folder)
    database = (folder / "user" / "comfyui.db").as_posix()
    command = [str(installation.python), "main.py", *device.flags, "--disable-auto-launch", "--port", str(port)]
    command += [word for name in _FOLDERS for word in (f"--{name}-directory", str(folder / name))]
    command += ["--database-url", f"sqlite:///{database}", *extra, *flags]
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    environment |= {PARENT_PIPE: str(parent_pipe[0])} if parent_pipe else {}
    try:
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - the installation that the user named
                command,
                cwd=installation.folder,
                env={**environment, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
                pass_fds=parent_pipe,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    except OSError as error:
        raise EndpointUnreachable(f"cannot start {installation.python}: {error.strerror or error}", endpoint=device.name) from error
    return ComfyProcess(device.name, folder, port, process)


def _prepare(installation: Installation, folder: Path) -> list[str]:
    """Create the server's folders and return the flags that add this extension, if the installation does not have it."""
    try:
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        if installation.has_extension():
            return []
        target = folder / "custom_nodes" / "yggdrasill"
        target.parent.mkdir(exist_ok=True)
        bring_extension(target)
        paths = folder / "extra_model_paths.yaml"
        # JSON is valid YAML for every path
        paths.write_text(json.dumps({"yggdrasill": {"custom_nodes": str(target.parent)}}) + "\n", encoding="utf-8")
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
