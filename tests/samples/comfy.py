"""A real ComfyUI for tests: finding the installation, running scripts with its Python, and starting servers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samples.endpoints import free_port
from yggdrasill.cli.installation import bring_extension

__all__ = ["ROOT", "Installation", "Server", "Servers", "find_installation", "make_base_directory"]

ROOT = Path(__file__).resolve().parent.parent.parent
_BASE = ("custom_nodes", "input", "models", "output", "temp", "user/default")


@dataclass(frozen=True)
class Installation:
    """A checkout of ComfyUI and the Python that runs it."""

    folder: Path
    python: Path

    @property
    def flag_without_api_nodes(self) -> str:
        """The flag that leaves out nodes of online services; its first name is deprecated where the second one exists."""
        parser = (self.folder / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        return "--offline" if '"--offline"' in parser else "--disable-api-nodes"

    def run(self, script: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run ``script`` with ComfyUI's Python inside its checkout; the caller checks the return code."""
        return self._run([str(script), *arguments], timeout)

    def evaluate(self, code: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a line of code with ComfyUI's Python inside its checkout; the caller checks the return code."""
        return self._run(["-c", code], timeout)

    def _run(self, arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=_environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )


def find_installation() -> Installation | None:
    """Return the ComfyUI at COMFYUI_PATH and COMFYUI_PYTHON, else the one in ``~/comfy``; None if either part is missing."""
    home = Path.home() / "comfy"
    folder = Path(os.environ.get("COMFYUI_PATH") or home / "ComfyUI")
    binary = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    python = Path(os.environ.get("COMFYUI_PYTHON") or home / "venv" / binary)
    return Installation(folder, python) if (folder / "main.py").is_file() and python.is_file() else None


def make_base_directory(base: Path, *, pack: bool = True) -> Path:
    """Create ``base`` with all folders that ComfyUI expects, and the checkout as a custom node unless ``pack`` is false."""
    for name in _BASE:
        (base / name).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")
    place = base / "custom_nodes" / "yggdrasill"
    if pack and not place.exists():
        bring_extension(place)
    return base


@dataclass(eq=False)
class Server:
    """A running ComfyUI with its files in ``base`` and its output in ``log``."""

    base: Path
    port: int
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.base / "server.log"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def printed(self) -> str:
        """Return everything that the server has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, *, timeout: float = 30) -> Any:
        """GET ``path`` and return the JSON; raise ``urllib.error.HTTPError`` with the text of the response."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any, *, timeout: float = 30) -> Any:
        """POST ``body`` to ``path`` and return the JSON, or None for an empty response. Raises as `get`."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def run(self, prompt: Mapping[str, Any], *, timeout: float = 100, **body: Any) -> dict[str, Any]:
        """Queue ``prompt`` as a client does, wait for it, and return its history entry, whether it succeeded or failed."""
        return self.wait_for(self.post("/prompt", {"prompt": prompt, **body})["prompt_id"], timeout=timeout)

    def wait_for(self, prompt_id: str, *, timeout: float = 100) -> dict[str, Any]:
        """Wait for a queued prompt, and return its history entry."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return dict(entry)
            time.sleep(0.02)
        raise TimeoutError(f"prompt {prompt_id} is not done after {timeout} s\n{self.printed()[-2000:]}")

    def wait_until_ready(self, *, timeout: float = 200) -> None:
        """Wait until the server responds; raise RuntimeError with its last output if it exits first."""
        end = time.monotonic() + timeout
        while self.alive and time.monotonic() < end:
            with contextlib.suppress(OSError, urllib.error.URLError):
                self.get("/system_stats", timeout=5)
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start (return code {self.process.returncode}):\n{self.printed()[-4000:]}")

    def stop(self) -> None:
        """Stop the process, gracefully first."""
        if self.alive:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill the process, as a crash does."""
        self.process.kill()
        self.process.wait(10)


@dataclass(eq=False)
class Servers:
    """Servers below ``folder``, started on demand. Servers without special flags are shared and reused."""

    installation: Installation
    folder: Path
    _shared: list[Server] = field(default_factory=list)
    _started: list[Server] = field(default_factory=list)

    def shared(self, count: int = 1) -> list[Server]:
        """Return ``count`` running servers with the pack and the usual flags, the same ones each time; a dead one is replaced."""
        self._shared = [server for server in self._shared if server.alive]
        fresh = [self.launch() for _ in range(count - len(self._shared))]
        for server in fresh:
            server.wait_until_ready()
        self._shared += fresh
        return self._shared[:count]

    def start(
        self,
        *flags: str,
        pack: bool = True,
        api_nodes: bool = False,
        environment: Mapping[str, str] | None = None,
        base: Path | None = None,
    ) -> Server:
        """Start one more server, for a test that passes ``flags``, kills it or fills it; ``base`` is the folder of an earlier server."""
        server = self.launch(flags, pack=pack, api_nodes=api_nodes, environment=environment, base=base)
        server.wait_until_ready()
        return server

    def launch(
        self,
        flags: Sequence[str] = (),
        *,
        pack: bool = True,
        api_nodes: bool = False,
        environment: Mapping[str, str] | None = None,
        base: Path | None = None,
        port: int | None = None,
    ) -> Server:
        """Start a server as `start`, without waiting for it."""
        base = make_base_directory(base or self.folder / f"server-{len(self._started)}", pack=pack)
        port = port or free_port()
        database = (base / "user" / "comfyui.db").as_posix()
        command = [str(self.installation.python), "main.py", "--cpu", "--disable-auto-launch", "--port", str(port)]
        command += [] if api_nodes else [self.installation.flag_without_api_nodes]
        command += ["--base-directory", str(base), "--database-url", f"sqlite:///{database}", *flags]
        with (base / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.installation.folder,
                env={**_environment(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        server = Server(base, port, process)
        self._started.append(server)
        return server

    def start_again(self, server: Server, *flags: str) -> None:
        """Restart a stopped server with its folder and address."""
        again = self.launch(flags, base=server.base, port=server.port)
        again.wait_until_ready()
        server.process = again.process

    def __iter__(self) -> Iterator[Server]:
        return iter([server for server in self._started if server.alive])

    def stop(self) -> None:
        """Stop all running servers."""
        for server in self:
            server.process.terminate()
        for server in self._started:
            server.stop()


def _environment() -> dict[str, str]:
    """Return the environment of this process without the variables of its Python."""
    own = {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV"}
    return {**{key: value for key, value in os.environ.items() if key not in own}, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
