"""The files of a `DiskStore`: how one arrives, how one is read, and what their errors are called."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from yggdrasill.errors import StorageFailed
from yggdrasill.values.artifacts import unknown_artifact
from yggdrasill.values.memory_store import aligned_memory
from yggdrasill.values.payload import corrupt

__all__ = ["PartialFile", "read_chunks", "read_file", "using"]

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
