"""Reading wires; every one is taken for hostile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, overload

from yggdrasill.values.artifact_refs import ArtifactRef, Loader
from yggdrasill.values.decoder import Decoder
from yggdrasill.values.limits import Limits
from yggdrasill.values.payload import ArraySpec, Payload, corrupt
from yggdrasill.values.scalars import from_base64
from yggdrasill.values.tensors import tensor_dtype

__all__ = ["WireDecoder", "read_payloads"]


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
