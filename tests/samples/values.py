"""Generated values of every type that the codec supports, and exact equality."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from yggdrasill.values import Opaque
from yggdrasill.values.tensors import TORCH_DTYPE_NAMES

__all__ = ["arrays", "keys", "numbers", "same", "scalars", "tensors", "travelled", "trees"]

TORCH_DTYPES = [getattr(torch, name) for name in sorted(TORCH_DTYPE_NAMES) if getattr(torch, name, None) is not None]
#: Those whose values torch can print, as a failing property must.
COMMON_DTYPES = [
    dtype
    for dtype in TORCH_DTYPES
    if dtype.is_floating_point
    or dtype.is_complex
    or "bool" in str(dtype)
    or "int16" in str(dtype)
    or dtype.itemsize > 2
    or "int8" in str(dtype)
]
NUMPY_DTYPES = [
    *("|b1", "|i1", "|u1", "<i2", ">i2", "<i4", ">u4", "<i8", "<u8", "<f2", ">f4", "<f8", "<c8", ">c16"),
    *("<M8[ns]", ">M8[D]", "<m8[25s]", "|S5", "<U3", ">U2", "|V7", "|S0"),
]
STRUCTURED = np.dtype({"names": ["x", "box"], "formats": [">f4", ("<i2", (2, 3))], "offsets": [2, 8], "itemsize": 24})
FLOATS = st.one_of(st.floats(), st.binary(min_size=8, max_size=8).map(lambda bits: float(struct.unpack("<d", bits)[0])))
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)


@st.composite
def numbers(draw: st.DrawFn) -> Any:
    """Draw a numpy scalar."""
    dtype = np.dtype(draw(st.sampled_from([name for name in NUMPY_DTYPES if np.dtype(name).kind not in "SUV"])))
    data = draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
    return np.frombuffer(bytes([data[0] & 1]) if dtype.kind == "b" else data, dtype)[0]


def scalars() -> st.SearchStrategy[Any]:
    """Draw a Python or numpy scalar."""
    whole = st.one_of(st.integers(), st.integers(-(2**200), 2**200), st.sampled_from([2**53, 2**53 + 1, -(2**53), -(2**53) - 1]))
    texts = st.one_of(TEXTS, TEXTS.map(lambda text: "$" + text), TEXTS.map(np.str_), st.binary(max_size=8).map(np.bytes_))
    parts = st.one_of(st.none(), st.booleans(), whole, FLOATS, st.builds(complex, FLOATS, FLOATS), texts, st.binary(max_size=8))
    return st.one_of(parts, st.fractions(), numbers())


def keys() -> st.SearchStrategy[Any]:
    """Draw a dict key."""
    return st.recursive(scalars(), lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=2), max_leaves=3)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw a tensor of any dtype: dense in any order of axes, or a view with gaps or overlaps."""
    dtype = draw(st.sampled_from(COMMON_DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    data = bytearray(draw(st.binary(min_size=(count := math.prod(shape)) * dtype.itemsize, max_size=count * dtype.itemsize)))
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    flat = torch.frombuffer(data, dtype=torch.uint8).clone() if data else torch.empty(0, dtype=torch.uint8)
    tensor = flat.view(dtype).view(shape).permute(draw(st.permutations(range(len(shape)))))
    for axis in range(tensor.dim()):
        change = draw(st.sampled_from(["keep", "keep", "keep", "step", "first", "spread"]))
        if change == "step":
            tensor = tensor[(slice(None),) * axis + (slice(None, None, 2),)]
        elif change == "first":
            tensor = tensor[(slice(None),) * axis + (slice(0, 1),)]
        elif change == "spread" and tensor.shape[axis] == 1:
            tensor = tensor.expand([3 if place == axis else size for place, size in enumerate(tensor.shape)])
    return tensor


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Draw a numpy array of any dtype: in C or Fortran order, transposed, sliced or reversed."""
    dtype = draw(st.sampled_from([*map(np.dtype, NUMPY_DTYPES), STRUCTURED]))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype.kind == "b":
        data = bytearray(byte & 1 for byte in data)
    array: Any = np.ndarray(shape, dtype, buffer=data, order=draw(st.sampled_from(["C", "F"])))
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    for axis in range(array.ndim):
        array = array[(slice(None),) * axis + (slice(None, None, draw(st.sampled_from([1, 1, 1, 2, -1]))),)]
    return array


def trees() -> st.SearchStrategy[Any]:
    """Draw a tree of values of all kinds."""
    blobs = st.binary(min_size=510, max_size=520)
    leaves = st.one_of(scalars(), tensors(), arrays(), st.binary(max_size=9).map(bytearray), blobs, blobs.map(bytearray))
    names = st.one_of(TEXTS, TEXTS.map(lambda text: "$" + text))

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        plain = st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4), st.dictionaries(keys(), inner, max_size=4)
        )
        rare = st.one_of(
            st.sets(keys(), max_size=3),
            st.frozensets(keys(), max_size=3),
            st.dictionaries(keys(), inner, max_size=2).map(OrderedDict),
            st.builds(Opaque, st.text("abc.", min_size=1), st.integers(1, 9), inner),
        )
        return st.one_of(plain, st.lists(inner, max_size=4).map(tuple), rare)

    return st.recursive(leaves, grow, max_leaves=12)


def travelled(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the strides that ``tensor`` has after a transfer: unchanged if it is dense, else those of a torch copy without gaps."""
    return tuple(as_numbers(tensor).clone().stride())


def same(left: Any, right: Any) -> bool:
    """Return whether ``right`` is ``left`` after a lossless transfer: types, bits, order, dtypes, shapes and strides."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return same_tensor(left, right)
    if isinstance(left, np.ndarray):
        return same_array(left, right)
    if isinstance(left, (np.generic, float, complex)):
        return same_number(left, right)
    if isinstance(left, dict):
        return same([*left.keys(), *left.values()], [*right.keys(), *right.values()])
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (set, frozenset)):
        rest = list(right)
        return len(left) == len(right) and all(any(same(item, other) for other in rest) for item in left)
    if isinstance(left, Opaque):
        return same([left.tag, left.version, left.state], [right.tag, right.version, right.state])
    if isinstance(left, Fraction):
        return same([left.numerator, left.denominator], [right.numerator, right.denominator])
    return bool(left == right)


def same_number(left: Any, right: Any) -> bool:
    if isinstance(left, (np.str_, np.bytes_)):
        return [*left] == [*right]
    if isinstance(left, np.generic):
        return bool(left.dtype == right.dtype) and left.tobytes() == right.tobytes()
    return struct.pack("dd", left.real, left.imag) == struct.pack("dd", right.real, right.imag)


def same_tensor(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape or travelled(left) != tuple(right.stride()):
        return False
    return bits(left) == bits(right)


def bits(tensor: torch.Tensor) -> bytes:
    return as_numbers(tensor).numpy().tobytes()


def as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as integers, which torch copies without conversion for every dtype."""
    return tensor.detach().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[tensor.itemsize])


def same_array(left: Any, right: Any) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape or fields(left) != fields(right) or not right.flags.writeable:
        return False
    dense = left.flags.forc or sorted(map(abs, left.strides)) == sorted(left.copy("K").strides)
    return left.size == 0 or not dense or min(left.strides, default=0) < 0 or ordering(left) == ordering(right)


def fields(array: Any) -> bytes:
    """Return the bytes of the elements; padding between the fields of a structured dtype is zero."""
    if array.dtype.names is None:
        return bytes(array.tobytes())
    filled = np.zeros(array.shape, array.dtype)
    filled[...] = array
    return filled.tobytes()


def ordering(array: Any) -> list[int]:
    """Return the axes longer than one, from the slowest to the fastest."""
    return sorted((axis for axis in range(array.ndim) if array.shape[axis] > 1), key=lambda axis: -array.strides[axis])
