"""Files that a node shows, such as previews it saved: they go along with what is told of the node, and are kept where that is told.

ComfyUI names them as ``{"filename", "subfolder", "type"}``, by a folder of the server that has them.
"""

from __future__ import annotations

import base64
import binascii
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["MAX_BYTES", "keep_files", "read_files"]

MAX_BYTES = 512 << 10
"""Bytes of files that go along with one message."""
_MAX_FILES = 64
_KEYS = frozenset({"filename", "subfolder", "type"})


def read_files(output: Any) -> list[dict[str, str]]:
    """The files that ``output`` names, as ``{"filename", "subfolder", "type", "data": base64}``, as long as they are small."""
    found: list[dict[str, str]] = []
    left = MAX_BYTES
    for item in _named(output):
        path = _path(item)
        size = path.stat().st_size if path is not None and path.is_file() else MAX_BYTES + 1
        if path is not None and size <= left and len(found) < _MAX_FILES:
            left -= size
            found.append({**{key: str(item[key]) for key in _KEYS}, "data": base64.b64encode(path.read_bytes()).decode("ascii")})
    return found


def keep_files(output: Any, files: Any, name: Callable[[str], str]) -> Any:
    """``output`` with files of this server in the place of those named there: ``files``, written into its folder for temporary ones
    as ``name(filename)``. A file that did not come along is left out."""
    folder = Path(importlib.import_module("folder_paths").get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in files if isinstance(files, list) else ():
        here = name(Path(str(entry["filename"])).name)
        try:
            (folder / here).write_bytes(base64.b64decode(str(entry["data"]), validate=True))
        except (OSError, binascii.Error):
            continue
        kept[_key(entry)] = {"filename": here, "subfolder": "", "type": "temp"}
    return _replaced(output, kept)


def _replaced(value: Any, kept: Mapping[tuple[str, ...], dict[str, Any]]) -> Any:
    if isinstance(value, list):
        items = [item for item in value if not (_is_file(item) and _key(item) not in kept)]
        return [_replaced(item, kept) for item in items]
    if _is_file(value):
        return {**value, **kept[_key(value)]}
    return {key: _replaced(item, kept) for key, item in value.items()} if isinstance(value, dict) else value


def _named(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _named(item)
    elif _is_file(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _named(item)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _KEYS


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key)) for key in ("type", "subfolder", "filename"))


def _path(item: Mapping[str, Any]) -> Path | None:
    """Where the file lies; None for one outside of ComfyUI's folders."""
    folder = importlib.import_module("folder_paths").get_directory_by_type(str(item["type"]))
    if folder is None:
        return None
    root = Path(folder).resolve()
    path = (root / str(item["subfolder"]) / str(item["filename"])).resolve()
    return path if path.is_relative_to(root) else None
