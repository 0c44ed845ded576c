"""Endpoints and plain servers as separate processes that stop at the end of a block."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Served", "endpoint", "python", "spawn", "started"]

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Served:
    """The URL of an endpoint, its token and the id of its process."""

    url: str
    token: str
    pid: int


def _environment(**more: str) -> dict[str, str]:
    """Return this process's environment with the checkout on the path, because the endpoint imports `benchmarks.blocks`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def python(arguments: Sequence[str], **environment: str) -> str:
    """Return the output of a Python process; raises CalledProcessError if it fails."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, env=_environment(**environment), cwd=ROOT)
    return done.stdout.decode("utf-8")


@contextlib.contextmanager
def spawn(arguments: Sequence[str], first: str, **environment: str) -> Iterator[str]:
    """Start a Python process, wait for the line that begins with ``first`` and return the rest of it."""
    with started(arguments, first, **environment) as (_, line):
        yield line


@contextlib.contextmanager
def started(arguments: Sequence[str], first: str, **environment: str) -> Iterator[tuple[int, str]]:
    """Start a process as `spawn` does, and return its id too."""
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments], stdout=subprocess.PIPE, env=_environment(**environment), cwd=ROOT, encoding="utf-8"
    )
    assert process.stdout is not None
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        line = next((line for line in process.stdout if line.startswith(first)), None)
        watchdog.cancel()
        if line is None:
            raise RuntimeError(
                f"{' '.join(arguments[:3])} ended (exit code {process.wait()}) or did not print {first!r} in {START_SECONDS:g} s"
            )
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield process.pid, line.removeprefix(first).strip()
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def endpoint(folder: Path, graphs: Mapping[str, Mapping[str, Any]], **settings: Any) -> Iterator[Served]:
    """Start a headless endpoint with `benchmarks.blocks` that serves graph configs by id; ``settings`` are the server's."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for graph_id, config in graphs.items():
        path = folder / f"{graph_id}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        files.append(str(path))
    token = secrets.token_hex(16)
    chosen = {"port": 0, "data_dir": str(folder / "data"), "plugins": ["benchmarks.blocks"], "graphs": files, **settings}
    with started(["-m", "yggdrasill.server_ext", json.dumps(chosen)], "{", YGGDRASILL_TOKEN=token) as (pid, line):
        yield Served(json.loads("{" + line)["url"], token, pid)
