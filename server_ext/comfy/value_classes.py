"""Wire forms of the classes on ComfyUI's links.

A wire form names a tag, not a class: this table maps each tag to its class. A value whose class this ComfyUI lacks is kept as `Opaque`, so
that it is forwarded as the same bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from yggdrasill.errors import CannotTravel
from yggdrasill.server_ext.comfy import compat
from yggdrasill.values import Opaque, register_type
from yggdrasill.values.payload import corrupt

__all__ = ["parts_of", "register_classes"]

_PREFIX = "comfy."


@dataclass(frozen=True)
class _Kind:
    """A class: its name, its location in ComfyUI (``module:attributes``), and its conversions to a state and back."""

    name: str
    location: str
    to_state: Callable[[Any], Any]
    from_state: Callable[[type, Any], Any]


def register_classes() -> None:
    """Register every class of the table with the codec. Requires a process that runs ComfyUI; may be called repeatedly."""
    import torch

    register_type("torch.size", torch.Size, list, lambda state: torch.Size(_sizes(state)))
    for tag, kind in _KINDS.items():
        register_type(_PREFIX + tag, kind.name, partial(_pack, kind), partial(_unpack, tag, kind))


def parts_of(value: Any) -> Any:
    """Return what the state of ``value`` consists of, without reading a file; None if it is only bytes and numbers.

    Raises:
        CannotTravel: the class of the value only shares its name with one in the table.
    """
    kind = _BY_NAME.get(type(value).__name__)
    return None if kind is None or kind.to_state in _READS_BYTES else _pack(kind, value)


def _pack(kind: _Kind, value: Any) -> Any:
    """Return the state of ``value``. Raise `CannotTravel` unless it is exactly of the class in the table."""
    if type(value) is not compat.find_class(kind.location):
        of = type(value)
        raise CannotTravel(
            f"A {of.__module__}.{of.__qualname__} cannot be transferred: it only shares its name with ComfyUI's {kind.location.replace(':', '.')}. "
            "Convert it into tensors and plain values.",
            type=of.__name__,
        )
    return kind.to_state(value)


def _unpack(tag: str, kind: _Kind, state: Any) -> Any:
    cls = compat.find_class(kind.location)
    return Opaque(_PREFIX + tag, 1, state) if cls is None else kind.from_state(cls, state)


def _fields_of(value: Any) -> dict[str, Any]:
    return dict(vars(value))


def _with_fields(cls: type, state: Any) -> Any:
    """Return an instance with the attributes in ``state``; the constructor sets the others."""
    fields = _dict_of(state)
    for name in fields:
        if not name.isidentifier() or name.startswith("__") or callable(getattr(cls, name, None)):
            raise corrupt(f"{name[:60]!r} is not a field of {cls.__name__}")
    parameters = inspect.signature(cls).parameters
    instance = cls(**{name: value for name, value in fields.items() if name in parameters})
    for name, value in fields.items():
        setattr(instance, name, value)
    return instance


def _bytes_of(source: Any) -> bytes:
    """Return the content of a path or stream. The position of a stream is restored; it is not part of the value."""
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    position = source.tell()
    source.seek(0)
    try:
        return bytes(source.read())
    finally:
        source.seek(position)


def _stream_of(state: Any) -> BytesIO:
    if type(state) is not bytes:
        raise corrupt("the content of a file is not bytes")
    return BytesIO(state)


def _pack_svg(value: Any) -> Any:
    return [_bytes_of(stream) for stream in value.data]


def _unpack_svg(cls: type, state: Any) -> Any:
    return cls([_stream_of(each) for each in _list_of(state)])


def _pack_file(value: Any) -> Any:
    return [_bytes_of(vars(value)["_source"]), value.format]


def _unpack_file(cls: type, state: Any) -> Any:
    data, file_format = _list_of(state, 2)
    if type(file_format) is not str:
        raise corrupt("the format of a file is not text")
    instance: Any = cls(_stream_of(data))
    vars(instance)["_format"] = file_format
    return instance


def _pack_video_file(value: Any) -> Any:
    """Return the content and the trim as requested: ``get_active_trim_window`` would round a start that counts from the end."""
    fields = vars(value)
    return [_bytes_of(fields["_VideoFromFile__file"]), fields["_VideoFromFile__start_time"], fields["_VideoFromFile__duration"]]


def _unpack_video_file(cls: type, state: Any) -> Any:
    data, start, duration = _list_of(state, 3)
    if any(type(number) not in (int, float) for number in (start, duration)):
        raise corrupt("the start and duration of a video are not numbers")
    return cls(_stream_of(data), start_time=start, duration=duration)


def _pack_video(value: Any) -> Any:
    """Return the components; include the bit depth only if it is not 8, so that ComfyUI versions without it can read the state."""
    fields = vars(value)
    state = {"components": fields["_VideoFromComponents__components"]}
    depth = fields.get("_VideoFromComponents__bit_depth", 8)
    return state if depth == 8 else {**state, "bit_depth": depth}


def _unpack_video(cls: type, state: Any) -> Any:
    return cls(**_only(_dict_of(state), {"components", "bit_depth"}))


def _pack_components(value: Any) -> Any:
    return {name: part for name, part in vars(value).items() if part is not None or name in {"images", "frame_rate"}}


def _pack_nested(value: Any) -> Any:
    return list(value.tensors)


def _unpack_nested(cls: type, state: Any) -> Any:
    return cls(_list_of(state))


def _pack_curve(value: Any) -> Any:
    return [list(point) for point in value.points]


def _unpack_curve(cls: type, state: Any) -> Any:
    points = [_list_of(point, 2) for point in _list_of(state)]
    if any(type(number) is not float for point in points for number in point):
        raise corrupt("a curve does not consist of pairs of floats")
    return cls([(x, y) for x, y in points])


def _sizes(state: Any) -> list[int]:
    sizes = _list_of(state)
    if any(type(size) is not int or not 0 <= size < 1 << 63 for size in sizes):
        raise corrupt("a size does not consist of integers")
    return sizes


def _dict_of(state: Any) -> dict[str, Any]:
    if type(state) is not dict or any(type(key) is not str for key in state):
        raise corrupt("an object's state is not a dict of its fields")
    return state


def _only(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    if not fields.keys() <= names:
        raise corrupt(f"{min(fields.keys() - names)[:60]!r} is not a field of this type")
    return fields


def _list_of(state: Any, length: int | None = None) -> list[Any]:
    if type(state) is not list or length not in (None, len(state)):
        raise corrupt(f"an object's state is not a list{'' if length is None else f' of {length} items'}")
    return state


_KINDS = {
    "clip_vision_output": _Kind("Output", "comfy.clip_vision:Output", _fields_of, _with_fields),
    "file_3d": _Kind("File3D", "comfy_api.latest:Types.File3D", _pack_file, _unpack_file),
    "linear_curve": _Kind("LinearCurve", "comfy_api.input:LinearCurve", _pack_curve, _unpack_curve),
    "mesh": _Kind("MESH", "comfy_api.latest:Types.MESH", _fields_of, _with_fields),
    "monotone_cubic_curve": _Kind("MonotoneCubicCurve", "comfy_api.input:MonotoneCubicCurve", _pack_curve, _unpack_curve),
    "nested_tensor": _Kind("NestedTensor", "comfy.nested_tensor:NestedTensor", _pack_nested, _unpack_nested),
    "range": _Kind("RangeInput", "comfy_api.input:RangeInput", _fields_of, _with_fields),
    "splat": _Kind("SPLAT", "comfy_api.latest:Types.SPLAT", _fields_of, _with_fields),
    "svg": _Kind("SVG", "comfy_api.latest:io.SVG.Type", _pack_svg, _unpack_svg),
    "video_components": _Kind("VideoComponents", "comfy_api.latest:Types.VideoComponents", _pack_components, _with_fields),
    "video_file": _Kind("VideoFromFile", "comfy_api.latest:InputImpl.VideoFromFile", _pack_video_file, _unpack_video_file),
    "video_tensors": _Kind("VideoFromComponents", "comfy_api.latest:InputImpl.VideoFromComponents", _pack_video, _unpack_video),
    "voxel": _Kind("VOXEL", "comfy_api.latest:Types.VOXEL", _fields_of, _with_fields),
}
_BY_NAME = {kind.name: kind for kind in _KINDS.values()}
_READS_BYTES = {_pack_svg, _pack_file, _pack_video_file}
