"""Values out and in: as two planes, as one run of bytes, as a file, as JSON. What comes out equals what went in, bit for bit.

Containers that occur twice in a value come back as equal copies; tensors, arrays and byte strings as one object.
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
    """``value`` as a JSON skeleton and payloads, which are read-only views of the tensors' own memory.

    Raises:
        CannotTravel: a part of ``value`` has no lossless form; the message names its type and place.
        LimitExceeded: ``value`` is larger or deeper than ``limits``.
    """
    encoder = Encoder(limits, inline=False)
    skeleton = encoder.encode(value)
    return EncodedValue(skeleton, tuple(encoder.payloads))


def decode(skeleton: Any, payloads: Sequence[Payload], *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value of what `encode` gave. A payload in writable aligned memory becomes the tensor's memory; others are copied.

    Checksums are not verified here: `Payload.verify` does it.

    Raises:
        CorruptData: no encoder wrote this.
        LimitExceeded: larger or deeper than ``limits``.
        UnsupportedVersion: a dtype that this torch or machine does not have.
    """
    return Decoder(payloads, limits).decode(skeleton)


def iter_envelope(value: Any, *, checksum: bool = True, limits: Limits = DEFAULT_LIMITS) -> Envelope:
    """The chunks of ``value``'s byte form, to be iterated, with their total length as ``nbytes``; raises as `encode`."""
    return Envelope(encode(value, limits=limits), checksum=checksum, limits=limits)


def dumps(value: Any, *, checksum: bool = True, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The byte form of ``value`` in one piece; raises as `encode`. Without ``checksum`` altered payloads go unnoticed."""
    return b"".join(iter_envelope(value, checksum=checksum, limits=limits))


def loads(data: bytes | bytearray | memoryview, *, limits: Limits = DEFAULT_LIMITS, adopt: bool = False) -> Any:
    """The value of `dumps`'s bytes. With ``adopt`` tensors may live in ``data`` itself if it is writable; else they are copies.

    Raises:
        CorruptData: truncated, altered, or no envelope.
        LimitExceeded: larger or deeper than ``limits``.
        UnsupportedVersion: written by a newer Yggdrasill, or with a dtype that this torch or machine does not have.
    """
    encoded = read_envelope(data, limits=limits, adopt=adopt)
    return decode(encoded.skeleton, encoded.payloads, limits=limits)


def dump(value: Any, path: str | Path, *, checksum: bool = True, limits: Limits = DEFAULT_LIMITS) -> None:
    """Write ``value`` to the file ``path``, whole or not at all; raises as `encode`, and `StorageFailed`."""
    write_file(path, iter_envelope(value, checksum=checksum, limits=limits), durable=True)


def load(path: str | Path, *, mmap: bool = True, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value in the file ``path``. With ``mmap`` tensors are copy-on-write maps of the file: writing to one changes no file.

    Windows keeps a mapped file from being replaced while a tensor of it lives. Raises as `loads`, and `MissingFile`,
    `StorageFailed`.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            if source.stat().st_size < PREFIX_BYTES:
                raise corrupt(f"{source} has fewer than {PREFIX_BYTES} bytes")
            data: Any = mapping.mmap(file.fileno(), 0, access=mapping.ACCESS_COPY) if mmap else file.read()
    except FileNotFoundError as error:
        raise MissingFile(f"there is no file {str(source)!r}; check the path, or write it with dump() first", path=str(source)) from error
    except OSError as error:
        raise StorageFailed(
            f"cannot read {str(source)!r}: {error.strerror or error}; check the path and its permissions", path=str(source)
        ) from error
    return loads(data, limits=limits, adopt=True)


def to_json(value: Any, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """``value`` as JSON values, tensors inline as base64; what JSON holds without loss stands as itself. Raises as `encode`."""
    return Encoder(limits, inline=True).encode(value)


def from_json(data: Any, *, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value of what `to_json` gave, also after a round trip through JSON text; raises as `decode`."""
    return decode(data, (), limits=limits)
