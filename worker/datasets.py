"""Training data that a client uploads: files as base64 or by URL, with captions, checked before anything changes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, LimitExceeded, StorageFailed, YggdrasillError
from yggdrasill.worker.failures import code_of
from yggdrasill.worker.fetching import Fetcher
from yggdrasill.worker.workspace import Workspace, plain_name

__all__ = ["decode_base64", "upload_training_data"]

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_VIDEOS = frozenset({".mp4", ".mov", ".webm", ".mkv", ".avi"})
_MAX_FILES = 5000
_MAX_PIXELS = 1 << 28
_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w=.-]+)*;base64,")
_MAX_CAPTION = 10_000


def decode_base64(text: object, what: str) -> bytes:
    """Return the bytes of base64 text or of a data URI.

    Raises:
        InvalidArgument (code ``invalid_base64``)
    """
    if isinstance(text, str):
        found = _DATA_URI.match(text[:200])
        try:
            return base64.b64decode("".join(text[found.end() if found else 0 :].split()), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise InvalidArgument(f"{what} must be base64 or a data URI with base64.", code="invalid_base64")


@dataclass
class _Summary:
    images: int = 0
    videos: int = 0
    captions: int = 0
    total_size: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"images": self.images, "videos": self.videos, "captions": self.captions, "total_size": self.total_size}
        if self.sizes:
            by_area = sorted(self.sizes, key=lambda size: size[0] * size[1])
            found |= {"smallest": list(by_area[0]), "largest": list(by_area[-1])}
        return {**found, "without_caption": self.without_caption, "rejected": self.rejected}


async def upload_training_data(
    workspace: Workspace,
    fetcher: Fetcher,
    dataset: str,
    files: Sequence[Mapping[str, Any]],
    urls: Sequence[Mapping[str, Any]],
    captions: Mapping[str, str],
    *,
    replace: bool = False,
) -> dict[str, Any]:
    """Add files to a data set and return ``{"dataset", "path", "files", "validation"}``.

    ``files`` have ``name``, ``data`` and perhaps ``caption``; ``urls`` have ``url`` and perhaps ``name`` and ``caption``; ``captions`` are by file
    name, with or without its suffix. A file that is not an image or a video is left out and listed with its reason under ``rejected``. With
    ``replace`` the data set is replaced. Everything is written beside the data set first: after an error it is as it was.

    Raises:
        InvalidArgument: an invalid name, no file, or no valid file (code ``no_training_data``). LimitExceeded, StorageFailed
    """
    name = plain_name(dataset, "dataset name")
    if not files and not urls:
        raise InvalidArgument("upload_training_data needs 'files' (with base64 data) or 'urls'.", code="no_training_data")
    if len(files) + len(urls) > _MAX_FILES:
        raise LimitExceeded(f"A request may have at most {_MAX_FILES} files. Send several requests.", limit=_MAX_FILES)
    target = workspace.resolve(name, below="training_data", must_exist=False)
    staged = workspace.training_data / f".upload-{uuid.uuid4().hex}"
    summary = _Summary()
    try:
        staged.mkdir()
        notes = {str(key): _caption(text) for key, text in captions.items()}
        await _receive(staged, fetcher, [*files, *urls], notes, summary)
        await asyncio.to_thread(_validate, staged, notes, summary)
        if not summary.images and not summary.videos:
            raise InvalidArgument(
                "No file of the request is an image or a video that can be read.", code="no_training_data", errors=summary.rejected[:50]
            )
        names = await asyncio.to_thread(_install, staged, target, replace)
    except OSError as error:
        if isinstance(error, YggdrasillError):
            raise
        raise StorageFailed(f"Cannot write data set {name!r}: {error.strerror or error}. It is unchanged.", path=name) from error
    finally:
        await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)
    return {"dataset": name, "path": workspace.name(target), "files": names, "validation": summary.facts()}


async def _receive(staged: Path, fetcher: Fetcher, items: Sequence[Mapping[str, Any]], notes: dict[str, str], summary: _Summary) -> None:
    """Write the files of a request into ``staged``, and add their captions to ``notes``."""
    for number, item in enumerate(items):
        label = str(item.get("name") or (_name_of_url(str(item["url"])) if "url" in item else "") or f"file-{number:04}")
        written: Path | None = None
        try:
            label = plain_name(label)
            if Path(label).suffix.lower() not in _IMAGES | _VIDEOS | {".txt"}:
                raise InvalidArgument("The suffix is not that of an image, a video or a caption (.txt).", code="unsupported_format")
            path = staged / label
            if path.exists():
                raise InvalidArgument("Another file of the request has this name.", code="duplicate_name")
            written = path
            if "url" in item:
                with path.open("wb") as file:
                    await fetcher.write(str(item["url"]), file, what=f"the url of {label!r}")
            else:
                data = await asyncio.to_thread(decode_base64, item.get("data"), f"'data' of {label!r}")
                await asyncio.to_thread(path.write_bytes, data)
            if item.get("caption") is not None:
                notes[label] = _caption(item["caption"])
        except YggdrasillError as error:
            if isinstance(error, StorageFailed):
                raise
            if written is not None:
                written.unlink(missing_ok=True)
            summary.rejected.append({"name": label[:200], "reason": error.message, "code": code_of(error)})


def _validate(staged: Path, notes: Mapping[str, str], summary: _Summary) -> None:
    """Remove files that cannot be read, write the captions, and complete the summary."""
    for path in sorted(staged.iterdir()):
        suffix = path.suffix.lower()
        if suffix == ".txt":
            if not _is_text(path):
                path.unlink()
                summary.rejected.append({"name": path.name, "reason": "The caption is not UTF-8 text.", "code": "invalid_caption"})
            continue
        reason = _problem(path, suffix, summary)
        if reason is not None:
            path.unlink()
            summary.rejected.append({"name": path.name, "reason": reason, "code": "unreadable_file"})
    for path in sorted(staged.iterdir()):
        if path.suffix.lower() == ".txt":
            continue
        summary.total_size += path.stat().st_size
        text = notes.get(path.name, notes.get(path.stem))
        if text is not None:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
        if path.with_suffix(".txt").exists():
            summary.captions += 1
        else:
            summary.without_caption.append(path.name)


def _problem(path: Path, suffix: str, summary: _Summary) -> str | None:
    """Return why a file cannot be used, or None after counting it."""
    if suffix in _VIDEOS:
        if path.stat().st_size < 16:
            return "The video is empty."
        summary.videos += 1
        return None
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                size = image.size
                if size[0] * size[1] > _MAX_PIXELS:
                    return f"The image has more than {_MAX_PIXELS} pixels."
                image.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, MemoryError):
        return "The image cannot be read."
    summary.images += 1
    summary.sizes.append(size)
    return None


def _install(staged: Path, target: Path, replace: bool) -> list[str]:
    """Move the staged files into the data set and return its files."""
    if replace and target.exists():
        old = target.with_name(f".old-{uuid.uuid4().hex}")
        target.rename(old)
        try:
            staged.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    elif not target.exists():
        staged.rename(target)
    else:
        for path in sorted(staged.iterdir()):
            path.replace(target / path.name)
    return sorted(path.name for path in target.iterdir() if path.is_file() and not path.name.startswith("."))


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _caption(text: object) -> str:
    if not isinstance(text, str) or len(text) > _MAX_CAPTION:
        raise InvalidArgument(f"A caption must be text of at most {_MAX_CAPTION} characters.", code="invalid_caption")
    return text


def _name_of_url(url: str) -> str:
    return url.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
