"""Leases as files, for folders that several processes or machines share: no locks, and one clock, that of the file system."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

from yggdrasill.values.files import write_file
from yggdrasill.values.stores.folder import GRACE_S

__all__ = ["REFRESH_S", "LeaseFiles", "old_pins"]

REFRESH_S = 60.0
"""Seconds between two signs of life of a process with leases. Its leases count for `GRACE_S` seconds after the last one."""

_ALIVE = "alive"
_LEASE = ".lease"
_HASH_LENGTH = 64


class LeaseFiles:
    """The leases of this process in ``folder``, and a view of those of all processes. Raises OSError as the file system does.

    Each process has a subfolder ``name`` with one file for each lease: a line of JSON, ``{"owner", "seconds"}``, then the hashes. A lease
    with ``seconds`` ends that long after its file was written, and `GRACE_S` later at the latest for clocks that differ; one without
    lasts as long as the file ``alive`` of its process is refreshed. Nothing is created before the first lease.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._own = folder, folder / name
        self._lock = threading.Lock()
        self._files: dict[str, list[Path]] = {}
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._files)

    def add(self, owner: str, hashes: Iterable[str], seconds: float | None) -> None:
        """Record a lease."""
        with self._lock:
            if not self._own.exists():
                self._own.mkdir(parents=True)
            self._refresh()
            path = self._own / f"{next(self._numbers)}{_LEASE}"
            head = json.dumps({"owner": owner, "seconds": seconds})
            write_file(path, "\n".join([head, *hashes, ""]).encode())
            self._files.setdefault(owner, []).append(path)

    def release(self, owner: str) -> None:
        """End all leases of an owner."""
        with self._lock:
            for path in self._files.pop(owner, ()):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Give a sign of life."""
        with self._lock:
            if self._files:
                self._refresh()

    def close(self) -> None:
        """Remove the subfolder if it has no lease; remaining leases last for `GRACE_S` more."""
        with self._lock:
            if not self._files:
                shutil.rmtree(self._own, ignore_errors=True)

    def leased(self) -> set[str]:
        """Return every hash with a live lease, of this and other processes. Remove what has expired."""
        hashes: set[str] = set()
        if not self._folder.exists():
            return hashes
        now = self.now()
        for process in list(self._folder.iterdir()):
            try:
                alive = now - (process / _ALIVE).stat().st_mtime <= GRACE_S
                files = [path for path in process.iterdir() if path.suffix == _LEASE]
            except (FileNotFoundError, NotADirectoryError):
                continue
            live = [path for path in files if self._add_live(path, now, alive=alive, hashes=hashes)]
            if not alive and not live:
                shutil.rmtree(process, ignore_errors=True)
        return hashes

    @staticmethod
    def _add_live(path: Path, now: float, *, alive: bool, hashes: set[str]) -> bool:
        try:
            written = path.stat().st_mtime
            head, *digests = path.read_text(encoding="utf-8").splitlines()
            seconds = json.loads(head).get("seconds")
        except FileNotFoundError:
            return False
        except (OSError, ValueError, AttributeError):
            # Not readable yet, or cut short by a full disk.
            return alive
        live = alive if seconds is None else now - written <= seconds + (GRACE_S if alive else 0.0)
        if live:
            hashes.update(digests)
        elif not alive or seconds is not None:
            path.unlink(missing_ok=True)
        return live

    def _refresh(self) -> None:
        alive = self._own / _ALIVE
        try:
            os.utime(alive)
        except FileNotFoundError:
            self._own.mkdir(parents=True, exist_ok=True)
            alive.touch()

    def now(self) -> float:
        """Return the present time of the file system, which may be on another machine."""
        probe = self._folder / f".{self._own.name}.clock"
        probe.touch()
        return probe.stat().st_mtime


def old_pins(folder: Path) -> set[str]:
    """Return the hashes in a folder ``pins`` of an earlier version: names of empty files, and lines of lists."""
    hashes: set[str] = set()
    for process in folder.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in process.iterdir():
                if path.suffix == ".list":
                    hashes.update(path.read_text(encoding="ascii", errors="replace").split())
                else:
                    hashes.add(path.name)
    return {name for name in hashes if len(name) == _HASH_LENGTH}
