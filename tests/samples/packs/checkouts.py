"""The checkouts of third-party packs, the Python that runs them, and their versions."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from samples.comfy import Installation

__all__ = ["Pack", "find_packs", "packs_installation"]


@dataclass(frozen=True)
class Pack:
    """The checkout of a pack."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        """The commit, else the registry's version, else a hash of the Python files."""
        if (self.folder / ".git").exists():
            done = subprocess.run(
                ["git", "-C", str(self.folder), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return done.stdout.strip()
        metadata = self.folder / "pyproject.toml"
        text = metadata.read_text(encoding="utf-8") if metadata.is_file() else ""
        found = re.search(r'^version\s*=\s*"([^"]+)"', text, re.MULTILINE)
        if found:
            return found[1]
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*.py")):
            digest.update(path.read_bytes())
        return f"files {digest.hexdigest()[:10]}"


def find_packs() -> list[Pack]:
    """Return the packs in the folder COMFYUI_PACKS, else in ``~/comfy/packs``; none if the folder is missing."""
    folder = Path(os.environ.get("COMFYUI_PACKS") or Path.home() / "comfy" / "packs")
    if not folder.is_dir():
        return []
    return [Pack(path) for path in sorted(folder.iterdir(), key=lambda path: path.name.lower()) if (path / "__init__.py").is_file()]


def packs_installation(installation: Installation) -> Installation:
    """Return ``installation`` with the Python for packs: COMFYUI_PACKS_PYTHON, else ``~/comfy/packs-venv``, else its own."""
    binary = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    named = os.environ.get("COMFYUI_PACKS_PYTHON")
    usual = Path.home() / "comfy" / "packs-venv" / binary
    if named:
        return Installation(installation.folder, Path(named))
    return Installation(installation.folder, usual) if usual.is_file() else installation
