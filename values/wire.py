"""Values in messages: a JSON skeleton, small payloads inline, large ones as references to artifacts.

``{"skeleton": ..., "payloads": [{"dtype", "shape", "nbytes", "strides"?, and "inline": base64 or "artifact": hash, "url"?, "store"?}]}``
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from yggdrasill.values.artifact_refs import ArtifactHandle, ArtifactRef, Loader
from yggdrasill.values.artifacts import ArtifactStore
from yggdrasill.values.encoder import Encoder
from yggdrasill.values.limits import DEFAULT_LIMITS, Limits
from yggdrasill.values.memory_store import MemoryStore
from yggdrasill.values.payload import Payload
from yggdrasill.values.scalars import to_base64
from yggdrasill.values.unwire import WireDecoder, read_payloads

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["INLINE_BYTES", "MAX_INLINE_TOTAL", "Packed", "pack", "references", "unpack", "with_urls"]

INLINE_BYTES = 16 << 10
"""Payloads up to this length ride in the message."""
MAX_INLINE_TOTAL = 256 << 10
"""Bytes of payloads that ride in one message together."""


@dataclass(eq=False)
class Packed:
    """A value ready to be sent: ``wire`` is JSON, ``artifacts`` are the hashes the receiver needs beside it.

    Unless an ``owner`` was named to `pack`, the store keeps the artifacts until `release`: leave it as a context manager, or call it.
    """

    wire: dict[str, Any]
    artifacts: list[str]
    _free: Callable[[], object] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Let the store forget what it held for this; may be called twice."""
        free, self._free = self._free, None
        if free is not None:
            free()

    def __del__(self) -> None:
        # not released here: a collector may run this while the store's own lock is held
        if self._free is not None:
            warnings.warn(f"a Packed with {len(self.artifacts)} artifacts was never released", ResourceWarning, source=self, stacklevel=2)


def pack(
    value: Any,
    store: ArtifactStore,
    *,
    inline_bytes: int = INLINE_BYTES,
    max_inline_total: int = MAX_INLINE_TOTAL,
    owner: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Packed:
    """``value`` for a message, its large payloads in ``store``; an `ArtifactHandle` goes as the reference it is.

    Without ``owner`` they are there until `Packed.release`, in a `MemoryStore` as the tensors' own uncopied memory, which must not
    change meanwhile. With ``owner`` they are kept for good and pinned for it.

    Raises:
        CannotTravel: a part has no lossless form; nothing was stored.
        LimitExceeded: larger or deeper than ``limits``, or than the store takes.
        StorageFailed: the store has no room.
    """
    keeper = owner or f"packed-{uuid.uuid4().hex}"
    encoder = _WireEncoder(limits)
    try:
        skeleton = encoder.encode(value)
        sink = _Sink(store, keeper, lasting=owner is not None)
        entries: list[dict[str, Any]] = []
        artifacts: list[str] = []
        inline = 0
        for part in encoder.parts:
            if isinstance(part, Payload) and part.data.nbytes <= min(inline_bytes, max_inline_total - inline):
                inline += part.data.nbytes
                entries.append({**part.description.to_json(), "inline": to_base64(part.data)})
                continue
            ref = sink.keep(part)
            entries.append(ref.to_json())
            artifacts.append(ref.hash)
    except BaseException:
        if owner is None:
            store.unpin(keeper)
        raise
    free = None if owner is not None else lambda: store.unpin(keeper)
    return Packed({"skeleton": skeleton, "payloads": entries}, list(dict.fromkeys(artifacts)), free)


def unpack(wire: Any, load: Loader, *, handles: Callable[[ArtifactRef], Any] | None = None, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value of what `pack` gave; ``load`` is asked once per artifact.

    With ``handles`` a tensor that came by reference becomes ``handles(ref)`` instead; its bytes are not asked for.

    Raises:
        CorruptData: `pack` wrote no such thing, or ``load`` gave another number of bytes.
        LimitExceeded: larger or deeper than ``limits``.
        UnsupportedVersion: a dtype that this torch or machine does not have.
    """
    skeleton, parts = read_payloads(wire, limits)
    return WireDecoder(parts, load, handles, limits).decode(skeleton)


def references(wire: Any, *, limits: Limits = DEFAULT_LIMITS) -> list[ArtifactRef]:
    """The artifacts that ``wire`` refers to, each once, in order; raises `CorruptData` or `LimitExceeded`."""
    _, parts = read_payloads(wire, limits)
    found: dict[str, ArtifactRef] = {}
    for part in parts:
        if isinstance(part, ArtifactRef):
            found.setdefault(part.hash, part)
    return list(found.values())


def with_urls(wire: Any, sign: Callable[[ArtifactRef], str | None], *, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """``wire`` with ``sign(ref)`` as the url of each artifact; where that is None, the url stays what it is. Raises as `references`."""
    skeleton, parts = read_payloads(wire, limits)
    entries = []
    for entry, part in zip(wire["payloads"], parts, strict=True):
        url = sign(part) if isinstance(part, ArtifactRef) else None
        entries.append(entry if url is None else {**entry, "url": url})
    return {"skeleton": skeleton, "payloads": entries}


class _WireEncoder(Encoder):
    """Keeps handles as the references they are; everything else as payloads."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, inline=False)
        self.parts: list[Payload | ArtifactRef] = []

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


class _Sink:
    """Brings payloads into a store."""

    def __init__(self, store: ArtifactStore, keeper: str, *, lasting: bool) -> None:
        self._store = store
        self._keeper = keeper
        self._lasting = lasting

    def keep(self, part: Payload | ArtifactRef) -> ArtifactRef:
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
            self._store.put(payload.data, hash=digest, verify=False)
        return ArtifactRef(digest, payload.description, store=self._store.store_id)
