"""The caller's side of the data plane: packing of values, the store of their artifacts, and the cache of downloads."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.base import LocalStore
from yggdrasill.values.stores.memory import MemoryStore, aligned_memory
from yggdrasill.values.wire import Packed, pack
from yggdrasill.values.write_tracking import known_digest, record, tracked_digest

__all__ = ["KEPT_BYTES", "ArtifactClient", "DownloadCache"]
KEPT_BYTES = 256 << 20
"""Default capacity of the download cache, in bytes."""


class ArtifactClient:
    """The store for artifacts of outgoing values, and the cache of recent downloads.

    A tensor is hashed again for every call unless the kernel confirms that its memory was not written to (see `values.write_tracking`),
    because a tensor may be changed without torch noticing. Equal bytes are not sent twice. In the default in-memory store, tensors are not copied for the
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

    An entry is not a copy: it is the memory of the tensors made from it, which their owners may write to. Therefore `take` returns the
    memory itself only if nothing uses it, otherwise a copy, and both only if the bytes still are those of the hash.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._kept: OrderedDict[str, _Entry] = OrderedDict()

    def __contains__(self, digest: object) -> bool:
        return digest in self._kept

    @property
    def nbytes(self) -> int:
        """Return the number of cached bytes."""
        return self._used

    def keep(self, digest: str, memory: memoryview) -> memoryview:
        """Cache the artifact ``digest``, whose bytes are in the new memory ``memory``, and return the view of it to use.

        Artifacts larger than the cache are not cached.
        """
        if memory.nbytes > self.most_bytes:
            return memory
        record(memory, digest)
        entry = _Entry(memory)
        view = entry.view()
        with self._lock:
            self._drop(digest)
            self._kept[digest] = entry
            self._used += memory.nbytes
            while self._used > self.most_bytes:
                self._drop(next(iter(self._kept)))
        return view

    def take(self, digest: str) -> memoryview | None:
        """Return the bytes in memory that nothing else uses, or None if they are not cached or were changed."""
        with self._lock:
            entry = self._kept.get(digest)
            if entry is None:
                return None
            self._kept.move_to_end(digest)
            unused = entry.view() if entry.is_unused else None
        if unused is not None:
            found, intact = unused, tracked_digest(unused) == digest
        else:
            found = _copy(entry.memory)
            intact = known_digest(entry.memory) == digest or blake3_hex(found) == digest
        if intact:
            return found
        with self._lock:
            if self._kept.get(digest) is entry:
                self._drop(digest)
        return None

    def _drop(self, digest: str) -> None:
        entry = self._kept.pop(digest, None)
        self._used -= 0 if entry is None else entry.memory.nbytes


class _Entry:
    """Cached memory, and whether a view of it is in use. Every user of a view refers to the array behind it."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._array: weakref.ref[Any] | None = None

    @property
    def is_unused(self) -> bool:
        return self._array is None or self._array() is None

    def view(self) -> memoryview:
        """Return a view, in use until the last reference to it or to what was made of it ends."""
        import numpy as np

        array = np.frombuffer(self.memory, np.uint8)
        self._array = weakref.ref(array)
        return array.data


def _copy(memory: memoryview) -> memoryview:
    """Copy with numpy, which releases the GIL."""
    import numpy as np

    copied = aligned_memory(memory.nbytes)
    np.copyto(np.frombuffer(copied, np.uint8), np.frombuffer(memory, np.uint8))
    return copied
