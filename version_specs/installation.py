"""A ComfyUI folder beside a version spec: ComfyUI's revision, and the packages of its Python."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from yggdrasill.errors import StorageFailed, UnsupportedFormat
from yggdrasill.version_specs.git import GitRefused, head, is_checkout, resolve, run_git
from yggdrasill.version_specs.model import COMMIT

__all__ = ["base_version", "check_packages", "check_revision", "comfy_python", "run_python"]

_PYTHONS = ("bin/python", "Scripts/python.exe", "python.exe")
_ENVIRONMENTS = ("venv", ".venv", "../venv", "../.venv", "../python_embeded")
_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"'\n]+)["']""", re.MULTILINE)
_RELEASE = re.compile(r"v?(\d+(?:\.\d+)+)")
_CHECK = Path(__file__).with_name("requirements_check.py")
_PYTHON_S = 120.0


def comfy_python(home: Path) -> Path | None:
    """Return the Python of a ComfyUI folder's own environment, or None. It is not resolved: the link selects the environment."""
    return next(iter(_pythons(home)), None)


def _pythons(home: Path) -> Iterator[Path]:
    for environment in _ENVIRONMENTS:
        for program in _PYTHONS:
            file = home / environment / program
            if file.is_file():
                yield file.absolute()


def base_version(home: Path) -> str | None:
    """Return the revision of a ComfyUI folder: its tag, else its commit; without git ``v`` and its version; None if it has none."""
    try:
        if is_checkout(home):
            tags = run_git("tag", "--points-at", "HEAD", folder=home).split()
            releases = [tag for tag in tags if _RELEASE.fullmatch(tag)]
            return (releases or tags or [head(home)])[0]
    except (GitRefused, UnsupportedFormat):
        pass
    version = _version(home)
    return None if version is None else f"v{version}"


def check_revision(home: Path, wanted: str) -> str | None:
    """Return None if ComfyUI is at the wanted tag, branch or commit, else why not. Nothing is sent."""
    if not (home / "main.py").is_file():
        return f"is not installed in {str(home)!r}; clone it there, or name its folder with COMFY_HOME"
    release, version = _RELEASE.fullmatch(wanted), _version(home)
    if not is_checkout(home):
        if release is None:
            return None if version is None else f"has no git checkout in {str(home)!r}, so the revision {wanted!r} cannot be compared"
        return None if version == release[1] else f"is version {version or 'unknown'}, expected {wanted}"
    try:
        present = head(home)
        commit = wanted.lower() if COMMIT.fullmatch(wanted.lower()) else _known_commit(home, wanted, release)
    except GitRefused as error:
        return f"cannot be read by git: {error}"
    if present == commit or (commit is None and release is not None and version == release[1]):
        return None
    return (
        f"is at commit {present[:12]}{f' (version {version})' if version else ''}, expected {wanted}; run: git -C {home} checkout {wanted}"
    )


def _known_commit(home: Path, wanted: str, release: re.Match[str] | None) -> str | None:
    """Return the commit of a tag or branch; a bare version is the tag with a ``v``."""
    return resolve(home, wanted) or (resolve(home, f"v{release[1]}") if release is not None else None)


def _version(home: Path) -> str | None:
    try:
        found = _VERSION.search((home / "comfyui_version.py").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def check_packages(python: Path, requirements: str) -> list[tuple[str, str]]:
    """Return ``(requirement, reason)`` for every requirement that a Python does not meet.

    Raises:
        StorageFailed: the Python cannot be run.
    """
    if not requirements.strip():
        return []
    answer = run_python(python, str(_CHECK), text=requirements)
    return [(str(requirement), str(reason)) for requirement, reason in json.loads(answer)]


def run_python(python: Path, *arguments: str, text: str = "") -> str:
    """Return what a Python prints, run without the variables and the folder of this process.

    Raises:
        StorageFailed: it cannot be run, or failed.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the Python of the installation that the owner named
            [str(python), "-I", *arguments], input=text.encode("utf-8"), capture_output=True, timeout=_PYTHON_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StorageFailed(
            f"Cannot run {str(python)!r}: {error}. Name the Python of ComfyUI with --python FILE.", path=str(python)
        ) from error
    if done.returncode:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"])[-1]
        raise StorageFailed(f"{str(python)!r} failed: {last[:300]}.", path=str(python))
    return done.stdout.decode("utf-8", "replace")
