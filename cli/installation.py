"""An existing installation of ComfyUI: its folder and the Python that runs it."""

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
_NOT_THE_EXTENSION = (".*", "__pycache__", "*.egg-info", "build", "dist", "node_modules", "out", "tests")
_OWN = re.compile(r'^name\s*=\s*"yggdrasill"', re.MULTILINE)


@dataclass(frozen=True)
class Installation:
    """A checkout of ComfyUI and the Python that runs it."""

    folder: Path
    python: Path

    def has_extension(self) -> bool:
        """Whether this extension lies in its ``custom_nodes``, in whatever folder."""
        return any(_is_extension(folder) for folder in (self.folder / "custom_nodes").glob("*/") if not folder.name.endswith(".disabled"))


def find_installation(
    comfy: str | Path | None = None, python: str | Path | None = None, environment: Mapping[str, str] = os.environ
) -> Installation:
    """The installation that the arguments name, else ``COMFYUI_PATH`` and ``COMFYUI_PYTHON``, else the one around this package.

    Raises:
        MissingFile: there is none; the message says how to name it.
    """
    given = comfy or environment.get("COMFYUI_PATH")
    folders = [Path(given).expanduser()] if given else [PACKAGE.parent.parent, Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI"]
    folder = next((each.resolve() for each in folders if (each / "main.py").is_file() and (each / "comfy").is_dir()), None)
    if folder is None:
        raise MissingFile(
            f"there is no ComfyUI in {' or '.join(str(each) for each in folders)}; name the folder that holds its main.py with --comfy PATH or COMFYUI_PATH"
        )
    named = python or environment.get("COMFYUI_PYTHON")
    candidates = [Path(named).expanduser()] if named else list(_pythons(folder))
    found = next((each for each in candidates if each.is_file()), None)
    if found is None:
        where = str(candidates[0]) if named else f"{folder} or beside it"
        raise MissingFile(f"there is no Python for ComfyUI in {where}; name the one that runs it with --python FILE or COMFYUI_PYTHON")
    # not resolved: a link in an environment is what makes it that environment's Python
    return Installation(folder, found.absolute())


def bring_extension(place: Path) -> None:
    """Link this package to ``place``, or copy it where links are not allowed; what an earlier start left there goes.

    Raises:
        OSError
    """
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    try:
        place.symlink_to(PACKAGE, target_is_directory=True)
    except OSError:  # Windows lets only some users make links
        shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns(*_NOT_THE_EXTENSION))


def _pythons(folder: Path) -> Iterator[Path]:
    for environment in _VENVS:
        for binary in _PYTHONS:
            yield folder / environment / binary


def _is_extension(folder: Path) -> bool:
    file = folder / "pyproject.toml"
    return file.is_file() and _OWN.search(file.read_text(encoding="utf-8", errors="replace")) is not None
