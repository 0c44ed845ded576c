"""A store in a folder that several processes or machines share, without locks: on a local disk or a network file system."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from yggdrasill.values.files import write_file
from yggdrasill.values.stores.base import MAX_ARTIFACT_BYTES, Writer, check_hash, over_quota
from yggdrasill.values.stores.disk_files import INDEX_FILE, storage_errors
from yggdrasill.values.stores.folder import GRACE_S, FolderStore
from yggdrasill.values.stores.lease_files import REFRESH_S, LeaseFiles, old_pins

__all__ = ["SharedFolderStore"]

_MANY_OBJECTS = 1000
#: The bytes in use are counted again after this time, and after this share of the quota was written by this process.
_COUNT_S = 60.0
_COUNT_SHARE = 32
#: Other processes take leases and write while room is made.
_ATTEMPTS = 5
#: A removal takes half of this time at most, so that an announcement older than this is one of a process that was killed.
_REMOVAL_S = 20.0
_POLL_S = 0.002
_LIST = ".list"


class SharedFolderStore(FolderStore):
    """A `FolderStore` whose folder other processes use at the same time. It assumes no locks, so it works on network file systems.

    A file appears by a rename that does not replace. A lease is a file; an artifact is evicted only if no live lease names it. An eviction
    is announced by a file before the leases are read, and `lease` waits for announced evictions of its artifacts, so that what exists
    when `lease` returns remains. The bytes in use are counted from time to time, so the processes may together exceed
    ``quota_bytes`` for a short time, by what they write meanwhile. In a folder that belongs to an `EmbeddedStore`, this store evicts nothing.

    Raises:
        StorageFailed: the folder cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        quota_bytes: int | None = None,
        max_artifact_bytes: int = MAX_ARTIFACT_BYTES,
        durable: bool = False,
        min_charge: int = 0,
    ) -> None:
        super().__init__(
            folder,
            quota_bytes=quota_bytes,
            max_artifact_bytes=max_artifact_bytes,
            durable=durable,
            min_charge=min_charge,
        )
        self._removals = self.folder / "removals"
        self._lease_files = LeaseFiles(self.folder / "leases", self._name)
        self._reserved = 0
        self._used = 0
        self._written = 0
        self._counted_at = float("-inf")
        self._room_lock = threading.Lock()
        self._closed = threading.Event()
        self._refreshing: threading.Thread | None = None
        with storage_errors(self.folder):
            # The counter of an earlier version, which this one does not update.
            (self.folder / "used").unlink(missing_ok=True)
        self._end = weakref.finalize(self, _close, self._closed, self._lease_files)

    def close(self) -> None:
        """Close the store; remaining leases last for `GRACE_S` more, so that a successor can take them again."""
        self._end()

    @property
    def used_bytes(self) -> int:
        with storage_errors(self.folder):
            return sum(self._charge(status.st_size) for _, status in self._scan())

    def delete(self, hash: str) -> bool:  # noqa: A002
        status = self._status(check_hash(hash))
        with storage_errors(self.folder):
            return status is not None and bool(self._remove([hash], set()))

    def lease(self, owner: str, hashes: Iterable[str], seconds: float | None = None) -> None:
        wanted = list(dict.fromkeys(map(check_hash, hashes)))
        if wanted:
            with storage_errors(self.folder):
                self._lease_files.add(owner, wanted, seconds)
                self._await_removals(wanted)
            self._keep_refreshing()

    def release(self, owner: str) -> None:
        self._lease_files.release(owner)

    def _keep_refreshing(self) -> None:
        with self._lock:
            if self._refreshing is None:
                arguments = self._lease_files, self._closed
                self._refreshing = threading.Thread(target=_refresh, args=arguments, name="yggdrasill-leases", daemon=True)
                self._refreshing.start()

    # -- room ---------------------------------------------------------------------------------------------------

    def _reserve(self, nbytes: int) -> None:
        with self._room_lock, storage_errors(self.folder):
            if self.quota_bytes is not None:
                if self._evicts:
                    self._make_room(nbytes, self.quota_bytes)
                elif nbytes > self.quota_bytes:
                    raise over_quota(nbytes, self.quota_bytes, 0, 0)
            self._reserved += nbytes

    @property
    def _evicts(self) -> bool:
        """Whether the folder has no embedded store, which would evict instead."""
        return not (self.folder / INDEX_FILE).exists()

    def _make_room(self, nbytes: int, quota: int) -> None:
        counted_lately = time.monotonic() - self._counted_at < _COUNT_S and self._written < quota // _COUNT_SHARE
        if counted_lately and self._used + self._reserved + nbytes <= quota:
            return
        for _ in range(_ATTEMPTS):
            objects = sorted((status.st_mtime_ns, digest, self._charge(status.st_size)) for digest, status in self._scan())
            self._used, self._written, self._counted_at = sum(charge for _, _, charge in objects), 0, time.monotonic()
            if self._used + self._reserved + nbytes <= quota:
                return
            leased = self._leased()
            free = [(digest, charge) for _, digest, charge in objects if digest not in leased]
            leased_bytes = self._used - sum(charge for _, charge in free)
            if leased_bytes + self._reserved + nbytes > quota:
                raise over_quota(nbytes, quota, leased_bytes, len(objects) - len(free), self._reserved)
            # With many artifacts, evict some more, so that not every write has to read the folder.
            goal = quota - nbytes - self._reserved
            if len(objects) > _MANY_OBJECTS:
                goal -= min(quota // 16, goal - leased_bytes)
            self._used -= self._evict(free, self._used - goal, leased)
            if self._used + self._reserved + nbytes <= quota:
                return
        raise over_quota(nbytes, quota, self._used, len(objects), self._reserved)

    def _evict(self, free: list[tuple[str, int]], wanted: int, leased: set[str]) -> int:
        """Evict the first of ``free``, at least ``wanted`` bytes if they have as many. Return the bytes evicted."""
        chosen: dict[str, int] = {}
        freed = 0
        for digest, charge in free:
            if freed >= wanted:
                break
            chosen[digest] = charge
            freed += charge
        return sum(chosen[digest] for digest in self._remove(chosen, leased))

    def _remove(self, digests: Iterable[str], leased: set[str]) -> list[str]:
        """Remove artifacts without a lease, and return their hashes.

        They are announced first, and the leases are read after that: a lease that is not seen then was written after the announcement,
        and its writer waits for the end of the removal (`_await_removals`).
        """
        chosen = [digest for digest in digests if digest not in leased]
        if not chosen:
            return []
        self._removals.mkdir(exist_ok=True)
        announced = self._removals / f"{self._name}-{uuid.uuid4().hex}{_LIST}"
        write_file(announced, "\n".join(chosen).encode())
        end = time.monotonic() + _REMOVAL_S / 2
        try:
            leased = self._leased()
            return [digest for digest in chosen if digest not in leased and time.monotonic() < end and self._unlink(digest)]
        finally:
            announced.unlink(missing_ok=True)

    def _unlink(self, digest: str) -> bool:
        # Windows does not remove a file that is mapped; on a shared folder, another user's file may not be removable.
        try:
            self._path_of(digest).unlink(missing_ok=True)
        except PermissionError:
            return False
        self._intact.pop(digest, None)
        return True

    def _await_removals(self, digests: Iterable[str]) -> None:
        """Return when no process removes any of these artifacts. A process that was killed in a removal counts for `_REMOVAL_S`."""
        wanted = set(digests)
        end = time.monotonic() + _REMOVAL_S
        while time.monotonic() < end and any(wanted & names for names in self._removing()):
            time.sleep(_POLL_S)

    def _removing(self) -> Iterator[set[str]]:
        """Yield the hashes of each announced removal. Delete the announcements of processes that were killed."""
        try:
            paths = [path for path in self._removals.iterdir() if path.suffix == _LIST]
        except FileNotFoundError:
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if self._lease_files.now() - path.stat().st_mtime > _REMOVAL_S:
                    path.unlink()
                else:
                    yield set(path.read_text(encoding="ascii", errors="replace").split())

    def _leased(self) -> set[str]:
        """Return every leased hash, also of processes of an earlier version, whose pins are files."""
        leased = self._lease_files.leased()
        pins = self.folder / "pins"
        if pins.exists():
            recent = time.time() - GRACE_S
            with contextlib.suppress(FileNotFoundError):
                if any(path.stat().st_mtime > recent for path in pins.iterdir()):
                    leased |= old_pins(pins)
        return leased

    def _unreserve(self, nbytes: int) -> None:
        with self._room_lock:
            self._reserved -= nbytes

    def _touch(self, digest: str) -> None:
        # On a shared folder, another user's file may be readable without permission to set its time.
        with contextlib.suppress(OSError):
            now = time.time_ns()
            os.utime(self._path_of(digest), ns=(now, now))

    def _stored(self, digest: str, nbytes: int, reserved: int, writer: Writer) -> None:
        with self._room_lock:
            self._reserved -= reserved
            self._used += self._charge(nbytes)
            self._written += self._charge(nbytes)
        self._touch(digest)

    def _found(self, digest: str, nbytes: int) -> None:
        """Do nothing: the folder is the only record."""

    def _gone(self, digest: str) -> None:
        """Count again at the next write."""
        self._counted_at = float("-inf")


def _refresh(leases: LeaseFiles, closed: threading.Event) -> None:
    while not closed.wait(REFRESH_S):
        with contextlib.suppress(OSError):
            leases.refresh()


def _close(closed: threading.Event, leases: LeaseFiles) -> None:
    closed.set()
    leases.close()
