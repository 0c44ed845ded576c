"""The wire form: a value for a message as a JSON skeleton, with small payloads inline and large ones as references to artifacts.

``{"skeleton": ..., "payloads": [{"dtype", "shape", "nbytes", "strides"?, and "inline": base64 or "artifact": hash, "url"?, "store"?}]}``

`pack` and `StreamingPacker` write it, `unpack` reads it. Every wire form that is read is treated as hostile input.
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
from yggdrasill.values.handles import ArtifactHandle, Loader
from yggdrasill.values.payload import DEFAULT_LIMITS, ArraySpec, ArtifactRef, Limits, Payload, corrupt, from_base64, to_base64
from yggdrasill.values.stores.base import LocalStore, put_mutable
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.tensors import tensor_dtype
from yggdrasill.values.write_tracking import tracked_digest

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "INLINE_BYTES",
    "MAX_INLINE_TOTAL",
    "Offer",
    "Packed",
    "Packer",
    "StreamingPacker",
    "described",
    "pack",
    "references",
    "unpack",
    "with_urls",
]

INLINE_BYTES = 16 << 10
"""Payloads up to this length are part of the message."""
MAX_INLINE_TOTAL = 256 << 10
"""Bytes of all inline payloads of one message."""

Offer = Callable[[ArtifactRef, memoryview], AbstractContextManager[None]]
"""Makes an artifact and its memory available to others while the context is open, that is, while the store writes it."""


@dataclass(eq=False)
class Packed:
    """A value ready to be sent: ``wire`` is JSON, ``artifacts`` are the hashes that the receiver needs in addition.

    Unless `pack` was given an ``owner``, the store keeps the artifacts until `release`: use this as a context manager, or call it.
    """

    wire: dict[str, Any]
    artifacts: list[str]
    _release: Callable[[], object] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """End the lease of the artifacts; may be called repeatedly."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __del__(self) -> None:
        # Not released automatically: the garbage collector may run this while the store's lock is held.
        if self._release is not None:
            warnings.warn(f"a Packed with {len(self.artifacts)} artifacts was never released", ResourceWarning, source=self, stacklevel=2)


