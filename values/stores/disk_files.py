"""File access of the stores in folders: partial files, reading, error translation, and a lock that processes share through a file."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Generator, Iterator
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

__all__ = ["FileLock", "PartialFile", "hash_file", "place_new", "read_chunks", "read_file", "storage_errors"]

_MAP_FROM = 256 << 10
_LOCK_POLL_S = 0.01
#: A buffer that stays in the processor's cache, and is large enough for a parallel hash.
_HASH_BUFFER_BYTES = 1 << 20
#: A file system without hard links, or one that restricts them.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class PartialFile:
    """A file that is being written and becomes an artifact once complete; ``nbytes`` counts the bytes written."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self.nbytes = 0
        self._durable = durable
        with storage_errors(path):
            self._file = FileIO(path, "wb")

    def write(self, view: memoryview) -> None:
        """Append ``view``; raises `StorageFailed`."""
        with storage_errors(self.path):
            while view.nbytes:
                written = self._file.write(view)
                self.nbytes += written
                view = view[written:]

    def close(self) -> None:
        """Close the file; raises OSError."""
        if self._durable and not self._file.closed:
            os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it was renamed to its artifact."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def place_new(partial: Path, target: Path) -> bool:
    """Rename ``partial`` to ``target`` unless that exists; return whether it was renamed. Raises OSError.

    Of several processes that place one file, one succeeds. A file system without hard links replaces an existing file instead.
    """
    if sys.platform == "win32":
        try:
            partial.rename(target)
        except FileExistsError:
            return False
        return True
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            return False
        partial.replace(target)
        return True
    with contextlib.suppress(OSError):
        partial.unlink()
    return True


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as `StorageFailed` for ``path``."""
    try:
        yield
    except StorageFailed:
        raise
    except OSError as error:
        raise StorageFailed(
            f"Cannot store artifacts at {str(path)!r}: {error.strerror or error}. Nothing was stored. Free space, set a quota, or choose another folder.",
            path=str(path),
        ) from error


@contextlib.contextmanager
def _read_errors(path: Path, hash: str) -> Iterator[None]:  # noqa: A002
    try:
        yield
    except FileNotFoundError as error:
        raise unknown_artifact(hash) from error
    except OSError as error:
        raise StorageFailed(
            f"Cannot read artifact {hash} at {str(path)!r}: {error.strerror or error}. Check the disk.", path=str(path)
        ) from error


def hash_file(path: Path) -> str:
    """Return the BLAKE3 of a file's content; raises OSError."""
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(min(_HASH_BUFFER_BYTES, max(1, path.stat().st_size))))
    with FileIO(path, "rb") as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.hexdigest()


def read_chunks(path: Path, hash: str, start: int, stop: int, size: int) -> Iterator[memoryview]:  # noqa: A002
    """Return an iterator over the bytes of the file from ``start`` to ``stop``, each chunk in new memory.

    The file is opened at once: raises `UnknownArtifact` or `StorageFailed` when called.
    """
    with _read_errors(path, hash):
        file = FileIO(path, "rb")
    chunks = _chunks_of(file, path, hash, start, stop, size)
    next(chunks)  # into the block that closes the file, also if no chunk is ever read
    return chunks


def _chunks_of(file: FileIO, path: Path, hash: str, start: int, stop: int, size: int) -> Generator[memoryview, None, None]:  # noqa: A002
    with file, _read_errors(path, hash):
        yield memoryview(b"")
        file.seek(start)
        while start < stop:
            data = file.read(min(size, stop - start))
            if not data:
                raise corrupt(f"artifact {hash} is shorter than its recorded length")
            start += len(data)
            yield memoryview(data)


def read_file(path: Path, nbytes: int, hash: str) -> memoryview:  # noqa: A002
    """Return all bytes of the file, writable: a copy, or for a large file a copy-on-write map."""
    if nbytes >= _MAP_FROM:
        return _mapped(path, nbytes, hash)
    memory = aligned_memory(nbytes)
    with _read_errors(path, hash), FileIO(path, "rb") as file:
        if file.readinto(memory) != nbytes:
            raise corrupt(f"artifact {hash} is shorter than its recorded length")
    return memory


def _mapped(path: Path, nbytes: int, hash: str) -> memoryview:  # noqa: A002
    """Return a copy-on-write map made by torch, because one made by Python keeps a file descriptor open while it lives."""
    import torch

    try:
        return torch.from_file(str(path), shared=False, size=nbytes, dtype=torch.uint8).numpy().data
    except RuntimeError as error:
        if not path.exists():
            raise unknown_artifact(hash) from error
        raise StorageFailed(f"Cannot map artifact {hash} at {str(path)!r}: {error}. Check the disk.", path=str(path)) from error


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
