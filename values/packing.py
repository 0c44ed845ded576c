"""The work of `wire.pack`: values become skeletons, their payloads lie inline or in a store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from yggdrasill.values.artifact_refs import ArtifactHandle, ArtifactRef
from yggdrasill.values.artifacts import ArtifactStore, put_mutable
from yggdrasill.values.encoder import Encoder
from yggdrasill.values.limits import Limits
from yggdrasill.values.memory_store import MemoryStore
from yggdrasill.values.payload import Payload
from yggdrasill.values.scalars import to_base64

__all__ = ["INLINE_BYTES", "MAX_INLINE_TOTAL", "Offer", "Packer", "WireEncoder"]

INLINE_BYTES = 16 << 10
"""Payloads up to this length ride in the message."""
MAX_INLINE_TOTAL = 256 << 10
"""Bytes of payloads that ride in one message together."""

Offer = Callable[[ArtifactRef, memoryview], AbstractContextManager[None]]
"""Entered with an artifact and the memory it is in while it is being written to the store."""


class Packer:
    """One message in the making, which may `take` several values. ``keeper`` owns the pins of what is stored.

    With ``lasting`` the store keeps the bytes for good, else a `MemoryStore` holds the tensors' own memory. With ``changing``
    others may write to the values meanwhile: an artifact is then surely the bytes of its name, or taking it fails.
    """

    def __init__(
        self,
        store: ArtifactStore,
        keeper: str,
        *,
        lasting: bool,
        limits: Limits,
        changing: bool = False,
        offer: Offer | None = None,
        inline_bytes: int = INLINE_BYTES,
        max_inline_total: int = MAX_INLINE_TOTAL,
    ) -> None:
        self._store, self._keeper, self._lasting, self._changing = store, keeper, lasting, changing
        self._offer = offer
        self._inline_bytes, self._inline_left = inline_bytes, max_inline_total
        self._encoder = WireEncoder(limits)
        self._entries: list[dict[str, Any]] = []
        self._refs: dict[str, ArtifactRef] = {}

    @property
    def refs(self) -> list[ArtifactRef]:
        """What was taken by reference so far, each artifact once."""
        return list(self._refs.values())

    @property
    def artifacts(self) -> list[str]:
        """The hashes the receiver needs, each once."""
        return list(self._refs)

    def take(self, value: Any) -> Any:
        """The skeleton of ``value``, its payloads put where they belong. Raises as `wire.pack`, and `CorruptData` if it is ``changing``."""
        if self._changing:
            # the same tensor may hold other bytes by now
            self._encoder.forget()
        skeleton = self._encoder.encode(value)
        for part in self._encoder.parts[len(self._entries) :]:
            if isinstance(part, Payload) and part.data.nbytes <= min(self._inline_bytes, self._inline_left):
                self._inline_left -= part.data.nbytes
                self._entries.append({**part.description.to_json(), "inline": to_base64(part.data)})
                continue
            ref = self._keep(part)
            self._entries.append(ref.to_json())
            self._refs.setdefault(ref.hash, ref)
        return skeleton

    def wire(self, skeleton: Any) -> dict[str, Any]:
        """The message of a skeleton that is made of what was taken."""
        return {"skeleton": skeleton, "payloads": self._entries}

    def _keep(self, part: Payload | ArtifactRef) -> ArtifactRef:
        """The reference of ``part``; bytes that are given are in the store now, others are pinned if they are."""
        if isinstance(part, Payload):
            return self._store_bytes(part)
        self._store.pin(self._keeper, [part.hash])
        return part

    def _store_bytes(self, payload: Payload) -> ArtifactRef:
        digest = payload.digest()
        if isinstance(self._store, MemoryStore) and not self._lasting:
            self._store.hold(payload.data, owner=self._keeper, hash=digest)
        else:
            self._store.pin(self._keeper, [digest])
            if self._changing:
                self._put_checked(ArtifactRef(digest, payload.description), payload.data)
            else:
                self._store.put(payload.data, hash=digest, verify=False)
        return ArtifactRef(digest, payload.description, store=self._store.store_id)

    def _put_checked(self, ref: ArtifactRef, data: memoryview) -> None:
        """Store ``data`` unless it is there, and let others have it meanwhile."""
        if not self._store.missing([ref.hash]):
            return
        with nullcontext() if self._offer is None else self._offer(ref, data):
            put_mutable(self._store, ref.hash, data)


class WireEncoder(Encoder):
    """Keeps handles as the references they are; everything else as payloads."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, inline=False)
        self.parts: list[Payload | ArtifactRef] = []

    def forget(self) -> None:
        """Let objects that were met before be encoded anew."""
        self._placed.clear()

    def _array(self, value: Any) -> Any:
        if isinstance(value, ArtifactHandle) and not self._in_key:
            return {"$tensor": self._put(value, lambda: value.ref)}
        return super()._array(value)

    def _put(self, value: Any, make: Callable[[], Payload | ArtifactRef]) -> Any:
        placed = self._placed.get(id(value))
        if placed is not None:
            return placed[0]
        part = make()
        description = part.description
        self._bytes += description.nbytes
        self._limits.check("max_bytes", self._bytes)
        index = len(self.parts)
        self._limits.check("max_payloads", index + 1)
        self.parts.append(part)
        self._placed[id(value)] = (index, value)
        return index
