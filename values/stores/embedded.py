"""The store of one process: files in a folder, and an index in SQLite that this process opens alone."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from yggdrasill.errors import StorageFailed
from yggdrasill.values.stores.base import MAX_ARTIFACT_BYTES, ArtifactStat, Writer, check_hash, over_quota
from yggdrasill.values.stores.disk_files import Candidate, Index, storage_errors
from yggdrasill.values.stores.folder import GRACE_S, FolderStore
from yggdrasill.values.stores.lease_files import LeaseFiles, old_pins

__all__ = ["EmbeddedStore"]

_LOG = logging.getLogger("yggdrasill.values")
#: Files that are removed, and rows that are written, while the lock is held once.
_CHUNK = 64
_ADOPT_CHUNK = 500
_CANDIDATES = 512
_MAINTAIN_S = 5.0
_MAX_TOUCHED = 10_000
#: With a quota from this size on, a sixteenth of it, at most 1 GiB, is kept free in the background.
_AHEAD_FROM = 64 << 20
_MAX_AHEAD = 1 << 30
#: Files of stores of earlier versions.
_OLD_FILES = ("used", "lock")


class EmbeddedStore(FolderStore):
    """A `FolderStore` that belongs to this process; callers on the same machine may add files to it and read them.

    The index has the bytes in use, last uses, leases and writers, so that room is made without reading the folder. Files that another
    process put into the folder are taken into the index after the start, or when they are requested. The leases of same-machine
    callers, which are files, count too. A folder of an earlier version is taken over.

    Raises:
        StorageFailed: the folder cannot be used, or another process has it open.
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
        with storage_errors(self.folder):
            self._index = Index(self.folder)
            self._caller_leases = LeaseFiles(self.folder / "leases", self._name)
        self._reserved = 0
        self._touched: dict[str, int] = {}
        self._last_ns = 0
        self._can_free = True
        #: Called once, in the writing thread, for each write that the leases leave no room for; it may end leases.
        self.on_full: Callable[[], None] | None = None
        self._lease_counts: Counter[str] = Counter()
        # The end of each lease in time since the epoch, None for the life of the process.
        self._leases: dict[str, list[tuple[list[str], float | None]]] = {}
        try:
            for owner, hashes, end in self._index.leases(time.time() + GRACE_S):
                self._count_lease(owner, hashes, end)
            with storage_errors(self.folder):
                self._take_over_old_pins()
            self._used = self._index.used_bytes()
            if self._index.is_new:
                with storage_errors(self.folder):
                    self._adopt_files(threading.Event())
        except BaseException:
            self._index.close()
            raise
        self._wake, stopped = threading.Event(), threading.Event()
        thread = threading.Thread(target=_maintain, args=(weakref.ref(self), self._wake, stopped), name="yggdrasill-artifacts", daemon=True)
        self._end = weakref.finalize(self, _close, stopped, self._wake, self._index, self._lock)
        thread.start()
        self._thread = thread

    def close(self) -> None:
        """Close the index; leases without an end last for `GRACE_S` more, so that a successor can take them again."""
        if self._end.alive:
            with contextlib.suppress(StorageFailed):
                self._flush_uses()
            self._end()
            if threading.current_thread() is not self._thread:
                self._thread.join(10.0)

    @property
    def used_bytes(self) -> int:
        return self._used

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are reserved for unfinished writes and uploads."""
        return self._reserved

    def stat(self, hash: str) -> ArtifactStat | None:  # noqa: A002
        status = self._find(check_hash(hash))
        if status is None:
            return None
        with self._lock:
            created, writer = self._index.facts(hash) or (status.st_mtime, Writer())
        return ArtifactStat(hash, status.st_size, created, writer)

    def delete(self, hash: str) -> bool:  # noqa: A002
        path = self._path_of(hash)
        with self._lock, storage_errors(self.folder):
            self._end_leases()
            if self._lease_counts[hash] or not path.exists():
                return False
            path.unlink()
            self._intact.pop(hash, None)
            self._used -= self._index.remove([hash])
        return True

    def lease(self, owner: str, hashes: Iterable[str], seconds: float | None = None) -> None:
        wanted = list(dict.fromkeys(map(check_hash, hashes)))
        end = None if seconds is None else time.time() + seconds
        with self._lock:
            if end is None:
                known = {digest for digests, ends in self._leases.get(owner, ()) if ends is None for digest in digests}
                wanted = [digest for digest in wanted if digest not in known]
            if wanted:
                self._index.lease(owner, wanted, end)
                self._count_lease(owner, wanted, end)

    def release(self, owner: str) -> None:
        with self._lock:
            found = self._leases.pop(owner, ())
            for hashes, _ in found:
                self._uncount(hashes)
            if found:
                self._index.release(owner)

    # -- leases -------------------------------------------------------------------------------------------------

    def lease_owners(self) -> list[str]:
        with self._lock:
            return list(self._leases)

    def _count_lease(self, owner: str, hashes: list[str], end: float | None) -> None:
        self._leases.setdefault(owner, []).append((hashes, end))
        self._lease_counts.update(hashes)

    def _uncount(self, hashes: list[str]) -> None:
        for digest in hashes:
            self._lease_counts[digest] -= 1
            if not self._lease_counts[digest]:
                del self._lease_counts[digest]

    def _end_leases(self) -> None:
        """End the leases whose time has passed. Call under the lock."""
        now = time.time()
        for owner, found in list(self._leases.items()):
            live = [lease for lease in found if lease[1] is None or lease[1] > now]
            if len(live) == len(found):
                continue
            for hashes, end in found:
                if end is not None and end <= now:
                    self._uncount(hashes)
            if live:
                self._leases[owner] = live
            else:
                del self._leases[owner]

    def _take_over_old_pins(self) -> None:
        """Turn the pins of stores of an earlier version into leases, and remove their files."""
        for name in _OLD_FILES:
            (self.folder / name).unlink(missing_ok=True)
        folder = self.folder / "pins"
        if not folder.exists():
            return
        hashes = sorted(old_pins(folder))
        if hashes:
            end = time.time() + GRACE_S
            self._index.lease("pins of an earlier version", hashes, end)
            self._count_lease("pins of an earlier version", hashes, end)
        shutil.rmtree(folder, ignore_errors=True)

    # -- room ---------------------------------------------------------------------------------------------------

    def _reserve(self, nbytes: int) -> None:
        on_full = self.on_full
        while True:
            with self._lock:
                lacking = self._lacking(nbytes)
                if lacking <= 0:
                    self._reserved += nbytes
                    return
            try:
                victims = self._victims(lacking, nbytes)
            except StorageFailed:
                if on_full is None:
                    raise
                on_full()
                on_full = None
            else:
                self._evict(victims)

    def _unreserve(self, nbytes: int) -> None:
        if nbytes:
            with self._lock:
                self._reserved -= nbytes

    def _lacking(self, nbytes: int) -> int:
        return 0 if self.quota_bytes is None else self._used + self._reserved + nbytes - self.quota_bytes

    def _victims(self, lacking: int, nbytes: int) -> list[str]:
        """Return the least recently used artifacts of at least ``lacking`` bytes; raise `StorageFailed` if the leases leave fewer."""
        found, total, protected = self._least_used(lacking)
        if total < lacking:
            with self._lock:
                if self._lacking(nbytes) <= 0:
                    return []
                used, reserved, quota = self._used, self._reserved, self.quota_bytes or 0
            raise over_quota(nbytes, quota, used - total, protected, reserved)
        return found

    def _least_used(self, lacking: int) -> tuple[list[str], int, int]:
        """Return hashes of evictable artifacts, the sum of their charges, and the number of leased artifacts that were passed over."""
        self._flush_uses()
        with storage_errors(self.folder):
            of_callers = self._caller_leases.leased()
        found: list[str] = []
        total = protected = 0
        last: Candidate | None = None
        while total < lacking:
            with self._lock:
                self._end_leases()
                rows = self._index.least_used(last, _CANDIDATES)
                free = [row for row in rows if row[1] not in self._lease_counts and row[1] not in of_callers]
            if not rows:
                break
            last, protected = rows[-1], protected + len(rows) - len(free)
            for _, digest, charge in free:
                if total >= lacking:
                    break
                found.append(digest)
                total += charge
        return found, total, protected

    def _evict(self, digests: list[str]) -> None:
        """Remove artifacts, except those that were leased or used since they were chosen."""
        for start in range(0, len(digests), _CHUNK):
            with self._lock, storage_errors(self.folder):
                chosen = [
                    digest for digest in digests[start : start + _CHUNK] if digest not in self._lease_counts and digest not in self._touched
                ]
                removed = []
                for digest in chosen:
                    # Windows does not delete a file that is mapped; another one is evicted in its place.
                    with contextlib.suppress(PermissionError):
                        self._path_of(digest).unlink(missing_ok=True)
                        self._intact.pop(digest, None)
                        removed.append(digest)
                if removed:
                    self._used -= self._index.remove(removed)
                for digest in set(chosen).difference(removed):
                    self._touched[digest] = self._now_ns()

    # -- the index ----------------------------------------------------------------------------------------------

    def _touch(self, digest: str) -> None:
        with self._lock:
            self._touched[digest] = self._now_ns()
        if len(self._touched) > _MAX_TOUCHED:
            self._wake.set()

    def _now_ns(self) -> int:
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        return self._last_ns

    def _stored(self, digest: str, nbytes: int, reserved: int, writer: Writer) -> None:
        with self._lock:
            self._reserved -= reserved
            if self._index.add(digest, nbytes, self._charge(nbytes), self._now_ns(), writer):
                self._used += self._charge(nbytes)
        if self._lacking(self._ahead) > 0 and self._can_free:
            self._wake.set()

    def _found(self, digest: str, nbytes: int) -> None:
        with self._lock:
            if self._index.add(digest, nbytes, self._charge(nbytes), self._now_ns(), Writer()):
                self._used += self._charge(nbytes)

    def _gone(self, digest: str) -> None:
        with self._lock:
            # A writer may have stored it again.
            if not self._path_of(digest).exists():
                self._used -= self._index.remove([digest])

    def _flush_uses(self) -> None:
        while True:
            with self._lock:
                chunk = dict(list(self._touched.items())[:_ADOPT_CHUNK])
                if not chunk:
                    return
                self._index.touch(chunk)
                for digest in chunk:
                    del self._touched[digest]

    # -- background ---------------------------------------------------------------------------------------------

    @property
    def _ahead(self) -> int:
        """Bytes that the background keeps free."""
        quota = self.quota_bytes or 0
        return min(quota // 16, _MAX_AHEAD) if quota >= _AHEAD_FROM else 0

    def _adopt_files(self, stopped: threading.Event) -> None:
        """Take files into the index that it lacks, and drop entries without a file."""
        files: dict[str, int] = {}
        for digest, status in self._scan():
            files[digest] = status.st_size
            if stopped.is_set():
                return
        last: Candidate | None = None
        known: set[str] = set()
        while not stopped.is_set():
            with self._lock:
                rows = self._index.least_used(last, _ADOPT_CHUNK)
            if not rows:
                break
            last = rows[-1]
            known.update(row[1] for row in rows)
        for digest in known.difference(files):
            self._gone(digest)
        unknown = [digest for digest in files if digest not in known and len(digest) == len(self.store_id) * 2]
        for start in range(0, len(unknown), _ADOPT_CHUNK):
            if stopped.is_set():
                return
            with self._lock:
                for digest in unknown[start : start + _ADOPT_CHUNK]:
                    present = self._status(digest)
                    if present is None:
                        continue
                    charge = self._charge(present.st_size)
                    if self._index.add(digest, present.st_size, charge, present.st_mtime_ns, Writer()):
                        self._used += charge

    def _maintain(self) -> None:
        """Write the last uses, and make room ahead of need."""
        self._flush_uses()
        lacking = self._lacking(self._ahead)
        if lacking > 0:
            found, total, _ = self._least_used(lacking)
            # If leases leave too little, look again after some seconds instead of after every write.
            self._can_free = total >= lacking
            self._evict(found)
        else:
            self._can_free = True


def _maintain(store: weakref.ref[EmbeddedStore], wake: threading.Event, stopped: threading.Event) -> None:
    """Maintain a store until it is closed or no longer used."""
    adopted = False
    while True:
        found = store()
        if found is None or stopped.is_set():
            return
        try:
            if not adopted:
                found._adopt_files(stopped)
                adopted = True
            if not stopped.is_set():
                found._maintain()
        except (StorageFailed, OSError) as error:
            if not stopped.is_set():
                _LOG.warning("The artifact folder cannot be maintained: %s", error)
        del found
        wake.wait(_MAINTAIN_S)
        wake.clear()


def _close(stopped: threading.Event, wake: threading.Event, index: Index, lock: threading.Lock) -> None:
    stopped.set()
    wake.set()
    with lock:
        index.close()
