"""Leaves of the skeleton: JSON's own scalars stand as themselves; what JSON would lose or bend gets a tag."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

from yggdrasill.values.payload import corrupt

__all__ = ["LEAVES", "SCALAR_TAGS", "decode_text", "encode_text", "from_base64", "is_unicode", "to_base64"]

_SAFE_INT = 1 << 53
_NAMED = {"inf": struct.pack(">d", math.inf), "-inf": struct.pack(">d", -math.inf), "nan": bytes.fromhex("7ff8000000000000")}
_NAME_OF_BITS = {bits: name for name, bits in _NAMED.items()}


def to_base64(data: bytes | bytearray | memoryview) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: object) -> bytes:
    """Read `to_base64`'s form; anything else is `CorruptData`."""
    if type(text) is not str:
        raise corrupt("binary data in the skeleton is no base64 text")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise corrupt(f"base64 text cannot be read ({error})") from error


def _itself(value: Any) -> Any:
    return value


def _encode_int(value: int) -> Any:
    # hexadecimal: linear in length, exempt from Python's digit limit, and safe from readers that hold numbers as float64
    return value if -_SAFE_INT <= value <= _SAFE_INT else {"$int": hex(value)}


def _decode_int(body: Any) -> int:
    try:
        return int(body, 16)
    except (TypeError, ValueError) as error:
        raise corrupt("a long integer is no hexadecimal text") from error


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value)
    return {"$float": _NAME_OF_BITS.get(bits) or bits.hex()}


def _decode_float(body: Any) -> float:
    if type(body) is not str:
        raise corrupt("a tagged float is no text")
    try:
        # a new object for each NaN: several NaNs are several keys of a dict only if they are not one object
        return float(struct.unpack(">d", _NAMED.get(body) or bytes.fromhex(body))[0])
    except (ValueError, struct.error) as error:
        raise corrupt(f"a tagged float reads {body[:40]!r}") from error


def encode_text(value: str) -> Any:
    """``value`` itself, or tagged base64 if it holds surrogates: JSON would merge a pair of them into one character."""
    if value.isascii() or is_unicode(value):
        return value
    return {"$str": to_base64(value.encode("utf-8", "surrogatepass"))}


def is_unicode(value: str) -> bool:
    """Whether ``value`` has a UTF-8 form: no surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _decode_text(body: Any) -> str:
    try:
        return from_base64(body).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise corrupt("a tagged text is no UTF-8") from error


def decode_text(node: Any) -> str:
    """The text of what `encode_text` gave."""
    if type(node) is dict and list(node) == ["$str"]:
        return _decode_text(node["$str"])
    if type(node) is not str:
        raise corrupt("a text is no text")
    return node


def _encode_complex(value: complex) -> Any:
    return {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}


def _decode_complex(body: Any) -> complex:
    if type(body) is not list or len(body) != 2:
        raise corrupt("a complex number is not made of two floats")
    real, imaginary = (_decode_part(part) for part in body)
    return complex(real, imaginary)


def _decode_part(part: Any) -> float:
    if type(part) is float and math.isfinite(part):
        return part
    if type(part) is dict and list(part) == ["$float"]:
        return _decode_float(part["$float"])
    raise corrupt("a complex number is not made of two floats")


LEAVES: dict[type, Callable[[Any], Any]] = {
    type(None): _itself,
    bool: _itself,
    int: _encode_int,
    float: _encode_float,
    str: encode_text,
    complex: _encode_complex,
}
"""Encoders of values that have no parts, by exact type."""

SCALAR_TAGS: dict[str, Callable[[Any], Any]] = {
    "$int": _decode_int,
    "$float": _decode_float,
    "$str": _decode_text,
    "$complex": _decode_complex,
}
"""Decoders of tagged scalars."""
