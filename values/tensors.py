"""Tensors and arrays as bytes: dtypes, memory order, and lossless conversion both ways."""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import CannotTravel, CodecError, UnsupportedVersion
from yggdrasill.values.payload import ALIGNMENT, ArraySpec, Payload, contiguous_strides, corrupt, is_dense
from yggdrasill.values.scalars import decode_text, encode_text, from_base64, to_base64

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "DTYPES",
    "decode_array",
    "decode_number",
    "decode_tensor",
    "dtype_name",
    "encode_array",
    "encode_number",
    "encode_tensor",
    "is_array",
    "is_number",
    "is_ownable",
    "is_tensor",
    "read_dtype",
    "tensor_dtype",
]

_SIMPLE = re.compile(r"[<>|](?:[biufc][0-9]{1,2}|[SUV][0-9]{1,9}|[Mm]8(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?)")
_EXTENDED = re.compile(r"([<>][fc][0-9]{2}):([0-9]{2,3})")
_DEEPEST = 16


def dtype_name(dtype: np.dtype[Any]) -> str | None:
    """The text of ``dtype``, or None if it has none that gives the same dtype back: objects, metadata, foreign types."""
    if dtype.hasobject or dtype.metadata:
        return None
    form = _form(dtype)
    name = form if isinstance(form, str) else json.dumps(form, separators=(",", ":"))
    try:
        return name if read_dtype(name) == dtype else None
    except CodecError:
        return None


def read_dtype(name: Any) -> np.dtype[Any]:
    """The dtype of `dtype_name`'s text; `CorruptData` for any other, `UnsupportedVersion` for one this machine does not have."""
    if type(name) is not str:
        raise corrupt("a dtype is no text")
    if not name.startswith("{"):
        return _simple(name)
    try:
        return _structured(json.loads(name), _DEEPEST)
    except CodecError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise corrupt(f"a structured dtype cannot be read ({error})") from error


def _form(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _form(base), "shape": list(shape)}
    if dtype.fields is not None:
        fields = [[name, _form(dtype.fields[name][0]), dtype.fields[name][1]] for name in dtype.names or ()]
        return {"fields": fields, "itemsize": dtype.itemsize}
    if dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16):
        # two machines may spell different numbers alike here, so the length of the mantissa is part of the name
        return f"{dtype.str}:{_mantissa(dtype)}"
    return dtype.str


def _mantissa(dtype: np.dtype[Any]) -> int:
    import numpy as np

    return int(np.finfo(dtype).nmant)


def _simple(name: str) -> np.dtype[Any]:
    import numpy as np

    extended = _EXTENDED.fullmatch(name)
    text = extended[1] if extended else name
    if not extended and not _SIMPLE.fullmatch(name):
        raise corrupt(f"{name[:60]!r} is no dtype of numpy")
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError) as error:
        if extended:
            raise _foreign(name) from error
        raise corrupt(f"{name[:60]!r} is no dtype of numpy") from error
    if extended and _mantissa(dtype) != int(extended[2]):
        raise _foreign(name)
    return dtype


def _foreign(name: str) -> UnsupportedVersion:
    return UnsupportedVersion(f"dtype {name!r} is an extended precision that this machine does not have; send float64 instead")


def _structured(form: Any, depth: int) -> np.dtype[Any]:
    import numpy as np

    if isinstance(form, str):
        return _simple(form)
    if not depth:
        raise corrupt(f"a structured dtype is nested deeper than {_DEEPEST}")
    if "base" in form:
        return np.dtype((_structured(form["base"], depth - 1), tuple(form["shape"])))
    fields = form["fields"]
    dtype: np.dtype[Any] = np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [_structured(inner, depth - 1) for _, inner, _ in fields],
            "offsets": [offset for _, _, offset in fields],
            "itemsize": form["itemsize"],
        }
    )
    return dtype


def is_array(value: object) -> bool:
    """Whether ``value`` is a numpy array of any kind; does not import numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_number(value: object) -> bool:
    """Whether ``value`` is a numpy scalar; does not import numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def encode_array(array: NDArray[Any], place: str) -> Payload:
    """``array`` as a view of its memory; views with gaps, overlaps or negative strides are copied to row-major order.

    Raises `CannotTravel` naming ``place`` for subclasses and for dtypes that hold objects.
    """
    import numpy as np

    if type(array) is not np.ndarray:
        raise _cannot(array, place, "is a subclass of ndarray; pass numpy.asarray(...) of it, or teach the codec with register_type()")
    name = _dtype_name(array, place)
    strides = _element_strides(array)
    if strides is None:
        array = _row_major(array)
        strides = contiguous_strides(array.shape)
    data = memoryview(b"")
    if array.nbytes:
        axes = sorted(range(array.ndim), key=lambda axis: -strides[axis] if array.shape[axis] != 1 else 0)
        data = array.transpose(axes).reshape(-1).view(np.uint8).data.toreadonly()
    order = None if strides == contiguous_strides(array.shape) else strides
    return Payload(ArraySpec(name, tuple(array.shape), array.nbytes, order), data)


