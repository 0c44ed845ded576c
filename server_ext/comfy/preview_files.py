"""Files that a node shows, such as saved previews. They are sent with the message about the node and stored by the receiving server.

ComfyUI names a file as ``{"filename", "subfolder", "type"}``, relative to a folder of the server that has it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from yggdrasill.server_ext.comfy import compat

__all__ = ["MAX_BYTES", "read_files", "store_files"]

MAX_BYTES = 512 << 10
"""Total bytes of the files sent with one message."""
_MAX_FILES = 64
_KEYS = frozenset({"filename", "subfolder", "type"})
_ASSET_KEYS = frozenset({"id", "preview_id"})
"""Ids of a file in the asset database of the server that has it."""


def read_files(output: Any) -> list[dict[str, str]]:
    """Return the files named in ``output`` as ``{"filename", "subfolder", "type", "data": base64}``. Files beyond the limits are left out."""
    found: list[dict[str, str]] = []
    remaining = MAX_BYTES
    for item in _files_in(output):
        path = _path(item)
        size = path.stat().st_size if path is not None and path.is_file() else MAX_BYTES + 1
        if path is not None and size <= remaining and len(found) < _MAX_FILES:
            remaining -= size
            found.append({**{key: str(item[key]) for key in _KEYS}, "data": base64.b64encode(path.read_bytes()).decode("ascii")})
    return found


def store_files(output: Any, files: Any, name: Callable[[str], str]) -> Any:
    """Store ``files`` in this server's temporary folder as ``name(filename)``, and return ``output`` with the stored files in their place.

    A file in ``output`` that is not in ``files`` is removed from it, and the asset ids of the other server are removed from the rest.
    """
    folder = compat.temporary_folder()
    stored: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in files if isinstance(files, list) else ():
        filename = name(Path(str(entry["filename"])).name)
        try:
            (folder / filename).write_bytes(base64.b64decode(str(entry["data"]), validate=True))
        except (OSError, binascii.Error):
            continue
        stored[_key(entry)] = {"filename": filename, "subfolder": "", "type": "temp"}
    return _replace_files(output, stored)


def _replace_files(value: Any, stored: Mapping[tuple[str, ...], dict[str, Any]]) -> Any:
    if isinstance(value, list):
        items = [item for item in value if not (_is_file(item) and _key(item) not in stored)]
        return [_replace_files(item, stored) for item in items]
    if _is_file(value):
        return {**{name: item for name, item in value.items() if name not in _ASSET_KEYS}, **stored[_key(value)]}
    return {key: _replace_files(item, stored) for key, item in value.items()} if isinstance(value, dict) else value


def _files_in(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _files_in(item)
    elif _is_file(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _files_in(item)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _KEYS


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key)) for key in ("type", "subfolder", "filename"))


def _path(item: Mapping[str, Any]) -> Path | None:
    """Return the path of a file, or None if it is outside ComfyUI's folders."""
    folder = compat.named_folder(str(item["type"]))
    if folder is None:
        return None
    root = folder.resolve()
    path = (root / str(item["subfolder"]) / str(item["filename"])).resolve()
    return path if path.is_relative_to(root) else None
