"""Starting and stopping endpoint processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yggdrasill.errors import EndpointUnreachable

__all__ = ["EndpointProcess", "endpoint_processes"]

_START_SECONDS = 60.0


@dataclass(frozen=True)
class EndpointProcess:
    """A running endpoint process; ``token_env`` is the environment variable with its token."""

    name: str
    url: str
    token_env: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def endpoint_processes(names: Sequence[str], data_dir: Path, *, arguments: Sequence[str] = ()) -> Iterator[list[EndpointProcess]]:
    """Start one endpoint process per name, with a separate data folder, a free port and a new token in the environment.

    The endpoints may fetch artifacts from each other. All processes are stopped on exit.

    Raises:
        EndpointUnreachable: a process did not start; the message ends with its output.
    """
    started: list[tuple[str, str, subprocess.Popen[str], Path]] = []
    ports = _free_ports(len(names))
    peers = [argument for port in ports for argument in ("--peer", f"http://127.0.0.1:{port}")]
    try:
        for name, port in zip(names, ports, strict=True):
            variable = f"YGGDRASILL_{name.upper()}_TOKEN"
            os.environ[variable] = secrets.token_hex(32)  # text that no command line takes for an option
            folder = data_dir / name
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "endpoint.log"
            command = [
                sys.executable,
                "-m",
                "yggdrasill",
                "serve",
                "--json",
                "--port",
                str(port),
                "--data-dir",
                str(folder),
                *peers,
                *arguments,
            ]
            with log.open("w", encoding="utf-8") as errors:
                process = subprocess.Popen(  # noqa: S603 - this Python, our own module
                    command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "YGGDRASILL_TOKEN": os.environ[variable]}
                )
            started.append((name, variable, process, log))
        yield [EndpointProcess(name, _url(process, name, log), variable, process) for name, variable, process, log in started]
    finally:
        for _, variable, process, _ in started:
            os.environ.pop(variable, None)
            process.terminate()
        for _, _, process, _ in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _free_ports(count: int) -> list[int]:
    """Return ``count`` different free ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def _url(process: subprocess.Popen[str], name: str, log: Path) -> str:
    """Return the URL in the JSON document that a starting endpoint prints."""
    found: list[str] = []

    def read() -> None:
        text = ""
        for line in process.stdout or ():
            text += line
            with contextlib.suppress(ValueError):
                found.append(json.loads(text)["url"])
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(_START_SECONDS)
    if not found:
        raise EndpointUnreachable(
            f"the endpoint process {name!r} did not start: {log.read_text(encoding='utf-8', errors='replace')[-2000:] or 'no output'}"
        )
    return found[0]