def decode_array(payload: Payload) -> NDArray[Any]:
    """The array of ``payload``: a view of its memory if that is writable and aligned, a copy otherwise; always writable."""
    import numpy as np

    described = payload.description
    dtype = read_dtype(described.dtype)
    described.require(dtype.itemsize)
    buffer: Any = payload.data
    if not is_ownable(payload.data):
        buffer = np.empty(payload.data.nbytes, np.uint8)
        memoryview(buffer)[:] = payload.data
    strides = None if described.strides is None else tuple(stride * dtype.itemsize for stride in described.strides)
    try:
        array: NDArray[Any] = np.ndarray(described.shape, dtype, buffer=buffer, strides=strides)
    except (ValueError, OverflowError, TypeError) as error:
        raise corrupt(f"no array of shape {list(described.shape)} can be made ({error})") from error
    return array


def encode_number(number: np.generic, place: str) -> list[str | Any]:
    """A numpy scalar as ``[dtype, base64]``; texts, which numpy would strip of trailing zeros, as ``["str" | "bytes", ...]``."""
    import numpy as np

    if number.dtype.type is not type(number):
        raise _cannot(number, place, "is a subclass of a numpy scalar; teach the codec with register_type()")
    if isinstance(number, np.str_):
        return ["str", encode_text("".join(number))]
    if isinstance(number, np.bytes_):
        return ["bytes", to_base64(b"".join([number]))]
    name = _dtype_name(number, place)
    if number.dtype.names is None:
        return [name, to_base64(number.tobytes())]
    fields = np.zeros((), number.dtype)  # so that the gaps between fields hold no chance memory
    fields[()] = number
    return [name, to_base64(fields.tobytes())]


def decode_number(dtype_text: Any, body: Any) -> np.generic:
    """The numpy scalar that `encode_number` wrote."""
    import numpy as np

    if dtype_text == "str":
        text: np.generic = np.str_(decode_text(body))
        return text
    data = from_base64(body)
    if dtype_text == "bytes":
        plain: np.generic = np.bytes_(data)
        return plain
    dtype = read_dtype(dtype_text)
    if dtype.itemsize != len(data):
        raise corrupt(f"{len(data)} bytes are no numpy scalar of {dtype_text!r}")
    value = np.ndarray((), dtype, buffer=bytearray(data))[()]
    if not isinstance(value, np.generic):
        raise corrupt(f"{dtype_text!r} is no dtype of a scalar")
    return value


def is_ownable(data: memoryview) -> bool:
    """Whether a decoded value may live in ``data`` itself: it is writable and aligned like fresh memory."""
    import numpy as np

    return not data.readonly and data.nbytes > 0 and int(np.frombuffer(data, np.uint8).ctypes.data) % ALIGNMENT == 0


def _element_strides(array: NDArray[Any]) -> tuple[int, ...] | None:
    """Strides in elements if the memory is dense, else None."""
    itemsize = array.dtype.itemsize
    if not itemsize:
        return contiguous_strides(array.shape)
    if any(stride % itemsize for stride in array.strides):
        return None
    strides = tuple(stride // itemsize for stride in array.strides)
    return strides if is_dense(array.shape, strides) else None


def _row_major(array: NDArray[Any]) -> NDArray[Any]:
    """A copy without gaps between items, made on whole items, because numpy leaves chance memory between copied fields."""
    import numpy as np

    items = array.view(np.dtype((np.void, array.dtype.itemsize))) if array.dtype.names else array
    return np.array(items, order="C", copy=True).view(array.dtype)


def _dtype_name(value: NDArray[Any] | np.generic, place: str) -> str:
    name = dtype_name(value.dtype)
    if name is None:
        raise _cannot(value, place, f"has dtype {value.dtype!r}, which has no portable form; convert it with astype()")
    return name


def _cannot(value: Any, place: str, why: str) -> CannotTravel:
    kind = type(value).__name__
    return CannotTravel(f"{place} cannot travel: this {kind} {why}", place=place, type=kind)


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
        raise _cannot_tensor(tensor, place, f"cannot be read ({error})") from error
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
        raise _cannot_tensor(tensor, place, "is a subclass of Tensor with a state of its own; register_type() can teach the codec")
    if tensor.is_nested:
        raise _cannot_tensor(tensor, place, "is nested; send its parts as a list")
    if tensor.layout is not torch.strided:
        raise _cannot_tensor(tensor, place, f"has layout {tensor.layout}; call to_dense() first")
    if tensor.is_quantized:
        raise _cannot_tensor(tensor, place, "is quantized; call dequantize() or int_repr() first")
    if tensor.device.type == "meta":
        raise _cannot_tensor(tensor, place, "is on the meta device and has no data")
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise _cannot_tensor(tensor, place, f"has dtype {tensor.dtype}, which the format does not know")


def _cannot_tensor(tensor: Any, place: str, why: str) -> CannotTravel:
    return CannotTravel(f"{place} (a {type(tensor).__name__}) cannot travel: it {why}", place=place, type=type(tensor).__name__)
