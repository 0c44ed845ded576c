"""Encoding: one depth-first walk over a value, which writes its skeleton and collects its payloads.

The walk uses an explicit stack, so that depth is checked against a limit and never runs into Python's recursion limit.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Generator, Iterable
from types import GeneratorType
from typing import Any

from yggdrasill.errors import CannotTravel
from yggdrasill.values.extensions import BY_CLASS, Opaque, pack
from yggdrasill.values.payload import ArraySpec, Limits, Payload, cannot_travel, check_equal_hashes, encode_text, is_unicode, to_base64
from yggdrasill.values.tensors import encode_array, encode_number, encode_tensor, is_array, is_number, is_tensor

__all__ = ["INLINE_BYTES", "NAMED_FLOATS", "SCALAR_ENCODERS", "Encoder", "Visit", "Walk"]

_CHECKPOINT_VISITS = 1000

INLINE_BYTES = 512
"""Byte strings up to this length stay in the skeleton as base64."""

Visit = Generator[tuple[Any, Any], Any, Any]
"""The visit of one container: yields ``(step, part)`` for each part, receives the result for the part, returns the result for the container."""


_SAFE_INT = 1 << 53
NAMED_FLOATS = {"inf": struct.pack(">d", math.inf), "-inf": struct.pack(">d", -math.inf), "nan": bytes.fromhex("7ff8000000000000")}
"""The bits of the floats that are written by name."""
_NAME_OF_BITS = {bits: name for name, bits in NAMED_FLOATS.items()}


def _unchanged(value: Any) -> Any:
    return value


def _encode_int(value: int) -> Any:
    # Hexadecimal is linear in length, exempt from Python's digit limit, and safe from readers that keep numbers as float64.
    return value if -_SAFE_INT <= value <= _SAFE_INT else {"$int": hex(value)}


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value)
    return {"$float": _NAME_OF_BITS.get(bits) or bits.hex()}


def _encode_complex(value: complex) -> Any:
    return {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}


SCALAR_ENCODERS: dict[type, Callable[[Any], Any]] = {
    type(None): _unchanged,
    bool: _unchanged,
    int: _encode_int,
    float: _encode_float,
    str: encode_text,
    complex: _encode_complex,
}
"""Encoders of values without parts, by exact type. Values that JSON keeps are written as they are, others get a tag."""


class Encoder:
    """Encodes one value; with ``inline`` all payloads are written into the skeleton as base64. Use once."""

    def __init__(self, limits: Limits, *, inline: bool) -> None:
        self.payloads: list[Payload] = []
        self._walk = Walk(limits)
        self._limits = limits
        self._inline = inline
        self._bytes = 0
        self._open: list[int] = []
        # id -> (index, object); the object is kept so that its id is not reused for another one.
        self._placed: dict[int, tuple[int, Any]] = {}
        self._in_key = False

    def encode(self, value: Any) -> Any:
        """Return the skeleton of ``value``; its payloads are in ``payloads`` afterwards."""
        return self._walk.run(self._visit, value)

    @property
    def location(self) -> str:
        """The part being visited as an expression: ``value["a"][3]``."""
        return "value" + "".join(step if isinstance(step, _Step) else f"[{_show(step)}]" for step in self._walk.steps)

    def _visit(self, value: Any) -> Any:
        kind = type(value)
        scalar = SCALAR_ENCODERS.get(kind)
        if scalar is not None:
            return scalar(value)
        container = _CONTAINERS.get(kind)
        if container is not None:
            self._enter(value)
            return container(self, value)
        if kind is bytes or kind is bytearray:
            return self._bytes_of(value, f"${kind.__name__}")
        extension = BY_CLASS.get(kind) or BY_CLASS.get(kind.__name__)
        if extension is not None:
            self._enter(value)
            return self._tagged(extension.tag, extension.version, pack(extension, value, self.location))
        return self._array(value)

    def _enter(self, value: Any) -> None:
        del self._open[len(self._walk.steps) :]
        if id(value) in self._open:
            raise self._refusal(value, "contains itself; break the cycle")
        self._open.append(id(value))

    def _array(self, value: Any) -> Any:
        if is_number(value):
            return {"$scalar": encode_number(value, self.location)}
        if self._in_key:
            raise self._refusal(value, "is not a scalar; keys of dicts and items of sets must be scalars or tuples of scalars")
        if is_tensor(value):
            return {"$tensor": self._put(value, lambda: encode_tensor(value, self.location))}
        if is_array(value):
            return {"$array": self._put(value, lambda: encode_array(value, self.location))}
        raise self._refusal(
            value, "has no lossless form; convert it to tensors and plain values, or register its type with register_type()"
        )

    def _refusal(self, value: Any, reason: str) -> CannotTravel:
        return cannot_travel(value, self.location, reason)

    def _list(self, value: Iterable[Any]) -> Visit:
        items = tuple(value)
        self._walk.count(len(items))
        encoded: list[Any] = []
        for index, item in enumerate(items):
            scalar = SCALAR_ENCODERS.get(type(item))
            encoded.append(scalar(item) if scalar is not None else (yield index, item))
        return encoded

    def _tuple(self, value: tuple[Any, ...]) -> Visit:
        return {"$tuple": (yield from self._list(value))}

    def _dict(self, value: dict[Any, Any]) -> Visit:
        items = tuple(value.items())
        self._walk.count(len(items))
        if not all(type(key) is str and (key.isascii() or is_unicode(key)) for key, _ in items):
            return {"$dict": (yield from self._pairs(items))}
        encoded: dict[str, Any] = {}
        for key, item in items:
            scalar = SCALAR_ENCODERS.get(type(item))
            encoded["$" + key if key[:1] == "$" else key] = scalar(item) if scalar is not None else (yield key, item)
        return encoded

    def _pairs(self, items: tuple[tuple[Any, Any], ...]) -> Visit:
        check_equal_hashes([key for key, _ in items])
        encoded: list[Any] = []
        for index, (key, item) in enumerate(items):
            encoded.append((yield from self._key(f"<key {index}>", key)))
            encoded.append((yield key, item))
        return encoded

    def _set(self, value: Iterable[Any]) -> Visit:
        items = tuple(value)
        self._walk.count(len(items))
        check_equal_hashes(items)
        encoded: list[Any] = []
        for item in items:
            encoded.append((yield from self._key("<item>", item)))  # noqa: PERF401 - a comprehension cannot yield
        # Sorted, because the order of a set differs from process to process.
        encoded.sort(key=json.dumps)
        return {f"${type(value).__name__}": encoded}

    def _key(self, step: str, key: Any) -> Visit:
        outer, self._in_key = self._in_key, True
        encoded = yield _Step(step), key
        self._in_key = outer
        return encoded

    def _tagged(self, tag: str, version: int, state: Any) -> Visit:
        self._walk.count(1)
        return {"$ext": [tag, version, (yield _Step(f"<{tag}>"), state)]}

    def _bytes_of(self, value: bytes | bytearray, tag: str) -> Any:
        if len(value) <= INLINE_BYTES or self._in_key:
            return {tag: to_base64(value)}
        data = memoryview(value).toreadonly()
        return {tag: self._put(value, lambda: Payload(ArraySpec("bytes", (len(value),), len(value)), data))}

    def _put(self, value: Any, make: Callable[[], Payload]) -> Any:
        """Return the index of ``value``'s payload, the same for the same object; inline, return the payload itself."""
        placed = self._placed.get(id(value))
        if placed is not None:
            return placed[0]
        payload = make()
        self._bytes += payload.data.nbytes
        self._limits.check("max_bytes", self._bytes)
        if self._inline:
            return {**payload.description.to_json(), "data": to_base64(payload.data)}
        index = len(self.payloads)
        self._limits.check("max_payloads", index + 1)
        self.payloads.append(payload)
        self._placed[id(value)] = (index, value)
        return index


