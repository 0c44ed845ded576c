"""The caller's side of the data plane: values packed for the road, and where their bytes lie meanwhile."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from yggdrasill.remote.download_cache import KEPT_BYTES, DownloadCache
from yggdrasill.values.stores.base import ArtifactStore
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.wire import Packed, pack

__all__ = ["ArtifactClient"]


class ArtifactClient:
    """A store for what is on its way, and what came lately.

    Every tensor is hashed for every call, at several GiB a second: a remembered hash would be wrong the day somebody changes a
    tensor behind torch's back, and what is equal is not sent again anyway. In the default store of a process's own memory
    tensors lie uncopied for as long as a call lasts. With a disk store whose folder an endpoint shares, nothing but references
    crosses. Up to ``kept_bytes`` of what was fetched is remembered, so that a result of equal bytes is not fetched again.
    """

    def __init__(self, store: ArtifactStore | None = None, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.store: ArtifactStore = MemoryStore() if store is None else store
        self.received = DownloadCache(kept_bytes)

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
