"""The data plane: payload bytes, the spec that describes them, references to them, their text in the skeleton, and the limits of values.

Knows neither torch nor numpy: shapes and strides are plain numbers, bytes are memoryviews.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from yggdrasill.errors import CannotTravel, CorruptData, InvalidArgument, LimitExceeded

__all__ = [
    "ALIGNMENT",
    "DEFAULT_LIMITS",
    "ArraySpec",
    "ArtifactRef",
    "EncodedValue",
    "Limits",
    "Payload",
    "blake3_hex",
    "cannot_travel",
    "check_equal_hashes",
    "contiguous_strides",
    "corrupt",
    "decode_tagged_text",
    "decode_text",
    "element_count",
    "encode_text",
    "from_base64",
    "is_dense",
    "is_unicode",
    "to_base64",
]

ALIGNMENT = 64
"""Bytes. Kernels may add in a different order in memory with another alignment, so decoded tensors start on the boundary that torch uses."""

_MIB = 1 << 20
_PARALLEL_FROM = 4 * _MIB
_SPEC_FIELDS = {"dtype", "shape", "strides", "nbytes", "hash"}
_MAX_SIZE = 1 << 63
_HASH = re.compile(r"[0-9a-f]{64}")
_STORE = re.compile(r"[0-9A-Za-z_.-]{1,64}")
_URL = re.compile(r"https?://[!-~]{1,4000}")


@dataclass(frozen=True)
class Limits:
    """Bounds on size and depth, checked before memory is allocated; what `encode` accepts, `decode` accepts under the same limits."""

    max_depth: int = 200
    """Nested containers; at most 240, so that the JSON stays within Python's recursion limit."""
    max_items: int = 2_000_000
    """List items, tuple items, dict entries and set items together."""
    max_header: int = 64 * _MIB
    """Bytes of an envelope's header: everything but the payloads."""
    max_payloads: int = 100_000
    """Tensors, arrays and long byte strings."""
    max_bytes: int = 64 * 1024 * _MIB
    """Bytes of all payloads together."""

    def __post_init__(self) -> None:
        if not 0 < self.max_depth <= 240:
            raise InvalidArgument(f"max_depth is {self.max_depth}; it must be between 1 and 240. Nest the value less deeply.")

    def check(self, name: str, found: int) -> None:
        """Raise `LimitExceeded` if ``found`` is above the limit ``name``."""
        bound: int = getattr(self, name)
        if found > bound:
            raise LimitExceeded(
                f"the value needs {name} = {found}, and the limit is {bound}; split the value, or pass Limits({name}=...) on both sides",
                limit=name,
                bound=bound,
                found=found,
            )


DEFAULT_LIMITS = Limits()

_MAX_EQUAL_HASHES = 64


def check_equal_hashes(keys: Sequence[Any]) -> None:
    """Raise `LimitExceeded` if more than 64 of ``keys`` have one hash, because a dict or set compares those in pairs.

    Python hashes integers and floats modulo 2**61 - 1, so a sender can choose as many numbers with one hash as it likes. Powers of two
    are the usual values that share hashes, at most 35 of the finite floats each. Raises TypeError for a key that is not hashable.
    """
    if len(keys) > _MAX_EQUAL_HASHES:
        most = max(Counter(map(hash, keys)).values())
        if most > _MAX_EQUAL_HASHES:
            raise LimitExceeded(
                f"{most} keys of a dict or items of a set have the same hash, and the limit is {_MAX_EQUAL_HASHES}. Use texts as keys.",
                limit="equal_hashes",
                bound=_MAX_EQUAL_HASHES,
                found=most,
            )


@dataclass(frozen=True)
class ArraySpec:
    """The type and memory layout of a payload's bytes.

    ``dtype`` is torch's name (``bfloat16``), numpy's string (``<f4``, ``>i2``; JSON for a structured one) or ``bytes``;
    ``strides`` counts elements and is None for row-major memory.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    strides: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return ``{"dtype", "shape", "nbytes"}`` and, unless row-major, ``"strides"``."""
        data: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape), "nbytes": self.nbytes}
        if self.strides is not None:
            data["strides"] = list(self.strides)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArraySpec:
        """Read the result of `to_json`; a ``hash`` beside it is allowed. Raise `CorruptData` for anything else."""
        if not _SPEC_FIELDS.issuperset(data):
            raise corrupt(f"a payload has the fields {sorted(map(str, data))}, expected {sorted(_SPEC_FIELDS)}")
        dtype, nbytes = data.get("dtype"), data.get("nbytes")
        if type(dtype) is not str or type(nbytes) is not int or not 0 <= nbytes < _MAX_SIZE:
            raise corrupt("a payload has no valid dtype or nbytes")
        shape = _sizes(data.get("shape"))
        strides = _sizes(data["strides"]) if "strides" in data else None
        if strides is not None and (len(strides) != len(shape) or not is_dense(shape, strides)):
            raise corrupt(f"strides {list(strides)} do not fill the shape {list(shape)}")
        return cls(dtype, shape, nbytes, strides)

    def require(self, itemsize: int) -> None:
        """Raise `CorruptData` unless ``shape`` takes ``nbytes`` at ``itemsize`` bytes per element."""
        if element_count(self.shape) * itemsize != self.nbytes:
            raise corrupt(f"{self.nbytes} bytes cannot be {self.dtype} of shape {list(self.shape)}")


