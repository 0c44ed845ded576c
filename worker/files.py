"""Files of the workspace as results: lists, whole files and pieces of them, and zip archives that any worker can build again."""

from __future__ import annotations

import base64
import hashlib
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, LimitExceeded, MissingFile, StorageFailed
from yggdrasill.values.files import replacing
from yggdrasill.worker.workspace import Workspace

__all__ = ["MAX_FILES", "build_archive", "files_below", "list_files", "read_piece"]

MAX_FILES = 10_000
"""The most files that one list or one archive has."""
_ARCHIVES = ".archives"
_CHUNK = 1 << 20
_ARCHIVE_SECONDS = 86_400.0
_EARLIEST = (1980, 1, 1, 0, 0, 0)


def files_below(folder: Path, *, recursive: bool = True) -> Iterator[Path]:
    """Yield the regular files in a folder in the order of their names. Links and hidden files are left out."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        elif recursive and entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))


def list_files(workspace: Workspace, path: str = ".", *, recursive: bool = True, limit: int = 1000) -> dict[str, Any]:
    """Return ``{"files": [{"path", "size", "modified"}], "total_size", "truncated"}`` of a folder or a file of the workspace.

    Raises:
        AccessDenied, MissingFile, InvalidArgument: as `Workspace.resolve`.
    """
    place = workspace.resolve(path)
    found: list[dict[str, Any]] = []
    truncated = False
    for file in files_below(place, recursive=recursive) if place.is_dir() else [place]:
        if len(found) >= min(limit, MAX_FILES):
            truncated = True
            break
        facts = file.stat()
        found.append({"path": workspace.name(file), "size": facts.st_size, "modified": round(facts.st_mtime, 3)})
    return {"path": workspace.name(place), "files": found, "total_size": sum(entry["size"] for entry in found), "truncated": truncated}


def read_piece(path: Path, name: str, *, offset: int = 0, length: int, expected: str | None = None) -> dict[str, Any]:
    """Return one piece of a file as base64: ``{"path", "size", "version", "offset", "length", "base64", "next_offset"}``.

    ``next_offset`` is null after the last piece. ``version`` changes when the file changes; with ``expected`` a changed file is refused,
    so that the pieces of two versions are never put together.

    Raises:
        InvalidArgument: an offset behind the end, a folder, or another version (code ``file_changed``). StorageFailed
    """
    if not path.is_file():
        raise InvalidArgument(f"{name!r} is not a file. Use 'bulk_download' for a folder.", code="not_a_file")
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            version = hashlib.sha256(f"{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ino}".encode()).hexdigest()[:16]
            if expected is not None and expected != version:
                raise InvalidArgument(f"{name!r} has changed since its first piece. Begin again at offset 0.", code="file_changed")
            if not 0 <= offset <= facts.st_size or (offset == facts.st_size and offset > 0):
                raise InvalidArgument(
                    f"offset must be from 0 to {max(0, facts.st_size - 1)} for {name!r}, got {offset}.", code="invalid_offset"
                )
            file.seek(offset)
            data = file.read(length)
    except InvalidArgument:
        raise
    except OSError as error:
        raise StorageFailed(f"Cannot read {name!r}: {error.strerror or error}.", path=name) from error
    end = offset + len(data)
    return {
        "path": name,
        "size": facts.st_size,
        "version": version,
        "offset": offset,
        "length": len(data),
        "base64": base64.b64encode(data).decode("ascii"),
        "next_offset": end if end < facts.st_size else None,
    }


def build_archive(workspace: Workspace, paths: Sequence[str], *, limit: int) -> Path:
    """Return a zip archive of files and folders of the workspace. Equal files give the same bytes, so any worker can build it again.

    It is in a hidden folder of the output and is removed after a day.

    Raises:
        LimitExceeded: more than `MAX_FILES` files, or more than ``limit`` bytes. MissingFile: no files. AccessDenied, StorageFailed
    """
    files: dict[str, Path] = {}
    for path in paths:
        place = workspace.resolve(path)
        for file in files_below(place) if place.is_dir() else [place]:
            files[workspace.name(file)] = file
            if len(files) > MAX_FILES:
                raise LimitExceeded(f"The archive would have more than {MAX_FILES} files. Name fewer folders.", limit=MAX_FILES)
    if not files:
        raise MissingFile("There are no files at these paths. The request 'list_files' lists the files.", code="unknown_file")
    facts = {name: file.stat() for name, file in sorted(files.items())}
    total = sum(each.st_size for each in facts.values())
    if total > limit:
        raise LimitExceeded(f"The files have {total} bytes, more than the limit of {limit}. Name fewer files.", limit=limit)
    digest = hashlib.sha256("\n".join(f"{name}\0{each.st_size}\0{each.st_mtime_ns}" for name, each in facts.items()).encode())
    target = workspace.output / _ARCHIVES / f"{digest.hexdigest()[:32]}.zip"
    _remove_old(target.parent)
    if not target.is_file():
        _write_archive(target, files, {name: each.st_mtime for name, each in facts.items()})
    return target


def _write_archive(target: Path, files: dict[str, Path], modified: dict[str, float]) -> None:
    try:
        with replacing(target, durable=False) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in sorted(files):
                moment = max(_EARLIEST, time.gmtime(modified[name])[:6])
                entry = zipfile.ZipInfo(name, moment)
                entry.external_attr = 0o644 << 16
                with files[name].open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
                    while chunk := source.read(_CHUNK):
                        sink.write(chunk)
    except OSError as error:
        raise StorageFailed(
            f"Cannot write the archive: {error.strerror or 'the disk is full'}. Nothing was changed.", path="archive"
        ) from error


def _remove_old(folder: Path) -> None:
    """Remove archives that were built more than a day ago."""
    for path in folder.glob("*.zip"):
        try:
            if time.time() - path.stat().st_mtime > _ARCHIVE_SECONDS:
                path.unlink(missing_ok=True)
        except OSError:
            continue
