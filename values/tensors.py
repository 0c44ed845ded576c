"""torch tensors as payloads: every plain dtype, the strides of dense memory, and the tensors that cannot travel."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import CannotTravel, UnsupportedVersion
from yggdrasill.values.layout import contiguous_strides, is_dense
from yggdrasill.values.payload import ArraySpec, Payload, corrupt

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "decode_tensor", "encode_tensor", "is_tensor", "tensor_dtype"]

DTYPES = frozenset(
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex32 complex64 complex128 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 bits8 bits16 bits1x8 bits2x4 bits4x2 "
    "int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7".split()
)
"""torch's dtypes whose elements are whole bytes; the quantized ones carry scales beside them and are not here."""


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor of any kind; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def encode_tensor(tensor: torch.Tensor, place: str) -> Payload:
    """``tensor`` detached and on the CPU, as a view of its memory; views with gaps or overlaps are copied without them, their
    axes in the order that torch's own kernels give to what they make of such views.

    Raises `CannotTravel` naming ``place`` for subclasses, sparse, quantized, nested and meta tensors.
    """
    import torch

    _refuse(tensor, place)
    try:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        if not is_dense(plain.shape, plain.stride()):
            plain = _without_gaps(plain)
        count = plain.numel()
        flat = torch.as_strided(plain, (count,), (1,), plain.storage_offset())
        if count and not plain.data_ptr():
            raise RuntimeError("it has no memory")
        data = flat.view(torch.uint8).numpy().data.toreadonly() if count else memoryview(b"")
    except RuntimeError as error:
        raise _cannot(tensor, place, f"cannot be read ({error})") from error
    shape, strides = tuple(plain.shape), tuple(plain.stride())
    nbytes = count * plain.element_size()
    name = str(plain.dtype).removeprefix("torch.")
    return Payload(ArraySpec(name, shape, nbytes, None if strides == contiguous_strides(shape) else strides), data)


def decode_tensor(payload: Payload) -> torch.Tensor:
    """The tensor of ``payload``: a view of its memory if that is writable and aligned, a copy otherwise."""

    described = payload.description
    dtype = tensor_dtype(described)
    try:
        flat = _storage(payload.data).view(dtype)
        if described.strides is None:
            return flat.view(described.shape)
        return flat.as_strided(described.shape, described.strides)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise corrupt(f"no tensor of shape {list(described.shape)} can be made ({error})") from error


def tensor_dtype(described: ArraySpec) -> torch.dtype:
    """The dtype of a tensor so described; raises `CorruptData` if none can be, `UnsupportedVersion` for one torch lacks here."""
    import torch

    if described.dtype not in DTYPES:
        raise corrupt(f"{described.dtype[:60]!r} is no dtype of torch")
    dtype: torch.dtype | None = getattr(torch, described.dtype, None)
    if dtype is None:
        raise UnsupportedVersion(
            f"dtype {described.dtype} is unknown to torch {torch.__version__}, which runs here; install the torch of the side that wrote it"
        )
    described.require(dtype.itemsize)
    return dtype


def _storage(data: memoryview) -> torch.Tensor:
    """``data`` as uint8: in place if decoded values may own it, else a copy in memory of torch's own."""
    import torch

    from yggdrasill.values.arrays import is_ownable

    if not data.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    if is_ownable(data):
        return torch.frombuffer(data, dtype=torch.uint8)
    return torch.empty(data.nbytes, dtype=torch.uint8).copy_(_bytes_of(data))


def _bytes_of(data: memoryview) -> torch.Tensor:
    """``data`` as uint8 to read from only, while it lives. By its address, because torch warns of memory that is not writable;
    and as a tensor, because torch copies with several threads."""
    import numpy as np
    import torch

    address = np.frombuffer(data, np.uint8).ctypes.data
    return torch.frombuffer((ctypes.c_ubyte * data.nbytes).from_address(address), dtype=torch.uint8)


def _without_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """A dense copy, made on integers of the same width, because torch copies no elements of its rarest dtypes."""
    import torch

    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[tensor.element_size()]
    return tensor.view(width).clone(memory_format=torch.preserve_format).view(tensor.dtype)


def _refuse(tensor: torch.Tensor, place: str) -> None:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise _cannot(tensor, place, "is a subclass of Tensor with a state of its own; register_type() can teach the codec")
    if tensor.is_nested:
        raise _cannot(tensor, place, "is nested; send its parts as a list")
    if tensor.layout is not torch.strided:
        raise _cannot(tensor, place, f"has layout {tensor.layout}; call to_dense() first")
    if tensor.is_quantized:
        raise _cannot(tensor, place, "is quantized; call dequantize() or int_repr() first")
    if tensor.device.type == "meta":
        raise _cannot(tensor, place, "is on the meta device and has no data")
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise _cannot(tensor, place, f"has dtype {tensor.dtype}, which the format does not know")


def _cannot(tensor: Any, place: str, why: str) -> CannotTravel:
    return CannotTravel(f"{place} (a {type(tensor).__name__}) cannot travel: it {why}", place=place, type=type(tensor).__name__)
