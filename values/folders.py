"""Atomic replacement of whole folders, for saves of several files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from yggdrasill.values.files import Data, MadeFolders, failing, link_or_copy, sync_file, sync_folder, undo, write_chunks

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StagedFolder", "recover_folder"]

_STAGED, _OLD, _MOVES = ".part", ".old", ".moves"
_DIGITS = 12


class StagedFolder:
    """A folder written beside ``target`` that replaces it in one step.

    ``owned`` are the files of the old folder that the new one replaces, as paths relative to it with ``/``. Every other
    file of the old folder is kept: single files are linked into the new folder, folders without owned files move into it.

    Use as a context manager: `write` files, and leave it normally to commit. The exchange is one system call on Linux;
    where the system has none, the old folder is renamed away first, and `recover_folder` undoes a kill in between.

    Raises:
        StorageFailed: a file could not be written, or the folder not be replaced; the old one is unchanged.
    """

    def __init__(self, target: str | Path, *, owned: Iterable[str] = ()) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = self.target
        self._owned = frozenset(owned)
        self._made = contextlib.ExitStack()
        self._moves: Path | None = None
        self._lock: int | None = None
        self._removable = True

    def __enter__(self) -> Self:
        with failing(self.target):
            if self.target.exists() and not self.target.is_dir():
                raise OSError(errno.ENOTDIR, "a file has that name")
            if os.path.ismount(self.target):
                raise OSError(errno.EBUSY, "a mount point cannot be replaced; choose a folder in it")
            recover_folder(self.target)
            self._made.enter_context(MadeFolders(self.target.parent))
            try:
                while self._lock is None:
                    self.path = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex[:_DIGITS]}{_STAGED}")
                    self.path.mkdir()
                    self._lock = _lock_folder(self.path, new=True)
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with failing(self.target):
                    self._commit()
        finally:
            self._discard()

    def write(self, name: str, data: Data) -> None:
        """Write ``data`` for the file ``name`` (relative, with ``/``) and flush it to the disk."""
        path = self.path / name
        with failing(self.target / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                write_chunks(file, data)
                sync_file(file)

    def rename(self, name: str, new: str) -> None:
        """Give a file that was written another name, or drop it if a file has that name."""
        with failing(self.target / new):
            if (self.path / new).exists():
                (self.path / name).unlink()
            else:
                (self.path / name).rename(self.path / new)

    def _commit(self) -> None:
        folders: list[str] = []
        if self.target.exists():
            self._carry_over(Path(), folders)
        if folders:
            self._moves = self.path.with_suffix(_MOVES)
            with self._moves.open("wb") as file:
                file.write("\n".join(folders).encode("utf-8", "surrogateescape"))
                sync_file(file)
        for folder, _, _ in os.walk(self.path, topdown=False):
            sync_folder(Path(folder))
        inside = _working_folder_in(self.target)
        old = _replace_folder(self.path, self.target)
        self._made.pop_all()
        sync_folder(self.target.parent)
        if old is not None:
            self.path, self._removable = old, False
            self._move_others(Path())
            self._removable = True
        if inside:
            os.chdir(self.target)

    def _carry_over(self, folder: Path, folders: list[str]) -> None:
        """Link the files of others into the new folder; note the folders that hold nothing but such files."""
        for entry in list(os.scandir(self.target / folder)):
            relative = folder / entry.name
            name, new = relative.as_posix(), self.path / relative
            is_folder = entry.is_dir(follow_symlinks=False)
            if new.exists() and new.is_dir() != is_folder:
                raise OSError(errno.EEXIST, f"{name!r} is a {'folder' if is_folder else 'file'}; rename or remove it")
            if is_folder:
                if new.exists() or self._owns_in(name):
                    self._carry_over(relative, folders)
                else:
                    folders.append(name)
            elif name not in self._owned and not new.exists():
                new.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(Path(entry.path), new)

    def _move_others(self, folder: Path) -> None:
        """After the exchange: move what others wrote to the old folder, files that appeared since included."""
        for entry in list(os.scandir(self.path / folder)):
            relative = folder / entry.name
            name = relative.as_posix()
            if entry.is_dir(follow_symlinks=False) and self._owns_in(name):
                self._move_others(relative)
            elif name not in self._owned:
                _move_missing(Path(entry.path), self.target / relative)

    def _owns_in(self, name: str) -> bool:
        return any(owned.startswith(name + "/") for owned in self._owned)

    def _discard(self) -> None:
        if self._removable and self.path != self.target:
            shutil.rmtree(self.path, ignore_errors=True)
            if self._moves is not None:
                self._moves.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        undo(self._made)


def recover_folder(target: str | Path) -> None:
    """Finish or undo what a killed `StagedFolder` left beside ``target``; return at once if nothing is left.

    A folder that was renamed away gets its name back; folders of others that did not move yet move to ``target``. What a
    running process still writes is left alone. Without permission to rename, nothing changes.
    """
    place = Path(os.path.realpath(target))
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{{_DIGITS}}}\.(part|old|moves)")
    try:
        # folders first: a list of moves goes with its folder
        leftovers = sorted(
            (path for path in place.parent.iterdir() if pattern.fullmatch(path.name)), key=lambda path: path.suffix == _MOVES
        )
    except OSError:
        return
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            _recover(leftover, place)


def _recover(leftover: Path, place: Path) -> None:
    if leftover.suffix == _MOVES:
        if not any(leftover.with_suffix(suffix).exists() for suffix in (_STAGED, _OLD)):
            leftover.unlink(missing_ok=True)
        return
    lock = _lock_folder(leftover)
    if lock is None:
        return
    try:
        if leftover.suffix == _OLD and not place.exists():
            leftover.rename(place)
            return
        moves = leftover.with_suffix(_MOVES)
        if moves.exists() and place.exists():
            # A staged folder never has the folders in this list: those that are found are the old folder's.
            for name in moves.read_bytes().decode("utf-8", "surrogateescape").splitlines():
                if (leftover / name).is_dir():
                    _move_missing(leftover / name, place / name)
        shutil.rmtree(leftover)
        moves.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _replace_folder(staged: Path, target: Path) -> Path | None:
    """Give ``staged`` the name ``target`` and return where the old folder is now, None if there was none."""
    if not target.exists():
        staged.rename(target)
        return None
    if _exchange(staged, target):
        return staged
    old = staged.with_suffix(_OLD)
    target.rename(old)
    try:
        staged.rename(target)
    except BaseException:
        old.rename(target)
        raise
    return old


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    current, exchange = -100, 2
    if rename(current, os.fsencode(first), current, os.fsencode(second), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _move_missing(source: Path, target: Path) -> None:
    """Move ``source`` to ``target``; where both are folders, move what the target lacks."""
    with contextlib.suppress(FileNotFoundError):
        if not os.path.lexists(target):
            source.rename(target)
        elif source.is_dir() and not source.is_symlink() and target.is_dir():
            for entry in list(source.iterdir()):
                _move_missing(entry, target / entry.name)


def _working_folder_in(folder: Path) -> bool:
    try:
        return Path.cwd() == folder
    except OSError:
        return False


def _lock_folder(folder: Path, *, new: bool = False) -> int | None:
    """A handle that holds the folder's lock until it is closed, None if another process holds it."""
    if sys.platform == "win32":
        idle = new or time.time() - folder.stat().st_mtime > 86400
        return os.open(os.devnull, os.O_RDONLY) if idle else None
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        # a file system without locks
        return os.open(os.devnull, os.O_RDONLY) if new else None
    if not folder.exists():
        os.close(handle)
        return None
    return handle
