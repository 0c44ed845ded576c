"""The caller's side of the data plane: packing of values, the store of their artifacts, and the cache of downloads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.base import ArtifactStore
from yggdrasill.values.stores.memory import MemoryStore, aligned_memory
from yggdrasill.values.wire import Packed, pack

__all__ = ["KEPT_BYTES", "ArtifactClient", "DownloadCache"]
KEPT_BYTES = 256 << 20
"""Bytes that a process keeps unless told otherwise."""


class ArtifactClient:
    """A store for what is on its way, and what came lately.

    Every tensor is hashed for every call, at several GiB a second: a remembered hash would be wrong the day somebody changes a
    tensor behind torch's back, and what is equal is not sent again anyway. In the default store of a process's own memory
    tensors lie uncopied for as long as a call lasts. With a disk store whose folder an endpoint shares, nothing but references
    crosses. Up to ``kept_bytes`` of what was fetched is remembered, so that a result of equal bytes is not fetched again.
    """

    def __init__(self, store: ArtifactStore | None = None, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.store: ArtifactStore = MemoryStore() if store is None else store
        self.downloads = DownloadCache(kept_bytes)

    def pack(self, value: Any) -> Packed:
        """``value`` as JSON and artifacts; raises `CannotTravel` naming type and place."""
        return pack(value, self.store)

    @staticmethod
    def shared() -> ArtifactClient:
        """The artifact_client of this process, for callers that name no store."""
        return _shared()


@lru_cache(maxsize=1)
def _shared() -> ArtifactClient:
    return ArtifactClient()


class DownloadCache:
    """The latest artifacts that came, at most ``most_bytes`` together; the longest unused go first. Safe to use from several threads.

    Nothing is copied to keep it: it is the memory that the tensors made of it live in. Whoever has such a tensor may write to
    it, so what is given out again is a copy, and only after its hash was compared.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._kept: OrderedDict[str, memoryview] = OrderedDict()

    def __contains__(self, digest: object) -> bool:
        return digest in self._kept

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self._used

    def keep(self, digest: str, memory: memoryview) -> None:
        """Remember the artifact ``digest``, whose bytes ``memory`` holds now; nothing happens if they are more than are kept."""
        if memory.nbytes > self.most_bytes:
            return
        with self._lock:
            self._drop(digest)
            self._kept[digest] = memory
            self._used += memory.nbytes
            while self._used > self.most_bytes:
                self._drop(next(iter(self._kept)))

    def copy(self, digest: str) -> memoryview | None:
        """The bytes in memory of their own; None if they are not here or were changed since."""
        with self._lock:
            memory = self._kept.get(digest)
            if memory is None:
                return None
            self._kept.move_to_end(digest)
        copied = _copy(memory)
        if blake3_hex(copied) == digest:
            return copied
        with self._lock:
            if self._kept.get(digest) is memory:
                self._drop(digest)
        return None

    def _drop(self, digest: str) -> None:
        memory = self._kept.pop(digest, None)
        self._used -= 0 if memory is None else memory.nbytes


def _copy(memory: memoryview) -> memoryview:
    """By numpy, which lets other threads run meanwhile."""
    import numpy as np

    copied = aligned_memory(memory.nbytes)
    np.copyto(np.frombuffer(copied, np.uint8), np.frombuffer(memory, np.uint8))
    return copied
