"""Tensors, arrays and numpy scalars as bytes and back, without loss of dtype, bits or memory order.

torch and numpy are imported only inside functions that meet their values.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import CodecError, UnsupportedVersion
from yggdrasill.values.payload import (
    ALIGNMENT,
    ArraySpec,
    Payload,
    cannot_travel,
    contiguous_strides,
    corrupt,
    decode_text,
    encode_text,
    from_base64,
    is_dense,
    to_base64,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "TORCH_DTYPE_NAMES",
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

TORCH_DTYPE_NAMES = frozenset(
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex32 complex64 complex128 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 bits8 bits16 bits1x8 bits2x4 bits4x2 "
    "int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7".split()
)
"""torch's dtypes whose elements are whole bytes. Quantized dtypes are absent, because they carry scales beside the elements."""

_SIMPLE_DTYPE = re.compile(r"[<>|](?:[biufc][0-9]{1,2}|[SUV][0-9]{1,9}|[Mm]8(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?)")
_EXTENDED_DTYPE = re.compile(r"([<>][fc][0-9]{2}):([0-9]{2,3})")
_MAX_DTYPE_DEPTH = 16


# -- tensors ---------------------------------------------------------------------------------------------------------------


def is_tensor(value: object) -> bool:
    """Return whether ``value`` is a torch tensor of any kind; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def encode_tensor(tensor: torch.Tensor, location: str) -> Payload:
    """Return ``tensor``, detached and on the CPU, as a view of its memory.

    A view with gaps or overlaps is copied without them, with its axes in the order that torch's kernels give to results
    computed from such views. Raises `CannotTravel` naming ``location`` for subclasses, sparse, quantized, nested and meta tensors.
    """
    import torch

    _check_tensor(tensor, location)
    try:
        plain = _plain(tensor)
        if not is_dense(plain.shape, plain.stride()):
            plain = _without_gaps(plain)
        count = plain.numel()
        flat = torch.as_strided(plain, (count,), (1,), plain.storage_offset())
        if count and not plain.data_ptr():
            raise RuntimeError("it has no memory")
        data = flat.view(torch.uint8).numpy().data.toreadonly() if count else memoryview(b"")
        pinned = _has_devices() and plain.is_pinned()
    except RuntimeError as error:
        raise cannot_travel(tensor, location, f"cannot be read ({error})") from error
    shape, strides = tuple(plain.shape), tuple(plain.stride())
    nbytes = count * plain.element_size()
    name = str(plain.dtype).removeprefix("torch.")
    return Payload(ArraySpec(name, shape, nbytes, None if strides == contiguous_strides(shape) else strides), data, pinned=pinned)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor``, detached and on the CPU, with all bits in its memory.

    A tensor that is so already is returned as it is: in each operation of torch another thread may take the interpreter.
    """
    plain = tensor.detach() if tensor.requires_grad else tensor
    if plain.device.type != "cpu":
        plain = plain.cpu()
    return plain.resolve_conj().resolve_neg() if plain.is_conj() or plain.is_neg() else plain


def _has_devices() -> bool:
    """Return whether this process uses devices that can write to pinned memory."""
    torch = sys.modules.get("torch")
    return torch is not None and (torch.cuda.is_initialized() or torch.xpu.is_initialized())


def decode_tensor(payload: Payload) -> torch.Tensor:
    """Return the tensor of ``payload``: a view of its memory if that is writable and aligned, a copy otherwise.

    Raises `CorruptData` if the bytes do not fit the spec, and as `tensor_dtype`.
    """
    spec = payload.description
    dtype = tensor_dtype(spec)
    try:
        flat = _as_bytes(payload.data).view(dtype)
        if spec.strides is None:
            return flat.view(spec.shape)
        return flat.as_strided(spec.shape, spec.strides)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise corrupt(f"a tensor of shape {list(spec.shape)} cannot be made ({error})") from error


def tensor_dtype(spec: ArraySpec) -> torch.dtype:
    """Return torch's dtype for ``spec``.

    Raises `CorruptData` for an unknown dtype or a wrong size, `UnsupportedVersion` for a dtype that this torch lacks.
    """
    import torch

    if spec.dtype not in TORCH_DTYPE_NAMES:
        raise corrupt(f"{spec.dtype[:60]!r} is not a torch dtype")
    dtype: torch.dtype | None = getattr(torch, spec.dtype, None)
    if dtype is None:
        raise UnsupportedVersion(
            f"dtype {spec.dtype} is unknown to torch {torch.__version__}, the version in use; install the version of the sender"
        )
    spec.require(dtype.itemsize)
    return dtype


