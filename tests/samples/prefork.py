"""Endpoints and gateways as processes that start in a moment: a process that has imported everything forks them.

``python -m samples.prefork DESCRIPTOR`` serves the requests that arrive at the socket; `start_forked` sends them. The forked process is
an ordinary one: it has its own descriptors, environment and folder, and is killed and waited for like any other.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

__all__ = ["Forked", "can_fork", "start_forked"]

_TESTS = Path(__file__).resolve().parent.parent
_POPEN: Callable[..., Any] = subprocess.Popen
_IMPORTED = (
    "torch",
    "yggdrasill.server_ext.server",
    "yggdrasill.foundation",
    "yggdrasill.values.codec",
    "samples.plugin",
    "samples.served_blocks",
)
_LIMIT = 1 << 17


def can_fork() -> bool:
    """Return whether processes can be forked here, and no test has replaced the way in which they are started."""
    return hasattr(os, "pidfd_open") and hasattr(socket, "send_fds") and subprocess.Popen is _POPEN


class Forked:
    """A forked process with the part of `subprocess.Popen` that tests use; ``stdout`` is its standard output as text."""

    def __init__(self, pid: int, stdout: IO[str]) -> None:
        self.pid = pid
        self.stdout = stdout
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = -1

    def poll(self) -> bool:
        """Return whether the process has ended."""
        return self._descriptor < 0 or bool(select.select([self._descriptor], [], [], 0)[0])

    def wait(self, timeout: float | None = None) -> None:
        """Return when the process has ended.

        Raises:
            subprocess.TimeoutExpired: it runs after ``timeout`` seconds.
        """
        if self._descriptor < 0:
            return
        if not select.select([self._descriptor], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked endpoint", timeout or 0)
        os.close(self._descriptor)
        self._descriptor = -1

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing is sent to a process that has ended."""
        if self._descriptor >= 0:
            signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def start_forked(package: str, settings: str, environment: Mapping[str, str], folder: Path, errors: IO[str]) -> Forked:
    """Start a process of a package with ``settings`` (JSON); its standard error goes to the file ``errors``."""
    reading, writing = os.pipe()
    try:
        request = {"package": package, "settings": settings, "environment": dict(environment), "folder": str(folder)}
        pid = _parent().request(json.dumps(request).encode(), [writing, errors.fileno()])
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return Forked(pid, os.fdopen(reading, encoding="utf-8"))


class _Parent:
    """The process that forks; it ends when this process does, because its socket closes."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "samples.prefork", str(other.fileno())]
        with other:
            self._process = subprocess.Popen(command, env=environment, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)

    def request(self, text: bytes, descriptors: list[int]) -> int:
        """Return the id of the new process."""
        with self._lock:
            socket.send_fds(self._socket, [text], descriptors)
            answer = self._socket.recv(64)
        if not answer:
            raise RuntimeError(f"The process that forks endpoints ended with {self._process.wait()}")
        return int(answer)


@functools.cache
def _parent() -> _Parent:
    return _Parent()


def _serve(connection: socket.socket) -> None:
    """Fork a process for each request; return in the forked process, or when the other side has closed the socket."""
    for name in _IMPORTED:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):  # an extra
        importlib.import_module("yggdrasill.gateway.app")
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        text, descriptors, _, _ = socket.recv_fds(connection, _LIMIT, 2)
        if not text:
            return
        request = json.loads(text)
        pid = os.fork()
        if pid == 0:
            connection.close()
            _become(request, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(pid).encode())


def _become(request: Mapping[str, Any], descriptors: list[int]) -> None:
    """Turn the forked process into that of the package, and serve until it is stopped."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor, target in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    sys.argv[1:] = [request["settings"]]
    runpy.run_module(f"{request['package']}.__main__", run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
