"""The workspace of a worker: five folders, and the rule that no path of a request leaves them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yggdrasill.errors import AccessDenied, InvalidArgument, MissingFile, StorageFailed
from yggdrasill.version_specs.places import on_this_machine

__all__ = ["FOLDERS", "Workspace", "plain_name"]

FOLDERS = ("training_data", "models", "output", "logs")
"""The folders inside the root; with the root itself they are the five folders of a workspace."""
_MAX_PATH = 1000
_MAX_NAME = 200
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(1, 10))})


def plain_name(name: object, what: str = "file name") -> str:
    """Return ``name`` if it names a file or folder on every system, without a path.

    Raises:
        InvalidArgument
    """
    text = name if isinstance(name, str) else ""
    wrong = any(ord(sign) < 32 or sign in '\\/:*?"<>|' for sign in text) or text.startswith(".") or text.endswith((".", " "))
    if not text.strip() or wrong or len(text.encode("utf-8", "replace")) > _MAX_NAME or text.partition(".")[0].lower() in _RESERVED:
        raise InvalidArgument(
            f"Invalid {what} {str(name)[:80]!r}. Use letters, digits, '.', '_' and '-', at most {_MAX_NAME} bytes, without a path.",
            code="invalid_name",
        )
    return text


@dataclass(frozen=True)
class Workspace:
    """The folders below ``root``. Create them with `make`."""

    root: Path

    @property
    def training_data(self) -> Path:
        """The folder of data sets, one folder each."""
        return self.root / "training_data"

    @property
    def models(self) -> Path:
        """The folder of models that a request made or downloaded."""
        return self.root / "models"

    @property
    def output(self) -> Path:
        """The folder of results."""
        return self.root / "output"

    @property
    def logs(self) -> Path:
        """The folder of logs."""
        return self.root / "logs"

    @property
    def processes(self) -> Path:
        """The folder of process rows. It is hidden from lists, and a request cannot name it: rows have paths of this machine."""
        return self.logs / ".processes"

    def make(self) -> None:
        """Create the missing folders.

        Raises:
            StorageFailed
        """
        for folder in (self.root, *(self.root / name for name in FOLDERS)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageFailed(
                    f"Cannot create the workspace folder {folder.name!r}: {error.strerror or error}. Check the volume.", path=str(folder)
                ) from error

    def resolve(self, path: object, *, below: str | None = None, must_exist: bool = True) -> Path:
        """Return the absolute path of a path that a request named, with all links followed.

        A relative path begins at the root, or at the folder ``below`` of the workspace. An absolute one must be inside.

        Raises:
            InvalidArgument: not a path.
            AccessDenied: it leaves the root (or ``below``), by ``..`` or by a link (code ``path_outside_workspace``).
            MissingFile: it does not exist and ``must_exist``, or it is a process row.
        """
        if not isinstance(path, str) or not path.strip() or "\0" in path or len(path) > _MAX_PATH:
            raise InvalidArgument(
                f"A path must be a text of 1 to {_MAX_PATH} characters, got {str(path)[:80]!r}. Name it relative to the workspace.",
                code="invalid_path",
            )
        root = Path(os.path.realpath(self.root))
        base = root if below is None else Path(os.path.realpath(self.root / below))
        named = on_this_machine(path.replace("\\", "/")) if path.startswith(("/", "\\")) else PurePosixPath(path.replace("\\", "/"))
        found = Path(os.path.realpath(base / named))
        if not base.is_relative_to(root) or not found.is_relative_to(base) or ":" in path.replace("\\", "/").split("/")[0]:
            raise AccessDenied(
                f"The path {path[:200]!r} is outside the workspace{f' folder {below!r}' if below else ''}. Name a path inside it.",
                code="path_outside_workspace",
                reason="path",
            )
        if (must_exist and not found.exists()) or found.is_relative_to(os.path.realpath(self.processes)):
            raise MissingFile(f"The workspace has no file {path[:200]!r}. The request 'list_files' lists its files.", code="unknown_file")
        return found

    def name(self, path: Path) -> str:
        """Return the path relative to the root, with ``/``, for a result."""
        real = Path(os.path.realpath(path))
        return real.relative_to(os.path.realpath(self.root)).as_posix()
