"""The model files of this ComfyUI, and a fast fingerprint that distinguishes a file from other weights."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from yggdrasill.remote.model_names import is_model_file, same_path
from yggdrasill.server_ext.comfy import compat

__all__ = ["fingerprint", "fingerprints", "model_files"]

_WINDOWS = 16
_WINDOW = 64 << 10
_MAX_CACHED = 10_000

_fingerprints: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


def model_files() -> dict[str, list[str]]:
    """Return the files in each of ComfyUI's model folders, as ComfyUI spells them, without empty folders."""
    found = {name: [file for file in files if is_model_file(file)] for name, files in compat.model_names().items()}
    return {name: files for name, files in sorted(found.items()) if files}


def fingerprints(files: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return ``{file: {folder: fingerprint}}`` for those of ``files`` that are in a model folder. No other file is opened."""
    wanted = {same_path(file): file for file in files}
    found: dict[str, dict[str, str]] = {}
    for folder, names in model_files().items():
        for name in names:
            file = wanted.get(same_path(name))
            path = compat.model_path(folder, name) if file is not None else None
            if file is not None and path is not None:
                with compat.shielded(f"the model file {name!r} could not be read"):
                    found.setdefault(file, {})[folder] = fingerprint(path)
    return found


def fingerprint(path: Path) -> str:
    """Return the BLAKE3 hash (hex) of the file's size, 8 bytes little-endian, and of 16 windows of 64 KiB evenly spaced over the file.

    A file of many GB is thus read in a moment, and only once while its size and modification time are unchanged. A change of a few bytes
    between two windows is not detected.

    Raises:
        OSError
    """
    from blake3 import blake3

    facts = path.stat()
    key = (str(path), facts.st_size, facts.st_mtime_ns)
    with _lock:
        known = _fingerprints.get(key)
    if known is not None:
        return known
    digest = blake3(facts.st_size.to_bytes(8, "little"))
    step = max(0, facts.st_size - _WINDOW) / (_WINDOWS - 1)
    with path.open("rb") as file:
        for start in dict.fromkeys(int(number * step) for number in range(_WINDOWS)):
            file.seek(start, os.SEEK_SET)
            digest.update(file.read(_WINDOW))
    found = digest.hexdigest()
    with _lock:
        while len(_fingerprints) >= _MAX_CACHED:
            del _fingerprints[next(iter(_fingerprints))]
        _fingerprints[key] = found
    return found