def is_ownable(data: memoryview) -> bool:
    """Return whether a decoded value may use ``data`` as its memory: writable and aligned to `ALIGNMENT`."""
    import numpy as np

    return not data.readonly and data.nbytes > 0 and int(np.frombuffer(data, np.uint8).ctypes.data) % ALIGNMENT == 0


def _check_tensor(tensor: torch.Tensor, location: str) -> None:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise cannot_travel(
            tensor, location, "is a subclass of Tensor; register its type with register_type(), or convert it to a plain Tensor"
        )
    if tensor.is_nested:
        raise cannot_travel(tensor, location, "is nested; send its parts as a list")
    if tensor.layout is not torch.strided:
        raise cannot_travel(tensor, location, f"has layout {tensor.layout}; call to_dense() first")
    if tensor.is_quantized:
        raise cannot_travel(tensor, location, "is quantized; call dequantize() or int_repr() first")
    if tensor.device.type == "meta":
        raise cannot_travel(tensor, location, "is on the meta device and has no data")
    if str(tensor.dtype).removeprefix("torch.") not in TORCH_DTYPE_NAMES:
        raise cannot_travel(tensor, location, f"has dtype {tensor.dtype}, which the format does not support")


def _without_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense copy, made on elements of the same width, because torch does not copy some of its rarest dtypes."""
    import torch

    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[tensor.element_size()]
    return tensor.view(width).clone(memory_format=torch.preserve_format).view(tensor.dtype)


def _as_bytes(data: memoryview) -> torch.Tensor:
    """Return ``data`` as a uint8 tensor: in place if `is_ownable`, else a copy in memory that torch allocates."""
    import torch

    if not data.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    if is_ownable(data):
        return torch.frombuffer(data, dtype=torch.uint8)
    return torch.empty(data.nbytes, dtype=torch.uint8).copy_(_readable(data))


def _readable(data: memoryview) -> torch.Tensor:
    """Return ``data`` as a uint8 tensor to read from while ``data`` lives.

    Built from the address, because torch warns about read-only buffers; a tensor, because torch copies with several threads.
    """
    import numpy as np
    import torch

    address = np.frombuffer(data, np.uint8).ctypes.data
    return torch.frombuffer((ctypes.c_ubyte * data.nbytes).from_address(address), dtype=torch.uint8)


# -- arrays and numpy scalars ----------------------------------------------------------------------------------------------


def is_array(value: object) -> bool:
    """Return whether ``value`` is a numpy array of any kind; does not import numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_number(value: object) -> bool:
    """Return whether ``value`` is a numpy scalar; does not import numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def encode_array(array: NDArray[Any], location: str) -> Payload:
    """Return ``array`` as a view of its memory; views with gaps, overlaps or negative strides are copied to row-major order.

    Raises `CannotTravel` naming ``location`` for subclasses and for dtypes that hold objects.
    """
    import numpy as np

    if type(array) is not np.ndarray:
        raise cannot_travel(array, location, "is a subclass of ndarray; pass numpy.asarray(...), or register its type with register_type()")
    name = _require_dtype_name(array, location)
    strides = _element_strides(array)
    if strides is None:
        array = _row_major(array)
        strides = contiguous_strides(array.shape)
    data = memoryview(b"")
    if array.nbytes:
        axes = sorted(range(array.ndim), key=lambda axis: -strides[axis] if array.shape[axis] != 1 else 0)
        data = array.transpose(axes).reshape(-1).view(np.uint8).data.toreadonly()
    order = None if strides == contiguous_strides(array.shape) else strides
    return Payload(ArraySpec(name, tuple(array.shape), array.nbytes, order), data, pinned=_has_devices())


def decode_array(payload: Payload) -> NDArray[Any]:
    """Return the array of ``payload``: a view of its memory if that is writable and aligned, a copy otherwise; always writable.

    Raises `CorruptData` if the bytes do not fit the spec, and as `read_dtype`.
    """
    import numpy as np

    spec = payload.description
    dtype = read_dtype(spec.dtype)
    spec.require(dtype.itemsize)
    buffer: Any = payload.data
    if not is_ownable(payload.data):
        buffer = np.empty(payload.data.nbytes, np.uint8)
        memoryview(buffer)[:] = payload.data
    strides = None if spec.strides is None else tuple(stride * dtype.itemsize for stride in spec.strides)
    try:
        array: NDArray[Any] = np.ndarray(spec.shape, dtype, buffer=buffer, strides=strides)
    except (ValueError, OverflowError, TypeError) as error:
        raise corrupt(f"an array of shape {list(spec.shape)} cannot be made ({error})") from error
    return array


def encode_number(number: np.generic, location: str) -> list[str | Any]:
    """Return a numpy scalar as ``[dtype, base64]``; texts, which numpy would strip of trailing zeros, as ``["str" | "bytes", ...]``."""
    import numpy as np

    if number.dtype.type is not type(number):
        raise cannot_travel(number, location, "is a subclass of a numpy scalar; register its type with register_type()")
    if isinstance(number, np.str_):
        return ["str", encode_text("".join(number))]
    if isinstance(number, np.bytes_):
        return ["bytes", to_base64(b"".join([number]))]
    name = _require_dtype_name(number, location)
    if number.dtype.names is None:
        return [name, to_base64(number.tobytes())]
    fields = np.zeros((), number.dtype)  # copied field by field, so that the gaps between fields are zeros
    fields[()] = number
    return [name, to_base64(fields.tobytes())]


def decode_number(dtype_text: Any, body: Any) -> np.generic:
    """Return the numpy scalar that `encode_number` wrote; raise `CorruptData` for anything else."""
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
        raise corrupt(f"{len(data)} bytes are not a numpy scalar of dtype {dtype_text!r}")
    value = np.ndarray((), dtype, buffer=bytearray(data))[()]
    if not isinstance(value, np.generic):
        raise corrupt(f"{dtype_text!r} is not the dtype of a scalar")
    return value


def _element_strides(array: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the strides in elements if the memory is dense, else None."""
    itemsize = array.dtype.itemsize
    if not itemsize:
        return contiguous_strides(array.shape)
    if any(stride % itemsize for stride in array.strides):
        return None
    strides = tuple(stride // itemsize for stride in array.strides)
    return strides if is_dense(array.shape, strides) else None


def _row_major(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy without gaps between items, made on whole items, because numpy leaves uninitialized memory between copied fields."""
    import numpy as np

    items = array.view(np.dtype((np.void, array.dtype.itemsize))) if array.dtype.names else array
    return np.array(items, order="C", copy=True).view(array.dtype)


def _require_dtype_name(value: NDArray[Any] | np.generic, location: str) -> str:
    name = dtype_name(value.dtype)
    if name is None:
        raise cannot_travel(value, location, f"has dtype {value.dtype!r}, which has no portable form; convert it with astype()")
    return name


# -- numpy dtypes as text --------------------------------------------------------------------------------------------------


def dtype_name(dtype: np.dtype[Any]) -> str | None:
    """Return the text of ``dtype``; None if no text gives the same dtype back, as for objects, metadata and third-party types."""
    if dtype.hasobject or dtype.metadata:
        return None
    form = _form(dtype)
    name = form if isinstance(form, str) else json.dumps(form, separators=(",", ":"))
    try:
        return name if read_dtype(name) == dtype else None
    except CodecError:
        return None


def read_dtype(name: Any) -> np.dtype[Any]:
    """Return the dtype of a `dtype_name` text.

    Raises `CorruptData` for any other text, `UnsupportedVersion` for an extended precision that this machine lacks.
    """
    if type(name) is not str:
        raise corrupt("a dtype is not text")
    if not name.startswith("{"):
        return _simple(name)
    try:
        return _structured(json.loads(name), _MAX_DTYPE_DEPTH)
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
        # Machines use one name for different extended precisions, so the length of the mantissa is part of the text.
        return f"{dtype.str}:{_mantissa(dtype)}"
    return dtype.str


def _simple(name: str) -> np.dtype[Any]:
    import numpy as np

    extended = _EXTENDED_DTYPE.fullmatch(name)
    text = extended[1] if extended else name
    if not extended and not _SIMPLE_DTYPE.fullmatch(name):
        raise corrupt(f"{name[:60]!r} is not a numpy dtype")
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError) as error:
        if extended:
            raise _unsupported_precision(name) from error
        raise corrupt(f"{name[:60]!r} is not a numpy dtype") from error
    if extended and _mantissa(dtype) != int(extended[2]):
        raise _unsupported_precision(name)
    return dtype


def _structured(form: Any, depth: int) -> np.dtype[Any]:
    import numpy as np

    if isinstance(form, str):
        return _simple(form)
    if not depth:
        raise corrupt(f"a structured dtype is nested deeper than {_MAX_DTYPE_DEPTH}")
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


def _mantissa(dtype: np.dtype[Any]) -> int:
    import numpy as np

    return int(np.finfo(dtype).nmant)


def _unsupported_precision(name: str) -> UnsupportedVersion:
    return UnsupportedVersion(f"dtype {name!r} is an extended precision that this machine does not support; send float64 instead")
