"""A store in the memory of this process, for calls, tests, and endpoints without an artifact folder."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from yggdrasill.errors import StorageFailed
from yggdrasill.values.payload import ALIGNMENT, blake3_hex
from yggdrasill.values.stores.base import (
    CHUNK_BYTES,
    MAX_ARTIFACT_BYTES,
    ArtifactStore,
    ArtifactWriter,
    check_hash,
    check_size,
    checked_digest,
    over_quota,
    span_of,
    unknown_artifact,
)

__all__ = ["MemoryStore", "aligned_memory"]

_FIRST_BYTES = 1 << 16


class MemoryStore(ArtifactStore):
    """An `ArtifactStore` in memory; besides copies it can `borrow` a tensor's memory for the duration of a call."""

    def __init__(self, *, quota_bytes: int | None = None, max_artifact_bytes: int = MAX_ARTIFACT_BYTES) -> None:
        self.store_id = uuid.uuid4().hex
        self.quota_bytes = quota_bytes
        self.max_artifact_bytes = max_artifact_bytes
        self._lock = threading.RLock()
        self._used = 0
        # Least recently used first.
        self._kept: OrderedDict[str, memoryview] = OrderedDict()
        self._borrowed: dict[str, dict[str, memoryview]] = {}
        self._pins: dict[str, set[str]] = {}
        # Copies of borrowed bytes that the remaining pins need; removed with the last of these pins.
        self._copies: set[str] = set()

    def has(self, hash: str) -> bool:  # noqa: A002
        check_hash(hash)
        with self._lock:
            return hash in self._kept or hash in self._borrowed

    def missing(self, hashes: Iterable[str]) -> list[str]:
        with self._lock:
            return [hash for hash in dict.fromkeys(hashes) if self._find(hash) is None]  # noqa: A001

    def nbytes(self, hash: str) -> int:  # noqa: A002
        return self.read(hash).nbytes

    def put(self, data: bytes | bytearray | memoryview, *, hash: str | None = None, verify: bool = True) -> str:  # noqa: A002
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
        self._keep(digest, memory)
        return digest

    def borrow(self, data: memoryview, *, owner: str, hash: str | None = None) -> str:  # noqa: A002
        """Serve ``data`` without a copy until ``unpin(owner)``, and return its hash; a given ``hash`` is trusted.

        The memory must not change until then. If another owner has pinned the artifact by then, the store keeps a copy. Borrowed
        bytes do not count against the quota.
        """
        view = data.cast("B").toreadonly()
        check_size(view.nbytes, self.max_artifact_bytes)
        digest = blake3_hex(view) if hash is None else check_hash(hash)
        with self._lock:
            self._pins.setdefault(owner, set()).add(digest)
            self._borrowed.setdefault(digest, {})[owner] = view
        return digest

    def pop(self, hash: str) -> memoryview:  # noqa: A002
        """Remove the artifact and return its bytes, writable and without a copy; borrowed or pinned bytes stay, and are returned as by `read`.

        Raises `UnknownArtifact`.
        """
        with self._lock:
            view = self.read(hash)
            if hash in self._borrowed or self._is_pinned(hash):
                return view
            return self._remove(hash)

    def writer(self, expected: str | None = None, nbytes: int | None = None) -> ArtifactWriter:
        writer = _MemoryWriter(self, expected=expected, nbytes=nbytes)
        with self._lock:
            if nbytes is not None and expected not in self._kept:
                self._make_room(nbytes)
        return writer

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

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        with self._lock:
            self._pins.setdefault(owner, set()).update(map(check_hash, hashes))

    def unpin(self, owner: str) -> None:
        with self._lock:
            for digest in self._pins.pop(owner, ()):
                if digest in self._copies and not self._is_pinned(digest):
                    self._remove(digest)
                views = self._borrowed.get(digest)
                if views is None:
                    continue
                view = views.pop(owner, None)
                if not views:
                    del self._borrowed[digest]
                    if view is not None and digest not in self._kept and self._is_pinned(digest):
                        self._kept[digest] = memory = aligned_memory(view.nbytes)
                        memory[:] = view
                        self._used += view.nbytes
                        self._copies.add(digest)

    def _is_pinned(self, digest: str) -> bool:
        return any(digest in pins for pins in self._pins.values())

    def _remove(self, digest: str) -> memoryview:
        memory = self._kept.pop(digest)
        self._copies.discard(digest)
        self._used -= memory.nbytes
        return memory

    def _find(self, hash: str) -> memoryview | None:  # noqa: A002
        view = self._kept.get(check_hash(hash))
        if view is not None:
            self._kept.move_to_end(hash)
            return view
        return next(iter(self._borrowed.get(hash, {}).values()), None)

    def _keep(self, digest: str, memory: memoryview) -> None:
        with self._lock:
            if digest in self._kept:
                self._copies.discard(digest)
                self._kept.move_to_end(digest)
                return
            self._make_room(memory.nbytes)
            self._kept[digest] = memory
            self._used += memory.nbytes

    def _make_room(self, nbytes: int) -> None:
        if self.quota_bytes is None or self._used + nbytes <= self.quota_bytes:
            return
        pinned = set().union(*self._pins.values())
        free = [digest for digest in self._kept if digest not in pinned]
        pinned_bytes = self._used - sum(self._kept[digest].nbytes for digest in free)
        if pinned_bytes + nbytes > self.quota_bytes:
            raise over_quota(nbytes, self.quota_bytes, pinned_bytes, len(self._kept) - len(free))
        for digest in free:
            if self._used + nbytes <= self.quota_bytes:
                break
            self._remove(digest)


class _MemoryWriter(ArtifactWriter):
    def __init__(self, store: MemoryStore, *, expected: str | None, nbytes: int | None) -> None:
        super().__init__(expected=expected, nbytes=nbytes, limit=store.max_artifact_bytes)
        self._store = store
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
        self._store._keep(digest, self._memory[: self._written])
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
