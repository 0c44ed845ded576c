"""numpy arrays and scalars as payloads: dtype with byte order, memory order, and the arrays that cannot travel."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import CannotTravel
from yggdrasill.values.dtypes import dtype_name, read_dtype
from yggdrasill.values.layout import ALIGNMENT, contiguous_strides, is_dense
from yggdrasill.values.payload import ArraySpec, Payload, corrupt
from yggdrasill.values.scalars import decode_text, encode_text, from_base64, to_base64

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["decode_array", "decode_number", "encode_array", "encode_number", "is_array", "is_number", "is_ownable"]


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
