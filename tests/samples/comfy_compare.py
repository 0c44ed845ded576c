"""Comparison of values on ComfyUI's links, independent of the codec: bits, types, order, and results of methods."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

__all__ = ["difference"]


def difference(left: Any, right: Any, place: str = "value") -> str | None:
    """Return the path and kind of the first difference, or None if the values are equal bit for bit."""
    kind = type(left)
    if kind is not type(right):
        return f"{place}: {kind} became {type(right)}"
    compare = _BY_NAME.get(kind.__name__, _fields if hasattr(left, "__dict__") and not callable(left) else _plain)
    return compare(left, right, place)


def _tensor(left: Any, right: Any, place: str) -> str | None:
    import torch

    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return f"{place}: {left.dtype} {list(left.shape)} became {right.dtype} {list(right.shape)}"
    allowed = {left.stride()} if _dense(left) else {left.stride(), torch.empty(left.shape).stride()}
    if left.numel() and right.stride() not in allowed:
        return f"{place}: strides {left.stride()} became {right.stride()}"
    same = torch.equal(_bits(left), _bits(right))
    return None if same else f"{place}: other bits"


def _dense(tensor: Any) -> bool:
    """Return whether the elements fill their memory without gaps or overlaps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _bits(tensor: Any) -> Any:
    import torch

    plain = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return plain.view(torch.uint8)


def _array(left: Any, right: Any, place: str) -> str | None:
    same = (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    return None if same else f"{place}: another array"


def _sequence(left: Any, right: Any, place: str) -> str | None:
    if len(left) != len(right):
        return f"{place}: {len(left)} items became {len(right)}"
    found = (difference(a, b, f"{place}[{index}]") for index, (a, b) in enumerate(zip(left, right, strict=True)))
    return next((each for each in found if each is not None), None)


def _mapping(left: Any, right: Any, place: str) -> str | None:
    return _sequence(list(left), list(right), f"{place}.keys") or _sequence(list(left.values()), list(right.values()), f"{place}.values")


def _fields(left: Any, right: Any, place: str) -> str | None:
    return _mapping(dict(sorted(vars(left).items())), dict(sorted(vars(right).items())), place)


def _stream(left: BytesIO, right: BytesIO, place: str) -> str | None:
    return None if left.getvalue() == right.getvalue() else f"{place}: another stream"


def _plain(left: Any, right: Any, place: str) -> str | None:
    if isinstance(left, float):
        return None if left.hex() == right.hex() else f"{place}: {left.hex()} became {right.hex()}"
    return None if left == right else f"{place}: {left!r} became {right!r}"


def _file_3d(left: Any, right: Any, place: str) -> str | None:
    """Compare videos by their bytes and properties; a file path and a stream with equal bytes are equal."""
    same = (left.get_bytes(), left.format, left.get_data().read()) == (right.get_bytes(), right.format, right.get_data().read())
    return None if same else f"{place}: another file"


def _video_file(left: Any, right: Any, place: str) -> str | None:
    asked = (
        "get_active_trim_window",
        "get_duration",
        "get_dimensions",
        "get_frame_rate",
        "get_frame_count",
        "get_bit_depth",
        "get_container_format",
    )
    for name in asked:
        found = _plain(getattr(left, name)(), getattr(right, name)(), f"{place}.{name}()")
        if found is not None:
            return found
    return _file_bytes(left, right, place) or _fields(left.get_components(), right.get_components(), f"{place}.get_components()")


def _file_bytes(left: Any, right: Any, place: str) -> str | None:
    """Return the bytes and the requested trim."""
    ours, theirs = (dict(sorted(vars(each).items())) for each in (left, right))
    name = "_VideoFromFile__file"
    contents = []
    for source in (ours.pop(name), theirs.pop(name)):
        if isinstance(source, str):
            with open(source, "rb") as file:  # noqa: PTH123
                contents.append(file.read())
        else:
            contents.append(source.getvalue())
    return _mapping(ours, theirs, place) or (None if contents[0] == contents[1] else f"{place}: other bytes")


def _curve(left: Any, right: Any, place: str) -> str | None:
    return _array(left.to_lut(), right.to_lut(), f"{place}.to_lut()") or _fields(left, right, place)


_BY_NAME: dict[str, Callable[[Any, Any, str], str | None]] = {
    "Tensor": _tensor,
    "Parameter": _tensor,
    "ndarray": _array,
    "list": _sequence,
    "tuple": _sequence,
    "Size": _sequence,
    "dict": _mapping,
    "BytesIO": _stream,
    "File3D": _file_3d,
    "VideoFromFile": _video_file,
    "MonotoneCubicCurve": _curve,
    "LinearCurve": _curve,
    "Fraction": _plain,
}
