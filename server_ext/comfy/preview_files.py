"""Files that a node shows, such as saved previews. They are sent with the message about the node and stored by the receiving server.

ComfyUI names a file as ``{"filename", "subfolder", "type"}``, relative to a folder of the server that has it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yggdrasill.server_ext.comfy import compat

__all__ = ["MAX_BYTES", "MAX_SMALL", "FileParts", "ShownFiles", "read_files", "store_files"]

MAX_SMALL = 256 << 10
"""Total bytes of the files that the message about a node contains itself."""
MAX_BYTES = 64 << 20
"""Total bytes of the files that are sent for one message about a node."""
_PART = 512 << 10
_MAX_FILES = 64
_KEYS = frozenset({"filename", "subfolder", "type"})
_ASSET_IDS = frozenset({"id", "preview_id"})
"""Keys with which ComfyUI names the asset of a file. The ids are those of the server that has the file."""


@dataclass
class ShownFiles:
    """The files of one output.

    An entry of ``small`` has ``{"filename", "subfolder", "type", "data": base64}``, an entry of ``large`` a number
    of ``parts`` in place of the data, and ``left_out`` describes files that are not sent.
    """

    small: list[dict[str, Any]] = field(default_factory=list)
    large: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _paths: list[Path] = field(default_factory=list)

    def parts(self) -> Iterator[dict[str, Any]]:
        """Yield the parts of the large files in order, as ``{"filename", "subfolder", "type", "part", "data": base64}``."""
        for entry, path in zip(self.large, self._paths, strict=True):
            with path.open("rb") as file:
                for number in range(entry["parts"]):
                    yield {**{key: entry[key] for key in _KEYS}, "part": number, "data": _encoded(file.read(_PART))}


def read_files(output: Any) -> ShownFiles:
    """Return the files named in ``output``. Those beyond the limits, or outside ComfyUI's folders, are left out."""
    found, total, inside = ShownFiles(), 0, 0
    for number, item in enumerate(_files_in(output)):
        path, entry = _path(item), {key: str(item[key]) for key in _KEYS}
        size = path.stat().st_size if path is not None and path.is_file() else None
        if path is None or size is None:
            found.left_out.append(f"file {entry['filename']!r}, which does not exist in ComfyUI's folders")
        elif number >= _MAX_FILES or total + size > MAX_BYTES:
            limit = f"{_MAX_FILES} files" if number >= _MAX_FILES else f"{MAX_BYTES >> 20} MiB"
            found.left_out.append(f"file {entry['filename']!r} of {size >> 10} KiB, over the limit of {limit}")
        elif inside + size <= MAX_SMALL:
            total, inside = total + size, inside + size
            found.small.append({**entry, "data": _encoded(path.read_bytes())})
        else:
            total += size
            found.large.append({**entry, "parts": max(1, -(-size // _PART))})
            found._paths.append(path)
    return found


class FileParts:
    """The parts of large files that have arrived, until the message that lists them."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, ...], list[bytes]] = {}
        self._size = 0

    def add(self, part: Mapping[str, Any]) -> None:
        """Add the next part of a file. Parts beyond `MAX_BYTES` are ignored."""
        content = base64.b64decode(str(part["data"]), validate=True)
        self._size += len(content)
        parts = self._parts.setdefault(_key(part), [])
        if self._size <= MAX_BYTES and part["part"] == len(parts):
            parts.append(content)

    def take(self, listed: Any) -> list[dict[str, Any]]:
        """Return the complete files of those that a message lists, with their ``content``, and forget all parts."""
        arrived, self._parts, self._size = self._parts, {}, 0
        entries = [entry for entry in listed if _is_file(entry)] if isinstance(listed, list) else []
        complete = [entry for entry in entries if len(arrived.get(_key(entry), ())) == entry.get("parts")]
        return [{**entry, "content": b"".join(arrived[_key(entry)])} for entry in complete]


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def store_files(output: Any, files: Any, name: Callable[[str], str], prompt_id: str) -> Any:
    """Store ``files`` in this server's temporary folder as ``name(filename)``, and return ``output`` with the stored files in their place.

    A file in ``output`` that is not in ``files`` is removed from it. The ids of assets become those of this server, as
    files of the prompt ``prompt_id``.
    """
    folder = compat.temporary_folder()
    stored: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in files if isinstance(files, list) else ():
        filename = name(Path(str(entry["filename"])).name)
        try:
            content = entry["content"] if "content" in entry else base64.b64decode(str(entry["data"]), validate=True)
            (folder / filename).write_bytes(content)
        except (OSError, binascii.Error):
            continue
        stored[_key(entry)] = {"filename": filename, "subfolder": "", "type": "temp"}
    shown = _replace_files(output, stored)
    with compat.shielded("the files of a remote node could not be registered as assets"):
        return compat.enrich_files(shown, prompt_id)
    return shown


def _replace_files(value: Any, stored: Mapping[tuple[str, ...], dict[str, Any]]) -> Any:
    if isinstance(value, list):
        items = [item for item in value if not (_is_file(item) and _key(item) not in stored)]
        return [_replace_files(item, stored) for item in items]
    if _is_file(value):
        return {key: item for key, item in value.items() if key not in _ASSET_IDS} | stored[_key(value)]
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
