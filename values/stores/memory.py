"""A store in the memory of this process, for calls, tests, and endpoints without an artifact folder."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from yggdrasill.errors import StorageFailed
from yggdrasill.values.payload import ALIGNMENT, blake3_hex
from yggdrasill.values.stores.base import (
    CHUNK_BYTES,
    MAX_ARTIFACT_BYTES,
    ArtifactStat,
    ArtifactWriter,
    Data,
    Reservation,
    StagingStore,
    Writer,
    check_hash,
    check_size,
    checked_digest,
    current_writer,
    over_quota,
    span_of,
    unknown_artifact,
)

__all__ = ["MemoryStore", "aligned_memory"]

_FIRST_BYTES = 1 << 16


class MemoryStore(StagingStore):
    """A `LocalStore` in memory; besides copies it can `borrow` a tensor's memory for the duration of a call."""

    def __init__(self, *, quota_bytes: int | None = None, max_artifact_bytes: int = MAX_ARTIFACT_BYTES) -> None:
        self.store_id = uuid.uuid4().hex
        self.quota_bytes = quota_bytes
        self.max_artifact_bytes = max_artifact_bytes
        self._lock = threading.RLock()
        self._used = 0
        # Least recently used first.
        self._kept: OrderedDict[str, memoryview] = OrderedDict()
        self._borrowed: dict[str, dict[str, memoryview]] = {}
        self._reserved = 0
        # The end of each lease in monotonic time, by owner and hash.
        self._leases: dict[str, dict[str, float]] = {}
        self._writers: dict[str, tuple[float, Writer]] = {}
        # Copies of borrowed bytes that the remaining leases need; removed with the last of these.
        self._copies: set[str] = set()

    def has(self, hash: str) -> bool:  # noqa: A002
        check_hash(hash)
        with self._lock:
            return hash in self._kept or hash in self._borrowed

    def stat(self, hash: str) -> ArtifactStat | None:  # noqa: A002
        check_hash(hash)
        with self._lock:
            view = self._kept[hash] if hash in self._kept else next(iter(self._borrowed.get(hash, {}).values()), None)
            created, writer = self._writers.get(hash, (0.0, Writer()))
        return None if view is None else ArtifactStat(hash, view.nbytes, created, writer)

    def missing(self, hashes: Iterable[str]) -> list[str]:
        with self._lock:
            return [hash for hash in dict.fromkeys(hashes) if self._find(hash) is None]  # noqa: A001

    def nbytes(self, hash: str) -> int:  # noqa: A002
        return self.read(hash).nbytes

    def put(self, data: Data, *, hash: str | None = None, verify: bool = True, writer: Writer | None = None) -> str:  # noqa: A002
        view = memoryview(data).cast("B")
        check_size(view.nbytes, self.max_artifact_bytes)
        digest = checked_digest(view, hash, verify=verify)
        with self._lock:
            if digest in self._kept:
                self._copies.discard(digest)
                self._kept.move_to_end(digest)
                return digest
            self._make_room(view.nbytes)
        memory = aligned_memory(view.nbytes)
        memory[:] = view
        self._keep(digest, memory, writer)
        return digest

    def borrow(self, data: memoryview, *, owner: str, hash: str | None = None) -> str:  # noqa: A002
        """Serve ``data`` without a copy until ``release(owner)``, and return its hash; a given ``hash`` is trusted.

        The memory must not change until then. If another owner has leased the artifact by then, the store keeps a copy. Borrowed
        bytes do not count against the quota.
        """
        view = data.cast("B").toreadonly()
        check_size(view.nbytes, self.max_artifact_bytes)
        digest = blake3_hex(view) if hash is None else check_hash(hash)
        with self._lock:
            self._leases.setdefault(owner, {})[digest] = math.inf
            self._borrowed.setdefault(digest, {})[owner] = view
        return digest

    def pop(self, hash: str) -> memoryview:  # noqa: A002
        """Remove the artifact and return its bytes, writable and without a copy; borrowed or leased bytes stay, and are returned as by `read`.

        Raises `UnknownArtifact`.
        """
        with self._lock:
            view = self.read(hash)
            if hash in self._borrowed or self._is_leased(hash):
                return view
            return self._remove(hash)

    def writer(self, expected: str | None = None, nbytes: int | None = None, writer: Writer | None = None) -> ArtifactWriter:
        opened = _MemoryWriter(self, writer, expected=expected, nbytes=nbytes)
        with self._lock:
            if nbytes is not None and expected not in self._kept:
                self._make_room(nbytes)
        return opened

    def reserve(self, nbytes: int) -> Reservation:
        with self._lock:
            self._make_room(nbytes)
            self._reserved += nbytes
        return Reservation(nbytes, self._unreserve)

    def adopt(self, path: Path, hash: str, reservation: Reservation, writer: Writer | None = None) -> None:  # noqa: A002
        memory = aligned_memory(path.stat().st_size)
        with path.open("rb", buffering=0) as file:
            if file.readinto(memory) != memory.nbytes:
                raise StorageFailed(f"Cannot read {str(path)!r} completely. Send the artifact again.", path=str(path))
        with self._lock:
            reservation.release()
            self._keep(check_hash(hash), memory, writer)
        path.unlink(missing_ok=True)

    def read(self, hash: str) -> memoryview:  # noqa: A002
        with self._lock:
            view = self._find(hash)
        if view is None:
            raise unknown_artifact(hash)
        return view.toreadonly()

    def chunks(self, hash: str, start: int = 0, stop: int | None = None, size: int = CHUNK_BYTES) -> Iterator[memoryview]:  # noqa: A002
        view = self.read(hash)
        first, end = span_of(view.nbytes, start, stop, size)
        return (view[at : min(at + size, end)] for at in range(first, end, size))

    def path(self, hash: str) -> Path | None:  # noqa: A002
        self.read(hash)
        return None

    def delete(self, hash: str) -> bool:  # noqa: A002
        with self._lock:
            self._end_leases()
            if check_hash(hash) not in self._kept or self._is_leased(hash):
                return False
            self._remove(hash)
        return True

    def lease(self, owner: str, hashes: Iterable[str], seconds: float | None = None) -> None:
        end = math.inf if seconds is None else time.monotonic() + seconds
        with self._lock:
            self._leases.setdefault(owner, {}).update(dict.fromkeys(map(check_hash, hashes), end))

    def release(self, owner: str) -> None:
        with self._lock:
            for digest in self._leases.pop(owner, ()):
                self._unleased(owner, digest)

    def _unleased(self, owner: str, digest: str) -> None:
        if digest in self._copies and not self._is_leased(digest):
            self._remove(digest)
        views = self._borrowed.get(digest)
        if views is None:
            return
        view = views.pop(owner, None)
        if not views:
            del self._borrowed[digest]
            if view is not None and digest not in self._kept and self._is_leased(digest):
                self._kept[digest] = memory = aligned_memory(view.nbytes)
                memory[:] = view
                self._used += view.nbytes
                self._copies.add(digest)

    def _end_leases(self) -> None:
        """End the leases whose time has passed."""
        now = time.monotonic()
        for owner, ends in list(self._leases.items()):
            for digest in [digest for digest, end in ends.items() if end <= now]:
                del ends[digest]
                self._unleased(owner, digest)

    def _unreserve(self, nbytes: int) -> None:
        with self._lock:
            self._reserved -= nbytes

    def _is_leased(self, digest: str) -> bool:
        return any(digest in ends for ends in self._leases.values())

    def _remove(self, digest: str) -> memoryview:
        memory = self._kept.pop(digest)
        self._writers.pop(digest, None)
        self._copies.discard(digest)
        self._used -= memory.nbytes
        return memory

    def _find(self, hash: str) -> memoryview | None:  # noqa: A002
        view = self._kept.get(check_hash(hash))
        if view is not None:
            self._kept.move_to_end(hash)
            return view
        return next(iter(self._borrowed.get(hash, {}).values()), None)

    def _keep(self, digest: str, memory: memoryview, writer: Writer | None) -> None:
        known_writer = writer or current_writer()
        with self._lock:
            if digest in self._kept:
                self._copies.discard(digest)
                self._kept.move_to_end(digest)
                return
            self._make_room(memory.nbytes)
            self._kept[digest] = memory
            self._used += memory.nbytes
            self._writers[digest] = time.time(), known_writer

    def _make_room(self, nbytes: int) -> None:
        if self.quota_bytes is None or self._used + self._reserved + nbytes <= self.quota_bytes:
            return
        self._end_leases()
        leased = set().union(*self._leases.values())
        free = [digest for digest in self._kept if digest not in leased]
        leased_bytes = self._used - sum(self._kept[digest].nbytes for digest in free)
        if leased_bytes + self._reserved + nbytes > self.quota_bytes:
            raise over_quota(nbytes, self.quota_bytes, leased_bytes, len(self._kept) - len(free), self._reserved)
        for digest in free:
            if self._used + self._reserved + nbytes <= self.quota_bytes:
                break
            self._remove(digest)


