"""The work of `wire.pack`: values become skeletons, their payloads lie inline or in a store.

Values in messages: a JSON skeleton, small payloads inline, large ones as references to artifacts.

``{"skeleton": ..., "payloads": [{"dtype", "shape", "nbytes", "strides"?, and "inline": base64 or "artifact": hash, "url"?, "store"?}]}``

Reading wires; every one is taken for hostile.

A dict of outputs that is packed item by item, while the rest of it is still being made.
"""

from __future__ import annotations

import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from yggdrasill.values.decoder import Decoder
from yggdrasill.values.encoder import Encoder
from yggdrasill.values.handles import ArtifactHandle, ArtifactRef, Loader
from yggdrasill.values.payload import DEFAULT_LIMITS, ArraySpec, Limits, Payload, corrupt
from yggdrasill.values.scalars import from_base64, to_base64
from yggdrasill.values.stores.base import ArtifactStore, put_mutable
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.tensors import tensor_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "INLINE_BYTES",
    "MAX_INLINE_TOTAL",
    "Offer",
    "Packed",
    "Packer",
    "StreamingPacker",
    "WireDecoder",
    "WireEncoder",
    "pack",
    "read_payloads",
    "references",
    "unpack",
    "with_urls",
]

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


def read_payloads(wire: Any, limits: Limits) -> tuple[Any, list[Payload | ArtifactRef]]:
    """The skeleton, and each payload as bytes or as a reference; nothing is fetched.

    Raises `CorruptData` or `LimitExceeded`.
    """
    if type(wire) is not dict or wire.keys() != {"skeleton", "payloads"} or type(wire["payloads"]) is not list:
        raise corrupt("a value in a message is not made of skeleton and payloads")
    entries = wire["payloads"]
    limits.check("max_payloads", len(entries))
    parts: list[Payload | ArtifactRef] = []
    taken = 0
    for entry in entries:
        part = _read_entry(entry)
        taken += part.description.nbytes
        limits.check("max_bytes", taken)
        parts.append(part)
    return wire["skeleton"], parts


def _read_entry(entry: Any) -> Payload | ArtifactRef:
    if type(entry) is not dict or "inline" not in entry:
        return ArtifactRef.from_json(entry)
    rest = dict(entry)
    text = rest.pop("inline")
    if "hash" in rest:
        raise corrupt("a payload in the message has a name of its own")
    description = ArraySpec.from_json(rest)
    if type(text) is not str or len(text) != (description.nbytes + 2) // 3 * 4:
        raise corrupt(f"a payload in the message is not its {description.nbytes} bytes")
    return Payload(description, memoryview(from_base64(text)))


class WireDecoder(Decoder):
    """Decodes the skeleton of one wire, and asks for artifacts as it meets them. Use once."""

    def __init__(
        self, parts: list[Payload | ArtifactRef], load: Loader, handles: Callable[[ArtifactRef], Any] | None, limits: Limits
    ) -> None:
        super().__init__((), limits)
        self._payloads = _Loaded(parts, load)
        self._parts = parts
        self._handles = handles

    def _make(self, tag: str, maker: Callable[[Payload], Any], body: Any) -> Any:
        if self._handles is None or tag != "$tensor" or type(body) is not int or not 0 <= body < len(self._parts):
            return super()._make(tag, maker, body)
        part = self._parts[body]
        if isinstance(part, Payload):
            return super()._make(tag, maker, body)
        if (tag, body) not in self._made:
            tensor_dtype(part.description)
            self._made[tag, body] = self._handles(part)
        return self._made[tag, body]


class _Loaded(Sequence[Payload]):
    """The payloads, loaded when they are asked for, each artifact once."""

    def __init__(self, parts: list[Payload | ArtifactRef], load: Loader) -> None:
        self._parts = parts
        self._load = load
        self._shared = {hash for hash, count in Counter(part.hash for part in parts if isinstance(part, ArtifactRef)).items() if count > 1}  # noqa: A001
        self._data: dict[str, memoryview] = {}

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Payload: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Payload]: ...
    def __getitem__(self, index: int | slice) -> Payload | Sequence[Payload]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        part = self._parts[index]
        return part if isinstance(part, Payload) else Payload(part.description, self._bytes(part), part.hash)

    def _bytes(self, ref: ArtifactRef) -> memoryview:
        data = self._data.get(ref.hash)
        if data is None:
            data = self._load(ref)
            if ref.hash in self._shared:
                # read-only, so that each value gets memory of its own
                data = self._data[ref.hash] = data.toreadonly()
        return data


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
