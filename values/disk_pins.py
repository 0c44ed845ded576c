"""Who keeps which artifacts of a shared folder: a folder for each open store, in it an empty file for each hash it pins."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from pathlib import Path

from yggdrasill.values.file_lock import FileLock

__all__ = ["GRACE_S", "PinFolder"]

GRACE_S = 600.0
"""Seconds that the pins of a process outlive it, so that one that was killed can come back and pin again."""

_LOCK = "lock"
_LEFT = "left"


class PinFolder:
    """The pins of one open store, and a view of those of all others on the same ``folder``.

    An open store holds a lock while it lives, so a dead one is known without clocks or process ids. Everything here but `remove` and
    `close` is called under the lock of the store's folder. Raises OSError as the file system does.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder
        self._own = folder / self.name
        self._own.mkdir(parents=True)
        self._life = FileLock(self._own / _LOCK)
        self._life.acquire()

    def add(self, digest: str) -> None:
        """Pin ``digest``."""
        (self._own / digest).touch()

    def remove(self, digest: str) -> None:
        """Unpin ``digest``."""
        with contextlib.suppress(OSError):
            (self._own / digest).unlink(missing_ok=True)

    def close(self) -> None:
        """End; pins that are left hold for `GRACE_S` more."""
        self._life.release()
        with contextlib.suppress(OSError):
            if {path.name for path in self._own.iterdir()} == {_LOCK}:
                shutil.rmtree(self._own)

    def is_alive(self, name: str) -> bool:
        """Whether the store that called itself ``name`` is open."""
        if name == self.name:
            return True
        path = self._folder / name / _LOCK
        if not path.exists():
            return False
        probe = FileLock(path)
        try:
            free = probe.acquire(wait=False)
        except FileNotFoundError:
            return False
        probe.release()
        return not free

    def pinned(self) -> set[str]:
        """Every pinned hash; forgets processes that died longer than `GRACE_S` ago."""
        hashes: set[str] = set()
        for place in self._folder.iterdir():
            try:
                names = {path.name for path in place.iterdir()}
            except FileNotFoundError:
                continue
            pins = names - {_LOCK, _LEFT}
            if not self.is_alive(place.name) and (not pins or self._is_over(place, known=_LEFT in names)):
                shutil.rmtree(place, ignore_errors=True)
            else:
                hashes |= pins
        return hashes

    @staticmethod
    def _is_over(place: Path, *, known: bool) -> bool:
        left = place / _LEFT
        if not known:
            left.touch()
        return time.time() - left.stat().st_mtime > GRACE_S
