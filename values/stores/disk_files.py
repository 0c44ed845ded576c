"""The files of a `DiskStore`: how one arrives, how one is read, and what their errors are called.

A lock that processes share through a file; the operating system gives it back when its holder dies.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from yggdrasill.errors import StorageFailed
from yggdrasill.values.payload import corrupt
from yggdrasill.values.stores.base import unknown_artifact
from yggdrasill.values.stores.memory import aligned_memory

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FileLock", "PartialFile", "read_chunks", "read_file", "using"]

_MAP_FROM = 256 << 10


class PartialFile:
    """A file on its way in; ``nbytes`` counts what was written."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self.nbytes = 0
        self._durable = durable
        with using(path):
            self._file = FileIO(path, "wb")

    def write(self, view: memoryview) -> None:
        """Append ``view``; raises `StorageFailed`."""
        with using(self.path):
            while view.nbytes:
                written = self._file.write(view)
                self.nbytes += written
                view = view[written:]

    def close(self) -> None:
        """End writing; raises OSError."""
        if self._durable and not self._file.closed:
            os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file unless it has been adopted."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def using(path: Path) -> Iterator[None]:
    """Turn what goes wrong with ``path`` into `StorageFailed`."""
    try:
        yield
    except StorageFailed:
        raise
    except OSError as error:
        raise StorageFailed(
            f"cannot store artifacts at {str(path)!r}: {error.strerror or error}; nothing was kept. Free space, set a quota, or choose another folder",
            path=str(path),
        ) from error


@contextlib.contextmanager
def _reading(path: Path, hash: str) -> Iterator[FileIO]:  # noqa: A002
    try:
        with FileIO(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise unknown_artifact(hash) from error
    except OSError as error:
        raise StorageFailed(
            f"cannot read artifact {hash} at {str(path)!r}: {error.strerror or error}; check the disk", path=str(path)
        ) from error


def read_chunks(path: Path, hash: str, start: int, stop: int, size: int) -> Iterator[memoryview]:  # noqa: A002
    """The bytes of the file from ``start`` to ``stop``, each chunk in memory of its own."""
    with _reading(path, hash) as file:
        file.seek(start)
        while start < stop:
            data = file.read(min(size, stop - start))
            if not data:
                raise corrupt(f"artifact {hash} is shorter than it was")
            start += len(data)
            yield memoryview(data)


def read_file(path: Path, nbytes: int, hash: str) -> memoryview:  # noqa: A002
    """All bytes of the file, writable: a copy, or from some size on a copy-on-write map."""
    if nbytes >= _MAP_FROM:
        return _mapped(path, nbytes, hash)
    memory = aligned_memory(nbytes)
    with _reading(path, hash) as file:
        if file.readinto(memory) != nbytes:
            raise corrupt(f"artifact {hash} is shorter than it was")
    return memory


def _mapped(path: Path, nbytes: int, hash: str) -> memoryview:  # noqa: A002
    """A copy-on-write map; torch's, because Python's own holds a file descriptor for as long as the map lives."""
    import torch

    try:
        return torch.from_file(str(path), shared=False, size=nbytes, dtype=torch.uint8).numpy().data
    except RuntimeError as error:
        if not path.exists():
            raise unknown_artifact(hash) from error
        raise StorageFailed(f"cannot map artifact {hash} at {str(path)!r}: {error}; check the disk", path=str(path)) from error


_PATIENCE_S = 0.01


class FileLock:
    """Excludes every other holder of the lock on ``path``, in this process and others; the file is made and stays.

    A context manager that waits for the lock. One object holds it once: give each thread its own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; without ``wait`` return False if another holds it. Raises OSError if the file cannot be opened."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            taken = _lock(file, wait=wait)
        except BaseException:
            os.close(file)
            raise
        if taken:
            self._file = file
        else:
            os.close(file)
        return taken

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
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
                time.sleep(_PATIENCE_S)
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