# A module table, because bound methods in the instance would be a reference cycle that keeps every encoded tensor until a collection.
_CONTAINERS: dict[type, Callable[[Encoder, Any], Visit]] = {
    list: Encoder._list,
    tuple: Encoder._tuple,
    dict: Encoder._dict,
    set: Encoder._set,
    frozenset: Encoder._set,
    Opaque: lambda encoder, value: encoder._tagged(value.tag, value.version, value.state),
}


class Walk:
    """A depth-first walk; ``steps`` are the indices and keys from the root to the part being visited.

    ``checkpoint`` is called regularly and may raise.
    """

    def __init__(self, limits: Limits, checkpoint: Callable[[], None] | None = None) -> None:
        self._checkpoint = checkpoint
        self.limits = limits
        self.steps: list[Any] = []
        self._items = 0

    def run(self, visit: Callable[[Any], Any], root: Any) -> Any:
        """Return ``visit(root)``; if that is a `Visit`, return its result after all its parts are visited."""
        visits: list[Visit] = []
        part = root
        visited = 0
        while True:
            visited += 1
            if self._checkpoint is not None and not visited % _CHECKPOINT_VISITS:
                self._checkpoint()
            result = visit(part)
            if isinstance(result, GeneratorType):
                self.limits.check("max_depth", len(visits) + 1)
                visits.append(result)
                self.steps.append(None)
                result = None
            while visits:
                try:
                    self.steps[-1], part = visits[-1].send(result)
                    break
                except StopIteration as finished:
                    visits.pop()
                    self.steps.pop()
                    result = finished.value
            else:
                return result

    def count(self, items: int) -> None:
        """Count ``items`` against ``max_items``."""
        self._items += items
        self.limits.check("max_items", self._items)


class _Step(str):
    """A step that is not an index or key; it is shown as it is."""

    __slots__ = ()


def _show(key: Any) -> str:
    try:
        text = json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)
    except ValueError:  # an integer above Python's digit limit
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."