def pack(
    value: Any,
    store: LocalStore,
    *,
    inline_bytes: int = INLINE_BYTES,
    max_inline_total: int = MAX_INLINE_TOTAL,
    owner: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Packed:
    """Return the wire form of ``value``, its large payloads in ``store``; an `ArtifactHandle` is sent as its reference.

    Without ``owner`` the payloads are in the store until `Packed.release`; a `MemoryStore` then borrows the tensors' memory, which
    must not change in the meantime. With ``owner`` they are copied into the store and leased for ``owner``.

    Raises:
        CannotTravel: a part has no lossless form; nothing was stored.
        LimitExceeded: the value is larger or deeper than ``limits``, or a payload is larger than the store accepts.
        StorageFailed: the store has no room.
    """
    keeper = owner or f"packed-{uuid.uuid4().hex}"
    packer = Packer(
        store, keeper, persistent=owner is not None, inline_bytes=inline_bytes, max_inline_total=max_inline_total, limits=limits
    )
    try:
        wire = packer.wire(packer.add(value))
    except BaseException:
        if owner is None:
            store.release(keeper)
        raise
    release = None if owner is not None else lambda: store.release(keeper)
    return Packed(wire, packer.artifacts, release)


def unpack(
    wire: Any,
    load: Loader,
    *,
    handles: Callable[[ArtifactRef], Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    checkpoint: Callable[[], None] | None = None,
) -> Any:
    """Return the value that `pack` packed; ``load`` is called once per artifact.

    With ``handles``, a tensor sent by reference becomes ``handles(ref)`` and is not loaded. ``checkpoint`` is called regularly and may raise.

    Raises:
        CorruptData: ``wire`` is not the result of `pack`, or ``load`` returned a different number of bytes.
        LimitExceeded: the value is larger or deeper than ``limits``.
        UnsupportedVersion: this torch or machine does not support a dtype.
    """
    skeleton, parts = _read_payloads(wire, limits)
    return _WireDecoder(parts, load, handles, limits, checkpoint).decode(skeleton)


def references(wire: Any, *, limits: Limits = DEFAULT_LIMITS) -> list[ArtifactRef]:
    """Return the artifacts that ``wire`` refers to, each once, in order; raises `CorruptData` or `LimitExceeded`."""
    _, parts = _read_payloads(wire, limits)
    found: dict[str, ArtifactRef] = {}
    for part in parts:
        if isinstance(part, ArtifactRef):
            found.setdefault(part.hash, part)
    return list(found.values())


def with_urls(wire: Any, sign: Callable[[ArtifactRef], str | None], *, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Return ``wire`` with ``sign(ref)`` as the url of each artifact; where ``sign`` returns None, the url is unchanged.

    Raises as `references`.
    """
    skeleton, parts = _read_payloads(wire, limits)
    entries = []
    for entry, part in zip(wire["payloads"], parts, strict=True):
        url = sign(part) if isinstance(part, ArtifactRef) else None
        entries.append(entry if url is None else {**entry, "url": url})
    return {"skeleton": skeleton, "payloads": entries}


def described(value: Any, *, limits: Limits = DEFAULT_LIMITS) -> tuple[Any, list[dict[str, Any]]]:
    """Return the skeleton of ``value``, and of each payload the spec and the hash of its bytes, which a handle has from its reference.

    Raises:
        CannotTravel, LimitExceeded: as `pack`.
    """
    encoder = _WireEncoder(limits)
    skeleton = encoder.encode(value)
    hashes = [part.hash if isinstance(part, ArtifactRef) else _digest(part) for part in encoder.parts]
    return skeleton, [{**part.description.to_json(), "artifact": found} for part, found in zip(encoder.parts, hashes, strict=True)]


def _digest(payload: Payload) -> str:
    return payload.digest() if payload.pinned else tracked_digest(payload.data)


# -- writing ---------------------------------------------------------------------------------------------------------------


class StreamingPacker:
    """Packs a dict with string keys item by item, while the rest of it is still being computed; `finish` returns what `pack` would.

    Artifacts are leased for ``owner``; ``offer`` is entered while one of them is written. Methods may be called from several threads.
    """

    def __init__(self, store: LocalStore, owner: str, offer: Offer | None = None) -> None:
        self._store, self._owner = store, owner
        self._lock = threading.Lock()
        self._packer = Packer(store, owner, persistent=True, mutable=True, offer=offer, limits=DEFAULT_LIMITS)
        self._skeletons: dict[str, Any] = {}
        self._broken = False
        self._closed = False

    def add(self, key: str, value: Any) -> list[ArtifactRef]:
        """Pack the item ``key`` in its present state and return the artifacts it added; nothing after `finish` or `close`.

        Does not raise: an item that cannot be packed, or that is written to while it is packed, is packed again by `finish`.
        """
        with self._lock:
            known = len(self._packer.artifacts)
            if not self._closed:
                self._pack_item(key, value)
            return self._packer.refs[known:]

    def finish(self, whole: Mapping[str, Any]) -> Packed:
        """Return the wire form of ``whole``; an item that was added keeps the state it had then. Raises as `pack`."""
        with self._lock:
            self._closed = True
            for key, value in whole.items():
                self._pack_item(key, value)
            # A skeleton that is not a plain dict of one item has a key that JSON cannot represent.
            if self._broken or any("$dict" in skeleton for skeleton in self._skeletons.values()):
                return pack(dict(whole), self._store, owner=self._owner)
            merged = {name: part for key in whole for name, part in self._skeletons[key].items()}
            return Packed(self._packer.wire(merged), self._packer.artifacts)

    def close(self) -> None:
        """Stop accepting items. After this, releasing ``owner`` releases everything."""
        with self._lock:
            self._closed = True

    def _pack_item(self, key: str, value: Any) -> None:
        if not self._broken and key not in self._skeletons:
            try:
                self._skeletons[key] = self._packer.add({key: value})
            except Exception:  # noqa: BLE001 - `finish` packs the item again and raises
                self._broken = True


class Packer:
    """Packs several values into one message; what it stores is leased for ``owner``.

    With ``persistent`` the store gets a copy of the bytes, else a `MemoryStore` borrows the tensors' memory. With ``mutable`` other
    threads may write to the values: an artifact then has the bytes of its name, or adding it fails.
    """

    def __init__(
        self,
        store: LocalStore,
        owner: str,
        *,
        persistent: bool,
        limits: Limits,
        mutable: bool = False,
        offer: Offer | None = None,
        inline_bytes: int = INLINE_BYTES,
        max_inline_total: int = MAX_INLINE_TOTAL,
    ) -> None:
        self._store, self._owner, self._persistent, self._mutable = store, owner, persistent, mutable
        self._offer = offer
        self._inline_bytes, self._inline_left = inline_bytes, max_inline_total
        self._encoder = _WireEncoder(limits)
        self._entries: list[dict[str, Any]] = []
        self._refs: dict[str, ArtifactRef] = {}

    @property
    def refs(self) -> list[ArtifactRef]:
        """The artifacts added so far, each once."""
        return list(self._refs.values())

    @property
    def artifacts(self) -> list[str]:
        """The hashes that the receiver needs, each once."""
        return list(self._refs)

    def add(self, value: Any) -> Any:
        """Return the skeleton of ``value`` after its payloads are inline or stored.

        Raises as `pack`, and `CorruptData` if a ``mutable`` value changed while it was stored.
        """
        if self._mutable:
            # A tensor that was encoded before may have other bytes by now.
            self._encoder.forget()
        skeleton = self._encoder.encode(value)
        for part in self._encoder.parts[len(self._entries) :]:
            if isinstance(part, Payload) and part.data.nbytes <= min(self._inline_bytes, self._inline_left):
                self._inline_left -= part.data.nbytes
                self._entries.append({**part.description.to_json(), "inline": to_base64(part.data)})
                continue
            ref = self._store_payload(part) if isinstance(part, Payload) else self._lease(part)
            self._entries.append(ref.to_json())
            self._refs.setdefault(ref.hash, ref)
        return skeleton

    def wire(self, skeleton: Any) -> dict[str, Any]:
        """Return the message for a skeleton made of the added ones."""
        return {"skeleton": skeleton, "payloads": self._entries}

    def _lease(self, ref: ArtifactRef) -> ArtifactRef:
        self._store.lease(self._owner, [ref.hash])
        return ref

    def _store_payload(self, payload: Payload) -> ArtifactRef:
        digest = _digest(payload)
        if isinstance(self._store, MemoryStore) and not self._persistent:
            self._store.borrow(payload.data, owner=self._owner, hash=digest)
        else:
            self._store.lease(self._owner, [digest])
            if self._mutable:
                self._put_checked(ArtifactRef(digest, payload.description), payload.data)
            else:
                self._store.put(payload.data, hash=digest, verify=False)
        return ArtifactRef(digest, payload.description, store=self._store.store_id)

    def _put_checked(self, ref: ArtifactRef, data: memoryview) -> None:
        """Store ``data`` unless the store has it, and offer it to others while it is written."""
        if not self._store.missing([ref.hash]):
            return
        with nullcontext() if self._offer is None else self._offer(ref, data):
            put_mutable(self._store, ref.hash, data)


class _WireEncoder(Encoder):
    """Encodes handles as their references, everything else as payloads."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, inline=False)
        self.parts: list[Payload | ArtifactRef] = []

    def forget(self) -> None:
        """Encode objects again that were encoded before."""
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
        self._bytes += part.description.nbytes
        self._limits.check("max_bytes", self._bytes)
        index = len(self.parts)
        self._limits.check("max_payloads", index + 1)
        self.parts.append(part)
        self._placed[id(value)] = (index, value)
        return index


# -- reading ---------------------------------------------------------------------------------------------------------------


def _read_payloads(wire: Any, limits: Limits) -> tuple[Any, list[Payload | ArtifactRef]]:
    """Return the skeleton, and each payload as bytes or as a reference; nothing is fetched. Raises `CorruptData` or `LimitExceeded`."""
    if type(wire) is not dict or wire.keys() != {"skeleton", "payloads"} or type(wire["payloads"]) is not list:
        raise corrupt("a value in a message is not an object with skeleton and payloads")
    entries = wire["payloads"]
    limits.check("max_payloads", len(entries))
    parts: list[Payload | ArtifactRef] = []
    total = 0
    for entry in entries:
        part = _read_entry(entry)
        total += part.description.nbytes
        limits.check("max_bytes", total)
        parts.append(part)
    return wire["skeleton"], parts


def _read_entry(entry: Any) -> Payload | ArtifactRef:
    if type(entry) is not dict or "inline" not in entry:
        return ArtifactRef.from_json(entry)
    rest = dict(entry)
    text = rest.pop("inline")
    if "hash" in rest:
        raise corrupt("an inline payload has a hash")
    spec = ArraySpec.from_json(rest)
    if type(text) is not str or len(text) != (spec.nbytes + 2) // 3 * 4:
        raise corrupt(f"an inline payload does not have its {spec.nbytes} bytes")
    return Payload(spec, memoryview(from_base64(text)))


class _WireDecoder(Decoder):
    """Decodes the skeleton of one message and loads each artifact when the skeleton refers to it. Use once."""

    def __init__(
        self,
        parts: list[Payload | ArtifactRef],
        load: Loader,
        handles: Callable[[ArtifactRef], Any] | None,
        limits: Limits,
        checkpoint: Callable[[], None] | None,
    ) -> None:
        super().__init__((), limits, checkpoint)
        self._payloads = _LazyPayloads(parts, load)
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


class _LazyPayloads(Sequence[Payload]):
    """Payloads whose artifacts are loaded at first use, each artifact once."""

    def __init__(self, parts: list[Payload | ArtifactRef], load: Loader) -> None:
        self._parts = parts
        self._load = load
        counts = Counter(part.hash for part in parts if isinstance(part, ArtifactRef))
        self._shared = {name for name, count in counts.items() if count > 1}
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
                # Read-only, so that each value is a copy in separate memory.
                data = self._data[ref.hash] = data.toreadonly()
        return data
