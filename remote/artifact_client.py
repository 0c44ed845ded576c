"""The caller's side of the data plane: packing of values, the store of their artifacts, and the cache of downloads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.base import LocalStore
from yggdrasill.values.stores.memory import MemoryStore, aligned_memory
from yggdrasill.values.wire import Packed, pack

__all__ = ["KEPT_BYTES", "ArtifactClient", "DownloadCache"]
KEPT_BYTES = 256 << 20
"""Default capacity of the download cache, in bytes."""


class ArtifactClient:
    """The store for artifacts of outgoing values, and the cache of recent downloads.

    Every tensor is hashed for every call, at several GiB/s: a cached hash would become wrong when a tensor is changed without
    torch noticing, and equal bytes are not sent twice in any case. In the default in-memory store, tensors are not copied for the
    duration of a call. With a disk store whose folder the endpoint shares, only references are sent. Up to ``kept_bytes`` of
    downloads are cached, so that equal bytes are not fetched again.
    """

    def __init__(self, store: LocalStore | None = None, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.store: LocalStore = MemoryStore() if store is None else store
        self.downloads = DownloadCache(kept_bytes)

    def pack(self, value: Any) -> Packed:
        """Return ``value`` as JSON and artifacts. Raise `CannotTravel`, which names type and location."""
        return pack(value, self.store)

    @staticmethod
    def shared() -> ArtifactClient:
        """Return the instance of this process, for callers that name no store."""
        return _shared()


@lru_cache(maxsize=1)
def _shared() -> ArtifactClient:
    return ArtifactClient()


class DownloadCache:
    """LRU cache of downloaded artifacts, at most ``most_bytes`` in total. Thread-safe.

    An entry is not a copy: it is the memory of the tensors made from it, which their owners may write to. Therefore `copy` returns
    a copy, and only after verifying its hash.
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
        """Return the number of cached bytes."""
        return self._used

    def keep(self, digest: str, memory: memoryview) -> None:
        """Cache the artifact ``digest``, whose bytes are in ``memory``. Artifacts larger than the cache are ignored."""
        if memory.nbytes > self.most_bytes:
            return
        with self._lock:
            self._drop(digest)
            self._kept[digest] = memory
            self._used += memory.nbytes
            while self._used > self.most_bytes:
                self._drop(next(iter(self._kept)))

    def copy(self, digest: str) -> memoryview | None:
        """Return the bytes in new memory, or None if they are not cached or were changed."""
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
    """Copy with numpy, which releases the GIL."""
    import numpy as np

    copied = aligned_memory(memory.nbytes)
    np.copyto(np.frombuffer(copied, np.uint8), np.frombuffer(memory, np.uint8))
    return copied
