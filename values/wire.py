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

from yggdrasill.values.artifact_refs import ArtifactRef, Loader
from yggdrasill.values.artifacts import ArtifactStore
from yggdrasill.values.limits import DEFAULT_LIMITS, Limits
from yggdrasill.values.packing import INLINE_BYTES, MAX_INLINE_TOTAL, Packer
from yggdrasill.values.unwire import WireDecoder, read_payloads

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["INLINE_BYTES", "MAX_INLINE_TOTAL", "Packed", "pack", "references", "unpack", "with_urls"]


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
    packing = Packer(store, keeper, lasting=owner is not None, inline_bytes=inline_bytes, max_inline_total=max_inline_total, limits=limits)
    try:
        wire = packing.wire(packing.take(value))
    except BaseException:
        if owner is None:
            store.unpin(keeper)
        raise
    free = None if owner is not None else lambda: store.unpin(keeper)
    return Packed(wire, packing.artifacts, free)


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
