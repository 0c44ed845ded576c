"""A lock that processes share through a file; the operating system gives it back when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FileLock"]

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
