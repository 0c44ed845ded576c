"""A dict of outputs that is packed item by item, while the rest of it is still being made."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from yggdrasill.values.artifact_refs import ArtifactRef
from yggdrasill.values.artifacts import ArtifactStore
from yggdrasill.values.limits import DEFAULT_LIMITS
from yggdrasill.values.packing import Offer, Packer
from yggdrasill.values.wire import Packed, pack

__all__ = ["StreamingPacker"]


class StreamingPacker:
    """What `pack` gives for a dict with texts as keys, made in parts. Its artifacts are pinned for ``owner``, and ``offer`` is
    entered while one of them is being written.

    Methods may be called from several threads; one at a time does its work.
    """

    def __init__(self, store: ArtifactStore, owner: str, offer: Offer | None = None) -> None:
        self._store, self._owner = store, owner
        self._lock = threading.Lock()
        self._packing = Packer(store, owner, lasting=True, changing=True, offer=offer, limits=DEFAULT_LIMITS)
        self._skeletons: dict[str, Any] = {}
        self._broken = False
        self._closed = False

    def add(self, key: str, value: Any) -> list[ArtifactRef]:
        """Pack the item ``key`` as it is now, and give the artifacts that came with it; nothing after `finish` and `close`.

        Nothing is raised: what cannot be packed, or is written to meanwhile, is left to `finish`.
        """
        with self._lock:
            known = len(self._packing.artifacts)
            if not self._closed:
                self._take(key, value)
            return self._packing.refs[known:]

    def finish(self, whole: Mapping[str, Any]) -> Packed:
        """All of ``whole``; of items that were added, what they were then. Raises as `pack`."""
        with self._lock:
            self._closed = True
            for key, value in whole.items():
                self._take(key, value)
            # a skeleton that is no plain dict of one item stands for a key that JSON cannot spell
            if self._broken or any("$dict" in skeleton for skeleton in self._skeletons.values()):
                return pack(dict(whole), self._store, owner=self._owner)
            merged = {name: part for key in whole for name, part in self._skeletons[key].items()}
            return Packed(self._packing.wire(merged), self._packing.artifacts)

    def close(self) -> None:
        """Take nothing more; whoever unpins ``owner`` from now on unpins everything."""
        with self._lock:
            self._closed = True

    def _take(self, key: str, value: Any) -> None:
        if not self._broken and key not in self._skeletons:
            try:
                self._skeletons[key] = self._packing.take({key: value})
            except Exception:  # noqa: BLE001 - `finish` does it again and says what is wrong
                self._broken = True
