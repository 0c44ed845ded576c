"""Decoding: from a skeleton and payloads to the value. Every skeleton is treated as hostile input."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

from yggdrasill.values.encoder import NAMED_FLOATS, Visit, Walk
from yggdrasill.values.extensions import unpack
from yggdrasill.values.payload import ArraySpec, Limits, Payload, check_equal_hashes, corrupt, decode_tagged_text, from_base64
from yggdrasill.values.tensors import decode_array, decode_number, decode_tensor

__all__ = ["Decoder"]

# Types that are decoded to themselves.
_PLAIN = frozenset({str, int, bool, type(None)})


def _decode_int(body: Any) -> int:
    try:
        return int(body, 16)
    except (TypeError, ValueError) as error:
        raise corrupt("a long integer is not hexadecimal text") from error


def _decode_float(body: Any) -> float:
    if type(body) is not str:
        raise corrupt("a tagged float is not text")
    try:
        # a new object for each NaN: several NaNs are several keys of a dict only if they are not one object
        return float(struct.unpack(">d", NAMED_FLOATS.get(body) or bytes.fromhex(body))[0])
    except (ValueError, struct.error) as error:
        raise corrupt(f"a tagged float is {body[:40]!r}") from error


def _decode_complex(body: Any) -> complex:
    if type(body) is not list or len(body) != 2:
        raise corrupt("a complex number is not two floats")
    real, imaginary = (_decode_part(part) for part in body)
    return complex(real, imaginary)


def _decode_part(part: Any) -> float:
    if type(part) is float and math.isfinite(part):
        return part
    if type(part) is dict and list(part) == ["$float"]:
        return _decode_float(part["$float"])
    raise corrupt("a complex number is not two floats")


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "$int": _decode_int,
    "$float": _decode_float,
    "$str": decode_tagged_text,
    "$complex": _decode_complex,
}
"""Decoders of tagged scalars, by tag."""


class Decoder:
    """Decodes one skeleton; references to one payload under the same tag decode to one object. ``checkpoint`` may end it. Use once."""

    def __init__(self, payloads: Sequence[Payload], limits: Limits, checkpoint: Callable[[], None] | None = None) -> None:
        limits.check("max_payloads", len(payloads))
        limits.check("max_bytes", sum(payload.data.nbytes for payload in payloads))
        self._payloads = payloads
        self._walk = Walk(limits, checkpoint)
        self._in_key = False
        self._made: dict[tuple[str, int], Any] = {}

    def decode(self, skeleton: Any) -> Any:
        """Return the value of ``skeleton``."""
        return self._walk.run(self._visit, skeleton)

    def _visit(self, node: Any) -> Any:
        kind = type(node)
        if kind in _PLAIN:
            return node
        if kind is float:
            if not math.isfinite(node):
                raise corrupt(f"the skeleton has a bare {node}")
            return node
        if kind is list:
            return self._list(node)
        if kind is not dict:
            raise corrupt(f"the skeleton has a {kind.__name__}, which is not JSON")
        tag = next(iter(node)) if len(node) == 1 else ""
        if type(tag) is str and tag[:1] == "$" and tag[1:2] != "$":
            return self._decode_tag(tag, node[tag])
        return self._dict(node)

    def _decode_tag(self, tag: str, body: Any) -> Any:
        scalar = _SCALARS.get(tag)
        if scalar is not None:
            return scalar(body)
        container = _CONTAINERS.get(tag)
        if container is not None:
            return container(self, body)
        maker = _MAKERS.get(tag)
        if maker is not None:
            if self._in_key and tag in {"$tensor", "$array"}:
                raise corrupt("a tensor is a key of a dict or an item of a set")
            return self._make(tag, maker, body)
        if tag == "$scalar":
            return self._number(body)
        raise corrupt(f"unknown tag {tag[:40]!r} in the skeleton")

    def _list(self, body: Any) -> Visit:
        if type(body) is not list:
            raise corrupt("the items of a container are not a list")
        self._walk.count(len(body))
        items: list[Any] = []
        for index, node in enumerate(body):
            items.append(node if type(node) in _PLAIN else (yield index, node))
        return items

    def _tuple(self, body: Any) -> Visit:
        return tuple((yield from self._list(body)))

    def _dict(self, body: dict[Any, Any]) -> Visit:
        self._walk.count(len(body))
        decoded: dict[str, Any] = {}
        for key, node in body.items():
            if type(key) is not str or (key[:1] == "$" and key[1:2] != "$"):
                raise corrupt(f"the skeleton has a stray key {str(key)[:40]!r}")
            decoded[key[1:] if key[:1] == "$" else key] = node if type(node) in _PLAIN else (yield key, node)
        return decoded

    def _pairs(self, body: Any) -> Visit:
        if type(body) is not list or len(body) % 2:
            raise corrupt("a dict is not a list of keys and values")
        self._walk.count(len(body) // 2)
        keys: list[Any] = []
        items: list[Any] = []
        for index in range(0, len(body), 2):
            outer, self._in_key = self._in_key, True
            keys.append((yield index, body[index]))
            self._in_key = outer
            items.append((yield index + 1, body[index + 1]))
        try:
            check_equal_hashes(keys)
            decoded = dict(zip(keys, items, strict=True))
        except TypeError as error:
            raise corrupt(f"a key of a dict is not hashable ({error})") from error
        if len(decoded) * 2 != len(body):
            raise corrupt("a dict has a key twice")
        return decoded

    def _set(self, body: Any, kind: Callable[[list[Any]], Any]) -> Visit:
        outer, self._in_key = self._in_key, True
        items = yield from self._list(body)
        self._in_key = outer
        try:
            check_equal_hashes(items)
            decoded = kind(items)
        except TypeError as error:
            raise corrupt(f"an item of a set is not hashable ({error})") from error
        if len(decoded) != len(items):
            raise corrupt("a set has an item twice")
        return decoded

    def _tagged(self, body: Any) -> Visit:
        if type(body) is not list or len(body) != 3 or type(body[0]) is not str or type(body[1]) is not int:
            raise corrupt("a tagged value is not a list of tag, version and state")
        self._walk.count(1)
        return unpack(body[0], body[1], (yield 2, body[2]))

    def _number(self, body: Any) -> Any:
        if type(body) is not list or len(body) != 2:
            raise corrupt("a numpy scalar is not a list of dtype and data")
        return decode_number(body[0], body[1])

    def _make(self, tag: str, maker: Callable[[Payload], Any], body: Any) -> Any:
        if type(body) is str and tag in {"$bytes", "$bytearray"}:
            data = from_base64(body)
            return data if tag == "$bytes" else bytearray(data)
        if type(body) is dict:
            return maker(_inline(body))
        if type(body) is not int or not 0 <= body < len(self._payloads):
            raise corrupt(f"the skeleton refers to payload {str(body)[:40]}; the number of payloads is {len(self._payloads)}")
        if (tag, body) not in self._made:
            self._made[tag, body] = maker(self._payloads[body])
        return self._made[tag, body]


def _inline(body: dict[Any, Any]) -> Payload:
    fields = dict(body)
    data = from_base64(fields.pop("data", None))
    return Payload(ArraySpec.from_json(fields), memoryview(data))


def _byte_string(payload: Payload) -> memoryview:
    if payload.description.dtype != "bytes":
        raise corrupt(f"a payload of {payload.description.dtype[:40]} is used as a byte string")
    payload.description.require(1)
    return payload.data


# Module tables, because bound methods in the instance would be a reference cycle that keeps every decoded tensor until a collection.
_CONTAINERS: dict[str, Callable[[Decoder, Any], Visit]] = {
    "$tuple": Decoder._tuple,
    "$dict": Decoder._pairs,
    "$set": lambda decoder, body: decoder._set(body, set),
    "$frozenset": lambda decoder, body: decoder._set(body, frozenset),
    "$ext": Decoder._tagged,
}
_MAKERS: dict[str, Callable[[Payload], Any]] = {
    "$tensor": decode_tensor,
    "$array": decode_array,
    "$bytes": lambda payload: bytes(_byte_string(payload)),
    "$bytearray": lambda payload: bytearray(_byte_string(payload)),
}
