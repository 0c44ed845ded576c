"""A depth-first walk over nested values on a stack of its own, so that depth is a limit and never Python's recursion.

From a value to its skeleton and payloads: one walk, which knows the place it is at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from types import GeneratorType
from typing import Any

from yggdrasill.errors import CannotTravel
from yggdrasill.values.extensions import Opaque, extension_for, pack
from yggdrasill.values.payload import ArraySpec, Limits, Payload
from yggdrasill.values.scalars import LEAVES, is_unicode, to_base64
from yggdrasill.values.tensors import encode_array, encode_number, encode_tensor, is_array, is_number, is_tensor

__all__ = ["INLINE_BYTES", "Encoder", "Visit", "Walk"]

Visit = Generator[tuple[Any, Any], Any, Any]
"""What visiting a container is: it yields ``(step, part)``, is sent what became of the part, and returns the whole."""


class Walk:
    """One walk; ``steps`` are the indices and keys that lead from the root to the part being visited."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.steps: list[Any] = []
        self._items = 0

    def run(self, visit: Callable[[Any], Any], root: Any) -> Any:
        """What ``visit(root)`` returns, or, if that is a `Visit`, what it returns once all its parts are visited."""
        visits: list[Visit] = []
        part = root
        while True:
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


INLINE_BYTES = 512
"""Byte strings up to this length stay in the skeleton as base64."""


class _Step(str):
    """A part of a place that is no index or key, written as it is."""

    __slots__ = ()


class Encoder:
    """Encodes one value; with ``inline`` all payloads stand in the skeleton as base64. Use once."""

    def __init__(self, limits: Limits, *, inline: bool) -> None:
        self.payloads: list[Payload] = []
        self._walk = Walk(limits)
        self._limits = limits
        self._inline = inline
        self._bytes = 0
        self._open: list[int] = []
        # id -> (index, object): holding the object keeps its id from being given to another
        self._placed: dict[int, tuple[int, Any]] = {}
        self._in_key = False

    def encode(self, value: Any) -> Any:
        """The skeleton of ``value``; its payloads are in ``payloads`` afterwards."""
        return self._walk.run(self._visit, value)

    @property
    def place(self) -> str:
        """Where the walk is, as an expression: ``value["a"][3]``."""
        return "value" + "".join(step if isinstance(step, _Step) else f"[{_show(step)}]" for step in self._walk.steps)

    def _visit(self, value: Any) -> Any:
        kind = type(value)
        leaf = LEAVES.get(kind)
        if leaf is not None:
            return leaf(value)
        container = _CONTAINERS.get(kind)
        if container is not None:
            self._enter(value)
            return container(self, value)
        if kind is bytes or kind is bytearray:
            return self._bytes_of(value, f"${kind.__name__}")
        extension = extension_for(kind)
        if extension is not None:
            self._enter(value)
            return self._tagged(extension.tag, extension.version, pack(extension, value, self.place))
        return self._array(value)

    def _enter(self, value: Any) -> None:
        del self._open[len(self._walk.steps) :]
        if id(value) in self._open:
            raise self._refusal(value, "contains itself; break the cycle")
        self._open.append(id(value))

    def _array(self, value: Any) -> Any:
        if is_number(value):
            return {"$scalar": encode_number(value, self.place)}
        if self._in_key:
            raise self._refusal(value, "is no scalar; keys of dicts and items of sets are scalars and tuples of them")
        if is_tensor(value):
            return {"$tensor": self._put(value, lambda: encode_tensor(value, self.place))}
        if is_array(value):
            return {"$array": self._put(value, lambda: encode_array(value, self.place))}
        raise self._refusal(value, "has no lossless form; turn it into tensors and plain values, or teach the codec with register_type()")

    def _refusal(self, value: Any, why: str) -> CannotTravel:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return CannotTravel(f"{self.place} cannot travel: this {kind} {why}", place=self.place, type=kind)

    def _list(self, value: Iterable[Any]) -> Visit:
        items = tuple(value)
        self._walk.count(len(items))
        encoded: list[Any] = []
        for index, item in enumerate(items):
            leaf = LEAVES.get(type(item))
            encoded.append(leaf(item) if leaf is not None else (yield index, item))
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
            leaf = LEAVES.get(type(item))
            encoded["$" + key if key[:1] == "$" else key] = leaf(item) if leaf is not None else (yield key, item)
        return encoded

    def _pairs(self, items: tuple[tuple[Any, Any], ...]) -> Visit:
        encoded: list[Any] = []
        for index, (key, item) in enumerate(items):
            encoded.append((yield from self._key(f"<key {index}>", key)))
            encoded.append((yield key, item))
        return encoded

    def _set(self, value: Iterable[Any]) -> Visit:
        items = tuple(value)
        self._walk.count(len(items))
        encoded: list[Any] = []
        for item in items:
            encoded.append((yield from self._key("<item>", item)))  # noqa: PERF401 - a comprehension cannot yield
        # sorted, because the order of a set differs from process to process
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
        """The index of ``value``'s payload, the same for the same object; or the payload itself, inline."""
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


# outside the instance, which would hold itself and with it every encoded tensor until a collector comes by
_CONTAINERS: dict[type, Callable[[Encoder, Any], Visit]] = {
    list: Encoder._list,
    tuple: Encoder._tuple,
    dict: Encoder._dict,
    set: Encoder._set,
    frozenset: Encoder._set,
    Opaque: lambda encoder, value: encoder._tagged(value.tag, value.version, value.state),
}


def _show(key: Any) -> str:
    text = json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)
    return text if len(text) <= 60 else text[:57] + "..."
