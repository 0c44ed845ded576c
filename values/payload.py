"""How large, how many and how deep a value may be, on the way out and on the way in alike.

Shapes and strides as numbers: which tensors fill their memory without gaps, and in what order. Knows neither torch nor numpy.

The data plane: the bytes of one tensor, array or byte string, and the words that describe them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded

__all__ = [
    "ALIGNMENT",
    "DEFAULT_LIMITS",
    "ArraySpec",
    "EncodedValue",
    "Limits",
    "Payload",
    "blake3_hex",
    "contiguous_strides",
    "corrupt",
    "element_count",
    "is_dense",
]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before memory is taken; what `encode` lets out under some limits, `decode` lets in under the same."""

    max_depth: int = 200
    """Containers inside one another; at most 240, so that the JSON stays within Python's recursion limit."""
    max_items: int = 2_000_000
    """List items, tuple items, dict entries and set items together."""
    max_header: int = 64 * MIB
    """Bytes of an envelope's header: everything but the payloads."""
    max_payloads: int = 100_000
    """Tensors, arrays and long byte strings."""
    max_bytes: int = 64 * 1024 * MIB
    """Bytes of all payloads together."""

    def __post_init__(self) -> None:
        if not 0 < self.max_depth <= 240:
            raise InvalidArgument(f"max_depth is {self.max_depth}; it must lie between 1 and 240; nest the value less deeply")

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


ALIGNMENT = 64
"""Bytes. Kernels may add in another order in memory aligned otherwise, so every decoded tensor starts on such a boundary, as torch's own do."""


def element_count(shape: Sequence[int]) -> int:
    """Elements in ``shape``; 1 for a scalar's ``()``."""
    return prod(shape)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of ``shape`` in elements; an empty axis counts as 1, as in torch."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements at ``strides`` (in elements) fill one block of memory, each place once; axes may stand in any order."""
    if 0 in shape:
        return all(stride >= 0 for stride in strides)
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return all(stride >= 0 for stride in strides)


_PARALLEL_FROM = 4 << 20
_FIELDS = {"dtype", "shape", "strides", "nbytes", "hash"}
_INT64 = 1 << 63


def corrupt(what: str) -> CorruptData:
    """The error for data that is not what an encoder writes; ``what`` names the flaw."""
    return CorruptData(f"{what}: the data was cut short or altered, or is not Yggdrasill's; fetch or write it again")


@dataclass(frozen=True)
class ArraySpec:
    """How to read a payload's bytes.

    ``dtype`` is torch's name (``bfloat16``), numpy's string (``<f4``, ``>i2``; JSON for a structured one) or ``bytes``;
    ``strides`` counts elements and is None for row-major memory.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    strides: tuple[int, ...] | None = None

    @property
    def memory_order(self) -> tuple[int, ...]:
        """The strides in elements, spelled out."""
        return contiguous_strides(self.shape) if self.strides is None else self.strides

    def to_json(self) -> dict[str, Any]:
        """``{"dtype", "shape", "nbytes"}`` and, unless row-major, ``"strides"``."""
        described: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape), "nbytes": self.nbytes}
        if self.strides is not None:
            described["strides"] = list(self.strides)
        return described

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArraySpec:
        """Read `to_json`'s form (a ``hash`` beside it is allowed); anything else is `CorruptData`."""
        if not _FIELDS.issuperset(data):
            raise corrupt(f"a payload is described by {sorted(map(str, data))}, expected {sorted(_FIELDS)}")
        dtype, nbytes = data.get("dtype"), data.get("nbytes")
        if type(dtype) is not str or type(nbytes) is not int or not 0 <= nbytes < _INT64:
            raise corrupt("a payload has no dtype or no size")
        shape = _sizes(data.get("shape"))
        strides = _sizes(data["strides"]) if "strides" in data else None
        if strides is not None and (len(strides) != len(shape) or not is_dense(shape, strides)):
            raise corrupt(f"strides {list(strides)} do not fill the shape {list(shape)}")
        return cls(dtype, shape, nbytes, strides)

    def require(self, itemsize: int) -> None:
        """Raise `CorruptData` unless ``shape`` holds ``nbytes`` at ``itemsize`` bytes an element."""
        if element_count(self.shape) * itemsize != self.nbytes:
            raise corrupt(f"{self.nbytes} bytes cannot be {self.dtype} of shape {list(self.shape)}")


def _sizes(data: object) -> tuple[int, ...]:
    if type(data) is not list or not all(type(size) is int and 0 <= size < _INT64 for size in data):
        raise corrupt("a payload's shape or strides are no list of sizes")
    return tuple(data)


@dataclass(eq=False)
class Payload:
    """Bytes with their description; ``data`` is a flat view of the memory itself, not a copy, and read-only unless a decoder may take it over.

    ``hash`` is the blake3 of the bytes in hex, if somebody computed or promised it.
    """

    description: ArraySpec
    data: memoryview
    hash: str | None = field(default=None)

    def __post_init__(self) -> None:
        if self.data.nbytes != self.description.nbytes:
            raise corrupt(f"a payload of {self.data.nbytes} bytes is described as {self.description.nbytes}")

    def digest(self) -> str:
        """The blake3 of the bytes in hex, computed once."""
        if self.hash is None:
            self.hash = blake3_hex(self.data)
        return self.hash

    def verify(self) -> None:
        """Raise `CorruptData` if the bytes are not those that ``hash`` promised."""
        if self.hash is not None and blake3_hex(self.data) != self.hash:
            raise corrupt(f"the bytes of a payload ({self.description.dtype} {list(self.description.shape)}) do not match their checksum")


@dataclass(frozen=True, eq=False)
class EncodedValue:
    """A value in two planes: a JSON ``skeleton`` and the ``payloads`` it refers to by index."""

    skeleton: Any
    payloads: tuple[Payload, ...]


def blake3_hex(data: memoryview) -> str:
    """The blake3 of ``data`` in hex; several threads from 4 MiB on, because below that starting them costs more than it gains."""
    from blake3 import blake3

    threads = blake3.AUTO if data.nbytes >= _PARALLEL_FROM else 1
    return blake3(data, max_threads=threads).hexdigest()
