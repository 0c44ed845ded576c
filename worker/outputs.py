"""Outputs of a workflow: every file and text that its nodes report, of any kind, and the entries of a result."""

from __future__ import annotations

import asyncio
import base64
import json
import mimetypes
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import PayloadTooLarge, StorageFailed
from yggdrasill.remote.comfy_server import saved_files
from yggdrasill.values.files import write_file
from yggdrasill.worker.buckets import Bucket
from yggdrasill.worker.workspace import Workspace

__all__ = ["OutputFile", "ResultWriter", "collect", "json_bytes", "kind_of"]

_KINDS = {
    "image": ".png .jpg .jpeg .webp .gif .bmp .tif .tiff .svg .exr .hdr .avif .apng .jxl",
    "video": ".mp4 .webm .mov .mkv .avi .m4v .mpg .mpeg",
    "audio": ".wav .mp3 .flac .ogg .opus .m4a .aac",
    "3d": ".glb .gltf .obj .ply .stl .fbx .usdz .splat .ksplat .spz",
    "text": ".txt .json .csv .md .srt .vtt .yaml .yml .xml",
    "weights": ".safetensors .latent .ckpt .pt .gguf",
}
_KIND_OF = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}
_TEXT_KEY = re.compile(r"text|string|caption|prompt", re.IGNORECASE)
_MAX_TEXT = 1 << 20
_MAX_INLINE_TEXT = 64 << 10
_OVERHEAD = 700
"""Bytes of an entry beside its content, at most."""


@dataclass(frozen=True)
class OutputFile:
    """A file that a node made. ``name`` is its path below the folder that it was saved in."""

    path: Path
    name: str
    node_id: str | None
    temporary: bool = False
    text: str | None = None

    @property
    def kind(self) -> str:
        """``image``, ``video``, ``audio``, ``3d``, ``text``, ``weights`` or ``file``, by the suffix."""
        return kind_of(self.name)

    @property
    def media_type(self) -> str:
        """The media type, by the suffix."""
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"


def kind_of(name: str) -> str:
    """Return the kind of output that a file name has."""
    return _KIND_OF.get(Path(name).suffix.lower(), "file")


def json_bytes(value: Any) -> int:
    """Return the number of bytes of a value as JSON."""
    return len(json.dumps(value, separators=(",", ":"), default=str).encode("utf-8", "backslashreplace"))


def collect(outputs: Mapping[str, Any], folders: Mapping[str, Path], texts: Path, job: str) -> tuple[list[OutputFile], list[str]]:
    """Return the files that the outputs of a prompt name, and the names of those that do not exist.

    A file is any entry with a ``filename`` in any list, whatever its key: ``images``, ``gifs``, ``audio``, ``3d`` ... Its place is one of
    ``folders`` (output, temp, input); one outside is left out. Texts are written to files in ``texts``. Files in ``temp`` count only if no
    node saved a file.

    Raises:
        StorageFailed: a text cannot be written.
    """
    found: dict[Path, OutputFile] = {}
    missing: list[str] = []
    for saved in saved_files(outputs):
        base = folders.get(saved.folder)
        path = None if base is None else Path(os.path.realpath(base / saved.subfolder / saved.filename))
        if base is None or path is None or not path.is_relative_to(os.path.realpath(base)) or not path.is_file():
            missing.append(saved.filename)
        elif saved.folder != "input":
            name = path.relative_to(os.path.realpath(base)).as_posix()
            found.setdefault(path, OutputFile(path, name, saved.node_id, saved.folder == "temp"))
    for node_id, output in outputs.items():
        for number, text in enumerate(_texts(output)):
            path = texts / f"{job}-{re.sub(r'[^A-Za-z0-9_-]', '_', str(node_id))}-{number}.txt"
            write_file(path, text.encode("utf-8", "replace"))
            found[path] = OutputFile(path, path.name, str(node_id), text=text if len(text) <= _MAX_INLINE_TEXT else None)
    files = list(found.values())
    saved_ones = [file for file in files if not file.temporary]
    return saved_ones or files, missing


def _texts(output: Any) -> list[str]:
    """Return the texts among a node's outputs."""
    if not isinstance(output, Mapping):
        return []
    return [
        item[:_MAX_TEXT]
        for key, items in output.items()
        if _TEXT_KEY.search(str(key)) and isinstance(items, (list, tuple))
        for item in items
        if isinstance(item, str) and item
    ]


