"""The public functions of the codec: values as two planes, as one byte string, as a file, as JSON, lossless to the bit.

A container that occurs twice in a value is decoded to equal copies; a tensor, array or byte string to one object.
"""

from __future__ import annotations

import mmap as mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yggdrasill.errors import MissingFile, StorageFailed
from yggdrasill.values.decoder import Decoder
from yggdrasill.values.encoder import Encoder
from yggdrasill.values.envelope import PREFIX_BYTES, Envelope, read_envelope
from yggdrasill.values.files import write_file
from yggdrasill.values.payload import DEFAULT_LIMITS, EncodedValue, Limits, Payload, corrupt

__all__ = ["decode", "dump", "dumps", "encode", "from_json", "iter_envelope", "load", "loads", "to_json"]


def encode(value: Any, *, limits: Limits = DEFAULT_LIMITS) -> EncodedValue:
    """Return ``value`` as a JSON skeleton and payloads, which are read-only views of the tensors' memory.

    Raises:
        CannotTravel: a part of ``value`` has no lossless form; the message names its type and location.
        LimitExceeded: ``value`` is larger or deeper than ``limits``.
    """
    encoder = Encoder(limits, inline=False)
    skeleton = encoder.encode(value)
    return EncodedValue(skeleton, tuple(encoder.payloads))


def decode(skeleton: Any, payloads: Sequence[Payload], *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Return the value that `encode` encoded. A payload in writable aligned memory becomes the tensor's memory; others are copied.

    Checksums are not verified; call `Payload.verify` for that.

    Raises:
        CorruptData: the data is not the result of `encode`.
        LimitExceeded: the data is larger or deeper than ``limits``.
        UnsupportedVersion: this torch or machine does not support a dtype.
    """
    return Decoder(payloads, limits).decode(skeleton)


def iter_envelope(value: Any, *, checksum: bool = True, limits: Limits = DEFAULT_LIMITS) -> Envelope:
    """Return the byte form of ``value`` as an iterable of chunks with their total length as ``nbytes``; raises as `encode`."""
    return Envelope(encode(value, limits=limits), checksum=checksum, limits=limits)


def dumps(value: Any, *, checksum: bool = True, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the byte form of ``value``; raises as `encode`. Without ``checksum`` altered payloads are not detected."""
    return b"".join(iter_envelope(value, checksum=checksum, limits=limits))


def loads(data: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS, adopt: bool = False) -> Any:
    """Return the value of `dumps`'s bytes. With ``adopt`` tensors may use the memory of ``data`` if it is writable; else they are copies.

    Raises:
        CorruptData: the data is truncated, altered, or not an envelope.
        LimitExceeded: the data is larger or deeper than ``limits``.
        UnsupportedVersion: a newer Yggdrasill wrote the data, or this torch or machine does not support a dtype.
    """
    encoded = read_envelope(data, limits=limits, adopt=adopt)
    return decode(encoded.skeleton, encoded.payloads, limits=limits)


def dump(value: Any, path: str | Path, *, checksum: bool = True, limits: Limits = DEFAULT_LIMITS) -> None:
    """Write ``value`` to the file ``path`` completely or not at all; raises as `encode`, and `StorageFailed`."""
    write_file(path, iter_envelope(value, checksum=checksum, limits=limits), durable=True)


def load(path: str | Path, *, mmap: bool = True, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Return the value in the file ``path``. With ``mmap`` tensors are copy-on-write maps: writing to one never changes the file.

    Windows does not allow a mapped file to be replaced while one of its tensors lives. Raises as `loads`, and `MissingFile`,
    `StorageFailed`.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            if source.stat().st_size < PREFIX_BYTES:
                raise corrupt(f"{source} has fewer than {PREFIX_BYTES} bytes")
            data: Any = mapping.mmap(file.fileno(), 0, access=mapping.ACCESS_COPY) if mmap else file.read()
    except FileNotFoundError as error:
        raise MissingFile(
            f"File not found: {str(source)!r}. Check the path, or write the file with dump() first.", path=str(source)
        ) from error
    except OSError as error:
        raise StorageFailed(
            f"Cannot read {str(source)!r}: {error.strerror or error}. Check the path and its permissions.", path=str(source)
        ) from error
    return loads(data, limits=limits, adopt=True)


def to_json(value: Any, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Return ``value`` as JSON values, tensors inline as base64; values that JSON keeps exactly stay readable. Raises as `encode`."""
    return Encoder(limits, inline=True).encode(value)


def from_json(data: Any, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Return the value of `to_json`'s result, also after a round trip through JSON text; raises as `decode`."""
    return decode(data, (), limits=limits)
