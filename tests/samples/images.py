"""The Dockerfile and the compose file as data, and their commands as processes outside containers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["COMPOSE", "DOCKER", "ENTRYPOINT", "ROOT", "Instruction", "RoleProcess", "compose", "dockerfile", "ignored", "path_with_program"]

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER = ROOT / "docker"
ENTRYPOINT = DOCKER / "entrypoint.sh"
COMPOSE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::(-|\?)([^}]*))?\}")


@dataclass(frozen=True)
class Instruction:
    """An instruction of a Dockerfile, with the name of its stage."""

    stage: str
    name: str
    text: str

    @property
    def flags(self) -> dict[str, str]:
        """Return the flags, such as those of COPY."""
        return dict(word.removeprefix("--").split("=", 1) for word in self.text.split() if word.startswith("--") and "=" in word)

    @property
    def words(self) -> list[str]:
        """Return the words without flags."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


def dockerfile() -> list[Instruction]:
    """Return the instructions of docker/Dockerfile; those before the first stage have an empty stage."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, text = line.strip().partition(" ")
        if name == "FROM":
            stage = text.split()[-1]
        if name:
            found.append(Instruction(stage, name, text.strip()))
    return found


def ignored(path: str) -> bool:
    """Return whether .dockerignore leaves a file of the checkout out, or one of its folders."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    parts = path.split("/")
    prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(_pattern(pattern).fullmatch(prefix) for pattern in patterns for prefix in prefixes)


def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.compile(escaped)


def compose(variables: Mapping[str, str], file: Path = COMPOSE) -> dict[str, Any]:
    """Return a compose file with its variables replaced. Raise KeyError for one that is required and not given."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        given = variables.get(name, "")
        if given:
            return given
        if operator == "?":
            raise KeyError(name)
        return rest or ""

    text = _VARIABLE.sub(value, file.read_text(encoding="utf-8"))
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def path_with_program(folder: Path) -> str:
    """Return a PATH with the program ``yggdrasill`` of this checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "yggdrasill"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m yggdrasill "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


@dataclass(eq=False)
class RoleProcess:
    """The entry point of the images with a command, as a process. Its data folder is ``folder`` and its output ``folder/output.log``."""

    folder: Path
    command: list[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # a container has the variables of its image and its service only
        kept = {name: os.environ[name] for name in ("HOME", "PYTHONPATH", "LANG", "TMPDIR") if name in os.environ}
        inside = {
            "PATH": path_with_program(self.folder / "bin"),
            "COMFYUI_PYTHON": sys.executable,
            "YGGDRASILL_DATA": str(self.folder / "data"),
        }
        self.environment = {**kept, **inside, **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(ENTRYPOINT), *self.command],
                env=dict(self.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> Path:
        return self.folder / "output.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PORT']}"

    def healthy(self) -> bool:
        """Return whether the health check of the images succeeds."""
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
        checked = subprocess.run([str(ENTRYPOINT), "healthcheck"], env=dict(self.environment), capture_output=True, check=False)
        return checked.returncode == 0

    def stop(self) -> int:
        """Stop the process as `docker stop` does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
