"""Writing files so that a failure, a full disk included, leaves what was there before and nothing beside it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from yggdrasill.errors import StorageFailed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FileSet", "write_file"]


class FileSet:
    """Several files that appear together or not at all: written beside their targets, renamed when all are complete.

    Use as a context manager: leaving it normally renames, leaving it by an exception removes every trace.

    Raises:
        StorageFailed: a file or folder could not be written.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable
        self._pending: list[tuple[Path, Path]] = []
        self._folders: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    def write(self, path: str | Path, data: bytes | memoryview | Iterable[bytes | memoryview]) -> None:
        """Write ``data`` (bytes, or chunks of them) for ``path``; folders are made as needed."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            self._make_folder(target.parent)
            self._pending.append((temporary, target))
            with temporary.open("wb") as file:
                for chunk in (data,) if isinstance(data, (bytes, memoryview)) else data:
                    file.write(chunk)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            self.discard()
            raise _failed(target, error) from error
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Give every file its name."""
        try:
            for temporary, target in self._pending:
                temporary.replace(target)
        except OSError as error:
            self.discard()
            raise _failed(target, error) from error
        self._pending.clear()
        self._folders.clear()

    def discard(self) -> None:
        """Remove what was written so far, and the folders made for it."""
        for temporary, _ in self._pending:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._pending.clear()
        self._folders.clear()

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._folders.append(path)


def write_file(path: str | Path, data: bytes | memoryview | Iterable[bytes | memoryview], *, durable: bool = False) -> None:
    """Write one file whole or not at all.

    Raises:
        StorageFailed: the file could not be written; an older one of that name is unchanged.
    """
    with FileSet(durable=durable) as files:
        files.write(path, data)


def _failed(path: Path, error: OSError) -> StorageFailed:
    reason = error.strerror or str(error)
    return StorageFailed(
        f"cannot write {str(path)!r}: {reason}; what was there before is unchanged. Free space or choose another folder.", path=str(path)
    )
