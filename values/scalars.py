"""Scalars in the skeleton: values that JSON keeps exactly are written as they are; values that JSON would lose or alter get a tag."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

from yggdrasill.values.payload import corrupt

__all__ = ["SCALAR_DECODERS", "SCALAR_ENCODERS", "decode_text", "encode_text", "from_base64", "is_unicode", "to_base64"]

_SAFE_INT = 1 << 53
_NAMED = {"inf": struct.pack(">d", math.inf), "-inf": struct.pack(">d", -math.inf), "nan": bytes.fromhex("7ff8000000000000")}
_NAME_OF_BITS = {bits: name for name, bits in _NAMED.items()}


def to_base64(data: bytes | bytearray | memoryview) -> str:
    """Return ``data`` as standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: object) -> bytes:
    """Return the bytes of a `to_base64` text; raise `CorruptData` for anything else."""
    if type(text) is not str:
        raise corrupt("binary data in the skeleton is not base64 text")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise corrupt(f"base64 text cannot be read ({error})") from error


def encode_text(value: str) -> Any:
    """Return ``value`` itself, or tagged base64 if it has surrogates: JSON would merge a pair of them into one character."""
    if value.isascii() or is_unicode(value):
        return value
    return {"$str": to_base64(value.encode("utf-8", "surrogatepass"))}


def decode_text(node: Any) -> str:
    """Return the text that `encode_text` wrote; raise `CorruptData` for anything else."""
    if type(node) is dict and list(node) == ["$str"]:
        return _decode_text(node["$str"])
    if type(node) is not str:
        raise corrupt("a text is not a string")
    return node


def is_unicode(value: str) -> bool:
    """Return whether ``value`` has a UTF-8 form, that is, no surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _decode_text(body: Any) -> str:
    try:
        return from_base64(body).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise corrupt("a tagged text is not UTF-8") from error


def _unchanged(value: Any) -> Any:
    return value


def _encode_int(value: int) -> Any:
    # Hexadecimal is linear in length, exempt from Python's digit limit, and safe from readers that keep numbers as float64.
    return value if -_SAFE_INT <= value <= _SAFE_INT else {"$int": hex(value)}


def _decode_int(body: Any) -> int:
    try:
        return int(body, 16)
    except (TypeError, ValueError) as error:
        raise corrupt("a long integer is not hexadecimal text") from error


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    bits = struct.pack(">d", value)
    return {"$float": _NAME_OF_BITS.get(bits) or bits.hex()}


def _decode_float(body: Any) -> float:
    if type(body) is not str:
        raise corrupt("a tagged float is not text")
    try:
        # a new object for each NaN: several NaNs are several keys of a dict only if they are not one object
        return float(struct.unpack(">d", _NAMED.get(body) or bytes.fromhex(body))[0])
    except (ValueError, struct.error) as error:
        raise corrupt(f"a tagged float is {body[:40]!r}") from error


def _encode_complex(value: complex) -> Any:
    return {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}


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


SCALAR_ENCODERS: dict[type, Callable[[Any], Any]] = {
    type(None): _unchanged,
    bool: _unchanged,
    int: _encode_int,
    float: _encode_float,
    str: encode_text,
    complex: _encode_complex,
}
"""Encoders of values without parts, by exact type."""

SCALAR_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$int": _decode_int,
    "$float": _decode_float,
    "$str": _decode_text,
    "$complex": _decode_complex,
}
"""Decoders of tagged scalars, by tag."""
