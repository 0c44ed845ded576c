"""The byte form of a value, for files and messages: a fixed prefix, a JSON header, and the aligned payloads (see `README.md`)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from yggdrasill.errors import CodecError, InvalidArgument, LimitExceeded, UnsupportedVersion
from yggdrasill.values.payload import ALIGNMENT, DEFAULT_LIMITS, ArraySpec, EncodedValue, Limits, Payload, corrupt

__all__ = ["FORMAT_VERSION", "MAGIC", "PREFIX_BYTES", "Envelope", "read_envelope"]

MAGIC = b"\x89YGG\r\n\x1a\n"
"""The first eight bytes; their line ends reveal a transfer in text mode, as in PNG."""
FORMAT_VERSION = 1
PREFIX_BYTES = 64

_PREFIX = struct.Struct("<8sIIQQ")
_DIGEST = slice(_PREFIX.size, PREFIX_BYTES)
_CHUNK = 1 << 20
_PUNCTUATION_PER_ITEM = 4


class Envelope:
    """The bytes of an encoded value as a sequence of chunks; may be iterated repeatedly. The chunks are views and are never joined.

    ``nbytes`` is the length of all chunks together. With ``checksum`` the header has the BLAKE3 of each payload, so the memory
    of the payloads must not change until the last chunk is written.
    """

    def __init__(self, encoded: EncodedValue, *, checksum: bool = True, limits: Limits = DEFAULT_LIMITS) -> None:
        self.encoded = encoded
        self.checksum = checksum
        header = self._header(limits)
        sizes = [len(header), *(payload.data.nbytes for payload in encoded.payloads)]
        self.nbytes = PREFIX_BYTES + sum(_padded(size) for size in sizes[:-1]) + sizes[-1]
        prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(header), self.nbytes)
        self._head = prefix + _digest(prefix, header) + header

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        size = len(self._head)
        for payload in self.encoded.payloads:
            if size % ALIGNMENT:
                yield bytes(-size % ALIGNMENT)
            size = payload.data.nbytes
            for start in range(0, size, _CHUNK):
                yield payload.data[start : start + _CHUNK]

    def _header(self, limits: Limits) -> bytes:
        entries = []
        for payload in self.encoded.payloads:
            entry = payload.description.to_json()
            if self.checksum:
                entry["hash"] = payload.digest()
            entries.append(entry)
        try:
            text = json.dumps(
                {"payloads": entries, "value": self.encoded.skeleton}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            )
            header = text.encode("utf-8")
        except RecursionError as error:
            raise _too_deep() from error
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"the skeleton is not the result of encode() ({error}); pass encode(value)") from error
        _check_header(header, limits)
        return header


def read_envelope(data: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS, adopt: bool = False) -> EncodedValue:
    """Split ``data`` into skeleton and payloads, which are views of ``data``; payloads with a checksum are verified.

    The views are read-only, so that decoded tensors are copies. With ``adopt`` the views are writable if ``data`` is, and decoded
    tensors may use its memory.

    Raises `CorruptData`, `LimitExceeded` or `UnsupportedVersion`, before memory is allocated for sizes that the data claims.
    """
    try:
        view = memoryview(data).cast("B") if adopt else memoryview(data).cast("B").toreadonly()
    except TypeError as error:
        raise InvalidArgument(f"expected contiguous bytes, got {type(data).__name__}; pass the result of dumps()") from error
    header = _read_prefix(view, limits)
    content = _parse(bytes(header), limits)
    entries = content.get("payloads") if type(content) is dict and len(content) == 2 and "value" in content else None
    if type(entries) is not list:
        raise corrupt("the header is not an object with payloads and value")
    limits.check("max_payloads", len(entries))
    payloads = tuple(_split(view, PREFIX_BYTES + header.nbytes, entries, limits))
    for payload in payloads:
        payload.verify()
    return EncodedValue(content["value"], payloads)


def _read_prefix(view: memoryview, limits: Limits) -> memoryview:
    """Return the header's bytes after their checksum is verified."""
    if bytes(view[: len(MAGIC)]) != MAGIC[: view.nbytes]:
        raise corrupt("the data does not start with the envelope's magic bytes")
    if view.nbytes < PREFIX_BYTES:
        raise corrupt(f"the data ends after {view.nbytes} bytes")
    _, version, reserved, header_bytes, total = _PREFIX.unpack(view[: _PREFIX.size])
    if version != FORMAT_VERSION:
        raise UnsupportedVersion(
            f"the data has format version {version}, and this Yggdrasill reads version {FORMAT_VERSION}; update the older side",
            version=version,
        )
    limits.check("max_header", header_bytes)
    if total != view.nbytes or PREFIX_BYTES + header_bytes > total:
        raise corrupt(f"the data has {view.nbytes} bytes, and its prefix declares {total}")
    header = view[PREFIX_BYTES : PREFIX_BYTES + header_bytes]
    if reserved or _digest(view[: _PREFIX.size], header) != view[_DIGEST]:
        raise corrupt("the header does not match its checksum")
    return header


def _parse(header: bytes, limits: Limits) -> Any:
    _check_header(header, limits)
    try:
        return json.loads(header.decode("utf-8"), parse_constant=_no_constant, parse_int=_short_int)
    except CodecError:
        raise
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise corrupt(f"the header cannot be read ({error})") from error


def _split(view: memoryview, position: int, entries: list[Any], limits: Limits) -> Iterator[Payload]:
    """Yield the payloads in order; ``position`` is the end of the header."""
    total = 0
    for entry in entries:
        if type(entry) is not dict:
            raise corrupt("a payload is not described by an object")
        spec = ArraySpec.from_json(entry)
        total += spec.nbytes
        limits.check("max_bytes", total)
        start = _padded(position)
        if any(view[position:start]):
            raise corrupt("the padding before a payload is not zero")
        position = start + spec.nbytes
        if position > view.nbytes:
            raise corrupt(f"a payload of {spec.nbytes} bytes ends after the end of the data")
        yield Payload(spec, view[start:position], _checksum_of(entry))
    if position != view.nbytes:
        raise corrupt("the data continues after the last payload")


def _checksum_of(entry: dict[Any, Any]) -> str | None:
    if "hash" not in entry:
        return None
    digest = entry["hash"]
    if type(digest) is not str or len(digest) != 64:
        raise corrupt("a payload's checksum is not a BLAKE3 hash")
    return digest


def _check_header(header: bytes, limits: Limits) -> None:
    """Check the header's size before it is parsed: every list, dict and item of JSON takes one of these punctuation marks."""
    limits.check("max_header", len(header))
    marks = sum(map(header.count, (b",", b"[", b"{")))
    if marks > _PUNCTUATION_PER_ITEM * limits.max_items:
        limits.check("max_items", marks // _PUNCTUATION_PER_ITEM + 1)


def _digest(prefix: bytes | memoryview, header: bytes | memoryview) -> bytes:
    from blake3 import blake3

    return blake3(prefix).update(header).digest()


def _padded(position: int) -> int:
    return position + -position % ALIGNMENT


def _no_constant(name: str) -> Any:
    raise corrupt(f"the header has a bare {name}")


def _short_int(digits: str) -> int:
    if len(digits) > 20:
        raise corrupt("the header has a bare number that is too long")
    return int(digits)


def _too_deep() -> LimitExceeded:
    return LimitExceeded("the value is nested deeper than the remaining stack allows; nest it less deeply, or call from a shallower stack")
