"""ComfyUI servers of this machine, one per device: started, waited for, watched, ended."""

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
_END_SECONDS = 10.0
_FOLDERS = ("input", "output", "temp", "user")
_OF_THIS_PYTHON = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV", "YGGDRASILL_TOKEN"})


@dataclass(frozen=True)
class Device:
    """What a server computes on; ``name`` is the endpoint's."""

    name: str
    flags: tuple[str, ...]


def devices_of(gpus: str | None, cpus: int) -> list[Device]:
    """From a list such as ``0,1`` of GPU numbers, in which ``cpu`` stands for the processor, and a number of servers without a GPU.

    Raises:
        InvalidArgument: no device, one named twice, or no number.
    """
    words = [word.strip() for word in (gpus or "").split(",") if word.strip()] + ["cpu"] * cpus
    if not words:
        raise InvalidArgument("say what to compute on: --gpus 0,1 with the numbers of the GPUs, or --cpu 2 for servers without one")
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
    """A server that was started. Its files lie in ``folder``, what it prints in ``server.log`` there."""

    name: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def data_dir(self) -> Path:
        """The data folder of the endpoint in it."""
        return self.folder / "user" / "yggdrasill"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def last_words(self) -> str:
        """The last lines that it printed."""
        text = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_LAST_LINES:])

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> float:
        """Return the seconds it took until ``ready`` is true.

        Raises:
            EndpointUnreachable: the server ended, or it took too long; the message ends with what it printed last.
        """
        started = time.monotonic()
        while not ready():
            if not self.alive:
                raise EndpointUnreachable(
                    f"server {self.name!r} ended while it started (return code {self.process.returncode}). It printed at last:\n{self.last_words()}",
                    endpoint=self.name,
                )
            if time.monotonic() - started > seconds:
                raise EndpointUnreachable(
                    f"server {self.name!r} is not ready after {seconds:g} s; give it more with --patience. It printed at last:\n{self.last_words()}",
                    endpoint=self.name,
                )
            time.sleep(0.2)
        return time.monotonic() - started


@contextlib.contextmanager
def comfy_processes(
    installation: Installation, devices: Sequence[Device], folder: Path, *, port: int, flags: Sequence[str] = ()
) -> Iterator[list[ComfyProcess]]:
    """One server per device on ports from ``port`` on (0: any), with files below ``folder``, and the installation's models and nodes.

    All of them are ended on leaving, and end by themselves if this process is killed (not on Windows).

    Raises:
        InvalidArgument: a port is taken. StorageFailed
    """
    ports = _ports(port, len(devices))
    started: list[ComfyProcess] = []
    with _parent_pipe() as parent_pipe, _ended(started):
        for device, number in zip(devices, ports, strict=True):
            started.append(_start(installation, device, folder / device.name, number, flags, parent_pipe))
        yield started


@contextlib.contextmanager
def _parent_pipe() -> Iterator[tuple[int, ...]]:
    """What servers are given to see by that this process is gone, however it ended; nothing where processes cannot be given such things."""
    if os.name != "posix":
        yield ()
        return
    given, held = os.pipe()
    try:
        yield (given,)
    finally:
        os.close(given)
        os.close(held)


@contextlib.contextmanager
def _ended(started: Sequence[ComfyProcess]) -> Iterator[None]:
    """Those that run on leaving are ended, gently first."""
    try:
        yield
    finally:
        for each in started:
            if each.alive:
                each.process.terminate()
        for each in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(timeout=_END_SECONDS)
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
    environment = {key: value for key, value in os.environ.items() if key not in _OF_THIS_PYTHON}
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
    """Make the server's folders; the flags that bring this extension along, if the installation has it not."""
    try:
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        if installation.has_extension():
            return []
        place = folder / "custom_nodes" / "yggdrasill"
        place.parent.mkdir(exist_ok=True)
        bring_extension(place)
        paths = folder / "extra_model_paths.yaml"
        # JSON is YAML, whatever is in the path
        paths.write_text(json.dumps({"yggdrasill": {"custom_nodes": str(place.parent)}}) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageFailed(f"cannot prepare {str(folder)!r}: {error.strerror or error}", path=str(folder)) from error
    return ["--extra-model-paths-config", str(paths)]


def _ports(first: int, count: int) -> list[int]:
    """Ports that nobody uses now, held together while they are looked for."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for index, held in enumerate(sockets):
            wanted = first + index if first else 0
            try:
                held.bind(("127.0.0.1", wanted))
            except (OSError, OverflowError) as error:
                raise InvalidArgument(
                    f"port {wanted} cannot be used ({error}); stop what listens there, or choose another first port with --port, 0 for free ones"
                ) from None
        return [held.getsockname()[1] for held in sockets]
