"""Finding an installation of ComfyUI: its folder and its Python."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from yggdrasill.errors import MissingFile

__all__ = ["PACKAGE", "Installation", "bring_extension", "find_installation"]

#: The folder of this package, which is the extension itself.
PACKAGE = Path(__file__).resolve().parent.parent
_PYTHONS = ("bin/python", "Scripts/python.exe", "python.exe")
_VENVS = ("venv", ".venv", "../venv", "../.venv", "../python_embeded")
_NOT_COPIED = (".*", "__pycache__", "*.egg-info", "build", "dist", "node_modules", "out", "tests")
_PACKAGE_NAME = re.compile(r'^name\s*=\s*"yggdrasill"', re.MULTILINE)


@dataclass(frozen=True)
class Installation:
    """A ComfyUI checkout and the Python that runs it."""

    folder: Path
    python: Path

    def has_extension(self) -> bool:
        """Return whether a folder in its ``custom_nodes`` is this extension."""
        return any(_is_extension(folder) for folder in (self.folder / "custom_nodes").glob("*/") if not folder.name.endswith(".disabled"))


def find_installation(
    comfy: str | Path | None = None, python: str | Path | None = None, environment: Mapping[str, str] = os.environ
) -> Installation:
    """Return the installation that the arguments name, else ``COMFYUI_PATH`` and ``COMFYUI_PYTHON``, else the one that contains this package.

    Raises:
        MissingFile: none was found; the message says how to name one.
    """
    given = comfy or environment.get("COMFYUI_PATH")
    folders = [Path(given).expanduser()] if given else [PACKAGE.parent.parent, Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    folder = next((each.resolve() for each in folders if (each / "main.py").is_file() and (each / "comfy").is_dir()), None)
    if folder is None:
        raise MissingFile(
            f"ComfyUI not found in {' or '.join(str(each) for each in folders)}; name the folder that holds its main.py with --comfy PATH or COMFYUI_PATH"
        )
    named = python or environment.get("COMFYUI_PYTHON")
    candidates = [Path(named).expanduser()] if named else list(_pythons(folder))
    found = next((each for each in candidates if each.is_file()), None)
    if found is None:
        where = str(candidates[0]) if named else f"{folder} or beside it"
        raise MissingFile(f"Python of ComfyUI not found in {where}; name it with --python FILE or COMFYUI_PYTHON")
    # not resolved: the link in an environment selects the environment
    return Installation(folder, found.absolute())


def bring_extension(target: Path) -> None:
    """Link this package to ``target``, or copy it where links are not allowed; an existing target is replaced.

    Raises:
        OSError
    """
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(PACKAGE, target_is_directory=True)
    except OSError:  # on Windows only some users may create links
        shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def _pythons(folder: Path) -> Iterator[Path]:
    for environment in _VENVS:
        for binary in _PYTHONS:
            yield folder / environment / binary


def _is_extension(folder: Path) -> bool:
    file = folder / "pyproject.toml"
    return file.is_file() and _PACKAGE_NAME.search(file.read_text(encoding="utf-8", errors="replace")) is not None
