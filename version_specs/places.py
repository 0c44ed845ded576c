"""Folders of a machine: the volume of a pod or a serverless worker, the cache, ComfyUI and its folder of models.

A network volume is mounted at ``/workspace`` on pods and at ``/runpod-volume`` on serverless workers, so the same file
has two paths. `on_this_machine` returns the one that exists.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from yggdrasill.version_specs.model import VersionSpec

__all__ = ["CACHE_VARIABLE", "VOLUMES", "cache_root", "comfy_home", "models_folder", "on_this_machine", "volume", "volume_path"]

CACHE_VARIABLE = "COMFY_CACHE_ROOT"
VOLUMES = (Path("/runpod-volume"), Path("/workspace"))
"""Mount points of a network volume, the first that exists is used."""


def volume(volumes: tuple[Path, ...] = VOLUMES) -> Path | None:
    """Return the mount point of this machine's network volume, or None."""
    return next((folder for folder in volumes if folder.is_dir()), None)


def on_this_machine(path: str | Path, volumes: tuple[Path, ...] = VOLUMES) -> Path:
    """Return a path, below another mount point if it exists there and not where it is named, or if its mount point does not exist."""
    given = Path(path).expanduser()
    mount = next((folder for folder in volumes if given.is_relative_to(folder)), None)
    if mount is None or given.exists():
        return given
    others = [folder / given.relative_to(mount) for folder in volumes if folder != mount and folder.is_dir()]
    return next((other for other in others if other.exists()), given if mount.is_dir() or not others else others[0])


def cache_root(environment: Mapping[str, str] = os.environ, volumes: tuple[Path, ...] = VOLUMES) -> Path:
    """Return ``COMFY_CACHE_ROOT``, else ``comfy-cache`` on the network volume, else ``~/.cache/yggdrasill``."""
    named = environment.get(CACHE_VARIABLE)
    if named:
        return on_this_machine(named, volumes)
    mount = volume(volumes)
    return Path("~/.cache/yggdrasill").expanduser() if mount is None else mount / "comfy-cache"


def comfy_home(environment: Mapping[str, str] = os.environ, volumes: tuple[Path, ...] = VOLUMES) -> Path:
    """Return ``COMFY_HOME``, by default ``/workspace/ComfyUI``, on this machine's volume."""
    return on_this_machine(environment.get("COMFY_HOME") or "/workspace/ComfyUI", volumes)


def models_folder(
    spec: VersionSpec,
    home: Path,
    named: str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
    volumes: tuple[Path, ...] = VOLUMES,
) -> Path:
    """Return the folder of models: ``named``, else the spec's ``models_dir``, else ``MODELS_DIR``, else ``models`` in ComfyUI's folder.

    A relative path is relative to ComfyUI's folder.
    """
    chosen = named or spec.x.models_dir or environment.get("MODELS_DIR") or "models"
    return home / on_this_machine(chosen, volumes)


def volume_path(path: Path, volumes: tuple[Path, ...] = VOLUMES) -> str:
    """Return a name for a file that is the same wherever its volume is mounted."""
    mount = next((folder for folder in volumes if path.is_relative_to(folder)), None)
    return str(path) if mount is None else f"volume:{PurePosixPath(path.relative_to(mount).as_posix())}"
