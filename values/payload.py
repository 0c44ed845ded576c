"""The data plane: payload bytes, the spec that describes them, and the limits that every value is checked against.

Knows neither torch nor numpy: shapes and strides are plain numbers, bytes are memoryviews.
"""

from __future__ import annotations

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
    "EncodedValue",
    "Limits",
    "Payload",
    "blake3_hex",
    "cannot_travel",
    "check_equal_hashes",
    "contiguous_strides",
    "corrupt",
    "element_count",
    "is_dense",
]

ALIGNMENT = 64
"""Bytes. Kernels may add in a different order in memory with another alignment, so decoded tensors start on the boundary that torch uses."""

_MIB = 1 << 20
_PARALLEL_FROM = 4 * _MIB
_SPEC_FIELDS = {"dtype", "shape", "strides", "nbytes", "hash"}
_MAX_SIZE = 1 << 63


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
    ``hash`` is the BLAKE3 of the bytes in hex, if it was computed or promised.
    """

    description: ArraySpec
    data: memoryview
    hash: str | None = field(default=None)

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
