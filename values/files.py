"""Atomic writing of files: after a failure or a kill, a path names the old content or the new, never a part of it.

A file is written beside its target and renamed over it. ``durable`` writing also flushes the file and the folder that
names it, so that the result survives a power cut. Whole folders: `yggdrasill.values.folders`. A lock is shared by processes through a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from yggdrasill.errors import StorageFailed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "FileLock",
    "FileSet",
    "MadeFolders",
    "failing",
    "link_or_copy",
    "replacing",
    "sync_file",
    "sync_folder",
    "undo",
    "write_chunks",
    "write_file",
]

Data = bytes | memoryview | Iterable[bytes | memoryview]


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; rename it over ``path`` when the block ends normally, else remove it.

    Raises:
        StorageFailed: the file could not be written; an older file at ``path`` is unchanged.
    """
    target = Path(path)
    with failing(target), MadeFolders(target.parent):
        temporary = _beside(target)
        try:
            with temporary.open("wb") as file:
                yield file
                if durable:
                    sync_file(file)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(target.parent)


def write_file(path: str | Path, data: Data, *, durable: bool = False) -> None:
    """Write one file whole or not at all.

    Raises:
        StorageFailed: the file could not be written; an older file at ``path`` is unchanged.
    """
    with replacing(path, durable=durable) as file:
        write_chunks(file, data)


class FileSet:
    """Several files that replace their targets together: all are written beside them first, then renamed.

    Use as a context manager. Leaving it by an exception removes every trace; a rename that fails undoes those before it.
    A process killed between two renames leaves some targets old and some new: where that matters, use `yggdrasill.values.folders.StagedFolder`.

    Raises:
        StorageFailed: a file or folder could not be written; all targets are unchanged.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self._pending: list[tuple[Path, Path]] = []
        self._made = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    def write(self, path: str | Path, data: Data) -> None:
        """Write ``data`` (bytes, or chunks of them) for ``path``; missing folders are made."""
        target = Path(path)
        try:
            with failing(target):
                self._made.enter_context(MadeFolders(target.parent))
                temporary = _beside(target)
                self._pending.append((temporary, target))
                with temporary.open("wb") as file:
                    write_chunks(file, data)
                    if self._durable:
                        sync_file(file)
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Rename every file over its target; undo all of it if one rename fails."""
        done: list[tuple[Path, Path | None]] = []
        try:
            for temporary, target in self._pending:
                with failing(target):
                    backup = _backup(target)
                    done.append((target, backup))
                    temporary.replace(target)
        except BaseException:
            for target, backup in reversed(done):
                with contextlib.suppress(OSError):
                    if backup is not None:
                        backup.replace(target)
                    elif not target.is_dir():
                        target.unlink(missing_ok=True)
            self.discard()
            raise
        for _, backup in done:
            if backup is not None:
                with contextlib.suppress(OSError):
                    backup.unlink()
        if self._durable:
            for folder in {target.parent for _, target in self._pending}:
                with failing(folder):
                    sync_folder(folder)
        self._pending.clear()
        self._made.pop_all()

    def discard(self) -> None:
        """Remove the files written so far and the folders made for them."""
        for temporary, _ in self._pending:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._pending.clear()
        undo(self._made)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk; without effect where the system has no such call."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network and FUSE file systems cannot flush a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


class MadeFolders:
    """The folders missing down to ``folder``, made on entry and removed on exit by an exception if they are empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        missing = []
        folder = self._folder
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            for folder in reversed(self._made):
                with contextlib.suppress(OSError):
                    folder.rmdir()


class _Undone(Exception):
    """Ends an `ExitStack` by an exception."""


def undo(made: contextlib.ExitStack) -> None:
    """Leave the contexts in ``made`` as by an exception."""
    with contextlib.suppress(_Undone), made:
        raise _Undone


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``source`` a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")


def _backup(target: Path) -> Path | None:
    """Another name for the file at ``target``, None if no file is there."""
    if not target.is_file():
        return None
    backup = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.backup")
    link_or_copy(target, backup)
    return backup


def write_chunks(file: BinaryIO, data: Data) -> None:
    """Write bytes, or chunks of them."""
    file.writelines((data,) if isinstance(data, (bytes, memoryview)) else data)


def sync_file(file: BinaryIO) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def failing(path: Path) -> Iterator[None]:
    """Turn an OSError about ``path`` into `StorageFailed`."""
    try:
        yield
    except StorageFailed:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageFailed(
            f"cannot write {str(path)!r}: {reason}; what was there before is unchanged. Free space or choose another folder.",
            path=str(path),
        ) from error


_LOCK_POLL_S = 0.01


class FileLock:
    """An exclusive lock on ``path``, between processes and between objects of one process; the operating system releases it at exit.

    A context manager that waits for the lock, for ``timeout`` seconds if it is given. The file is created with ``mode`` and remains.
    Not re-entrant: use one object per thread.
    """

    def __init__(self, path: Path, *, timeout: float | None = None, mode: int = 0o666) -> None:
        self._path, self._timeout, self._mode = path, timeout, mode
        self._file: int | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def acquire(self, *, wait: bool = True) -> bool:
        """Acquire the lock; without ``wait`` return False if it is held.

        Raises OSError if the file cannot be opened, and `StorageFailed` if the lock is held for ``timeout`` seconds.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, self._mode)
        try:
            acquired = self._poll(file, self._timeout) if wait and self._timeout is not None else _lock(file, wait=wait)
        except BaseException:
            os.close(file)
            raise
        if acquired:
            self._file = file
        else:
            os.close(file)
        return acquired

    def _poll(self, file: int, timeout: float) -> bool:
        end, pause = time.monotonic() + timeout, _LOCK_POLL_S / 20
        while not _lock(file, wait=False):
            if time.monotonic() >= end:
                raise StorageFailed(
                    f"Another process has held the lock {str(self._path)!r} for {timeout:g} seconds. Nothing was stored. "
                    "Resume or stop that process, or choose another folder.",
                    path=str(self._path),
                )
            time.sleep(pause)
            pause = min(2 * pause, _LOCK_POLL_S)
        return True

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int, *, wait: bool) -> bool:
        while True:
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            except PermissionError:
                if not wait:
                    return False
                time.sleep(_LOCK_POLL_S)
            else:
                return True

else:
    import fcntl

    def _lock(file: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