@dataclass(eq=False)
class Payload:
    """The bytes of one tensor, array or byte string with their spec.

    ``data`` is a flat view of the memory itself, not a copy; it is read-only unless a decoder may take it over.
    ``hash`` is the BLAKE3 of the bytes in hex, if it was computed or promised. ``pinned`` memory may be written to by a device, which the
    processor does not see.
    """

    description: ArraySpec
    data: memoryview
    hash: str | None = field(default=None)
    pinned: bool = field(default=False)

    def __post_init__(self) -> None:
        if self.data.nbytes != self.description.nbytes:
            raise corrupt(f"a payload of {self.data.nbytes} bytes is described as {self.description.nbytes}")

    def digest(self) -> str:
        """Return the BLAKE3 of the bytes in hex, computed once."""
        if self.hash is None:
            self.hash = blake3_hex(self.data)
        return self.hash

    def verify(self) -> None:
        """Raise `CorruptData` if ``hash`` is set and is not the BLAKE3 of the bytes."""
        if self.hash is not None and blake3_hex(self.data) != self.hash:
            raise corrupt(f"the bytes of a payload ({self.description.dtype} {list(self.description.shape)}) do not match their checksum")


@dataclass(frozen=True)
class ArtifactRef:
    """One payload by reference: the BLAKE3 of its bytes, their spec, and where they are available.

    ``url`` serves the bytes over HTTP; ``store`` is the id of a store that had them when the reference was written.
    """

    hash: str
    description: ArraySpec
    url: str | None = None
    store: str | None = None

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.description.nbytes

    @property
    def dtype(self) -> str:
        """The dtype as `ArraySpec` spells it; ``bytes`` for a byte string."""
        return self.description.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.description.shape

    def to_json(self) -> dict[str, Any]:
        """Return the spec's fields with ``artifact`` and, if known, ``url`` and ``store``."""
        entry = {**self.description.to_json(), "artifact": self.hash}
        if self.url is not None:
            entry["url"] = self.url
        if self.store is not None:
            entry["store"] = self.store
        return entry

    @classmethod
    def from_json(cls, data: Any) -> ArtifactRef:
        """Read the result of `to_json`; raise `CorruptData` for anything else."""
        if type(data) is not dict:
            raise corrupt("a payload is not described by an object")
        rest = dict(data)
        hash, url, store = rest.pop("artifact", None), rest.pop("url", None), rest.pop("store", None)  # noqa: A001
        if type(hash) is not str or not _HASH.fullmatch(hash):
            raise corrupt("a payload's artifact is not named by a BLAKE3 hash")
        if url is not None and (type(url) is not str or not _URL.fullmatch(url)):
            raise corrupt(f"artifact {hash} has an invalid url")
        if store is not None and (type(store) is not str or not _STORE.fullmatch(store)):
            raise corrupt(f"artifact {hash} has an invalid store id")
        if "hash" in rest:
            raise corrupt(f"artifact {hash} has a second name")
        return cls(hash, ArraySpec.from_json(rest), url, store)


@dataclass(frozen=True, eq=False)
class EncodedValue:
    """A value in two planes: a JSON ``skeleton`` and the ``payloads`` it refers to by index."""

    skeleton: Any
    payloads: tuple[Payload, ...]


def element_count(shape: Sequence[int]) -> int:
    """Return the number of elements in ``shape``; 1 for ``()``."""
    return prod(shape)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the row-major strides of ``shape`` in elements; an empty axis counts as 1, as in torch."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether elements at ``strides`` (in elements) fill one block of memory without gaps or overlaps, in any axis order."""
    if 0 in shape:
        return all(stride >= 0 for stride in strides)
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return all(stride >= 0 for stride in strides)


def blake3_hex(data: memoryview) -> str:
    """Return the BLAKE3 of ``data`` in hex. Several threads are used from 4 MiB on; below, starting them costs more than it saves."""
    from blake3 import blake3

    threads = blake3.AUTO if data.nbytes >= _PARALLEL_FROM else 1
    return blake3(data, max_threads=threads).hexdigest()


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
        return decode_tagged_text(node["$str"])
    if type(node) is not str:
        raise corrupt("a text is not a string")
    return node


def decode_tagged_text(body: Any) -> str:
    """Return the text in the tag that `encode_text` writes."""
    try:
        return from_base64(body).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise corrupt("a tagged text is not UTF-8") from error


def is_unicode(value: str) -> bool:
    """Return whether ``value`` has a UTF-8 form, that is, no surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def corrupt(reason: str) -> CorruptData:
    """Return the error for data that no encoder writes; ``reason`` names the flaw."""
    return CorruptData(f"{reason}: the data was cut short or altered, or is not in Yggdrasill's format; fetch or write it again")


def cannot_travel(value: Any, location: str, reason: str) -> CannotTravel:
    """Return the error for ``value`` at ``location`` (such as ``value["a"][3]``); ``reason`` continues the sentence "it ..."."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return CannotTravel(f"{location} ({kind}) cannot travel: it {reason}", place=location, type=kind)


def _sizes(data: object) -> tuple[int, ...]:
    if type(data) is not list or not all(type(size) is int and 0 <= size < _MAX_SIZE for size in data):
        raise corrupt("a payload's shape or strides are not a list of sizes")
    return tuple(data)