class ResultWriter:
    """Makes the result of a job from its files: in a bucket, or as base64 as far as ``limit`` bytes allow.

    ``bucket`` is where files go in the modes gcs and s3, ``spill`` where files go that are too large for base64. ``shared`` says whether
    other workers see the workspace, so that a path in it is a reference that can be followed later.
    """

    def __init__(self, workspace: Workspace, job: str, *, bucket: Bucket | None, spill: Bucket | None, limit: int, shared: bool) -> None:
        self._workspace, self._job, self._limit, self._shared = workspace, job, limit, shared
        self._bucket, self._spill = bucket, spill

    async def entries(self, files: Sequence[OutputFile], used: int = 0) -> list[dict[str, Any]]:
        """Return an entry for each file: ``filename``, ``kind``, ``size``, ``node_id``, and where its content is.

        ``used`` bytes of the limit are taken by the rest of the result. A file that does not fit is put into the spill bucket or referred to by
        its path in the workspace, and has ``spilled: true``.

        Raises:
            PayloadTooLarge (code ``result_too_large``): no way is left for a file, which stays in the workspace. StorageFailed: an upload failed.
        """
        sizes = [await asyncio.to_thread(_size, file) for file in files]
        inline = self._inline(sizes, used) if self._bucket is None else set()
        found: list[dict[str, Any]] = []
        names: set[str] = set()
        for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
            entry: dict[str, Any] = {"filename": Path(file.name).name, "kind": file.kind, "size": size, "media_type": file.media_type}
            entry |= {"node_id": file.node_id} if file.node_id is not None else {}
            entry |= {"text": file.text} if file.text is not None else {}
            bucket = self._bucket or (None if number in inline else self._spill)
            if number in inline:
                entry["base64"] = await asyncio.to_thread(_base64, file)
            elif bucket is not None:
                entry |= await bucket.put(file.path, _unique(f"{self._job}/{file.name}", names), file.media_type)
                entry |= {} if self._bucket is not None else {"spilled": True}
            else:
                entry |= await asyncio.to_thread(self._reference, file, size)
            found.append(entry)
        return found

    async def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return a result that is too large as a reference to a file with its JSON. Raise as `entries`."""
        path = self._workspace.output / "results" / f"{self._job}.json"
        text = json.dumps(result, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
        await asyncio.to_thread(write_file, path, text)
        file = OutputFile(path, f"results/{path.name}", None)
        if self._spill is not None:
            where = await self._spill.put(path, f"{self._job}/{path.name}", "application/json")
        else:
            where = await asyncio.to_thread(self._reference, file, len(text))
        return {"spilled": True, "size": len(text), "media_type": "application/json", **where}

    def _inline(self, sizes: Sequence[int], used: int) -> set[int]:
        """Return the numbers of the files that fit as base64, the smallest first."""
        room, chosen = self._limit - used - _OVERHEAD * len(sizes), set()
        for number in sorted(range(len(sizes)), key=lambda each: sizes[each]):
            room -= (sizes[number] + 2) // 3 * 4
            if room < 0:
                break
            chosen.add(number)
        return chosen

    def _reference(self, file: OutputFile, size: int) -> dict[str, Any]:
        if not self._shared:
            raise PayloadTooLarge(
                f"The output {Path(file.name).name!r} has {size} bytes, and a response may have {self._limit}. It is kept on the worker. Set "
                "output_mode to 'gcs' or 's3', configure a bucket for large results, or use a network volume (WORKSPACE_SHARED).",
                code="result_too_large",
                limit=self._limit,
            )
        path = file.path
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._workspace.root)):
            path = self._workspace.output / "spilled" / self._job / Path(file.name).name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.path, path)
            except OSError as error:
                raise StorageFailed(f"The output {path.name!r} cannot be kept ({error.strerror}).", path=path.name) from error
        return {"path": self._workspace.name(path), "spilled": True}


def _unique(name: str, names: set[str]) -> str:
    stem, dot, suffix = name.rpartition(".")
    candidate, number = name, 2
    while candidate in names:
        candidate = f"{stem}-{number}{dot}{suffix}" if dot else f"{name}-{number}"
        number += 1
    names.add(candidate)
    return candidate


def _size(file: OutputFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError as error:
        raise StorageFailed(
            f"The output {Path(file.name).name!r} is gone ({error.strerror}). Run the job again.", path=file.name
        ) from error


def _base64(file: OutputFile) -> str:
    try:
        return base64.b64encode(file.path.read_bytes()).decode("ascii")
    except OSError as error:
        raise StorageFailed(f"The output {Path(file.name).name!r} cannot be read ({error.strerror}).", path=file.name) from error