class _MemoryWriter(ArtifactWriter):
    def __init__(self, store: MemoryStore, writer: Writer | None, *, expected: str | None, nbytes: int | None) -> None:
        super().__init__(expected=expected, nbytes=nbytes, limit=store.max_artifact_bytes)
        self._store, self._writer = store, writer or current_writer()
        self._memory = memoryview(bytearray())

    def _append(self, chunk: memoryview) -> None:
        end = self._written + chunk.nbytes
        if end > self._memory.nbytes:
            # Untouched memory takes address space but no pages, so an expected size is allocated at once.
            grown = aligned_memory(
                self._expected_bytes if self._expected_bytes is not None else max(2 * self._memory.nbytes, end, _FIRST_BYTES)
            )
            grown[: self._written] = self._memory[: self._written]
            self._memory = grown
        self._memory[self._written : end] = chunk

    def _keep(self, digest: str) -> None:
        self._store._keep(digest, self._memory[: self._written], self._writer)
        self._memory = memoryview(b"")

    def _discard(self) -> None:
        self._memory = memoryview(b"")


def aligned_memory(nbytes: int) -> memoryview:
    """Return new writable memory that a decoded tensor may use; raise `StorageFailed` if it cannot be allocated."""
    import numpy as np

    try:
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    except MemoryError as error:
        raise StorageFailed(
            f"cannot allocate {nbytes} bytes of memory; send less at once, or store artifacts on disk", nbytes=nbytes
        ) from error
    offset = -int(memory.ctypes.data) % ALIGNMENT
    return memory.data[offset : offset + nbytes]
