"""The classes on ComfyUI's links, as states that the codec knows and back.

A state names no class: each tag has its class in this table. A class that this ComfyUI lacks stays `Opaque`, so its value travels on
as the same bytes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from yggdrasill.errors import CannotTravel
from yggdrasill.values import Opaque, register_type
from yggdrasill.values.payload import corrupt

__all__ = ["find_class", "parts_of", "register_classes"]

_PREFIX = "comfy."


@dataclass(frozen=True)
class _Kind:
    """A class, where ComfyUI has it (``module:attributes``), and how it becomes a state and comes back."""

    name: str
    home: str
    take: Callable[[Any], Any]
    make: Callable[[type, Any], Any]


def register_classes() -> None:
    """Teach the codec every class of the table; for a process that runs ComfyUI, where it may be called again."""
    import torch

    register_type("torch.size", torch.Size, list, lambda state: torch.Size(_sizes(state)))
    for tag, kind in _KINDS.items():
        register_type(_PREFIX + tag, kind.name, partial(_pack, kind), partial(_unpack, tag, kind))


def parts_of(value: Any) -> Any:
    """What the state of ``value`` would be made of, without reading a file: None if that is only bytes and numbers.

    Raises `CannotTravel` if its class only shares the name of one that the table has.
    """
    kind = _BY_NAME.get(type(value).__name__)
    return None if kind is None or kind.take in _READS_BYTES else _pack(kind, value)


def find_class(home: str) -> type | None:
    """The class at ``module:attributes`` of this process's ComfyUI; None if this version has no such class."""
    module, _, path = home.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ModuleNotFoundError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def _pack(kind: _Kind, value: Any) -> Any:
    """The state of ``value``, which has the right name, and must be of the right class too."""
    if type(value) is not find_class(kind.home):
        of = type(value)
        raise CannotTravel(
            f"a {of.__module__}.{of.__qualname__} cannot travel: it only shares its name with ComfyUI's {kind.home.replace(':', '.')}, which can; "
            "turn it into tensors and plain values",
            type=of.__name__,
        )
    return kind.take(value)


def _unpack(tag: str, kind: _Kind, state: Any) -> Any:
    cls = find_class(kind.home)
    return Opaque(_PREFIX + tag, 1, state) if cls is None else kind.make(cls, state)


def _fields_of(value: Any) -> dict[str, Any]:
    return dict(vars(value))


def _with_fields(cls: type, state: Any) -> Any:
    """An instance whose attributes are those of ``state``; those that ``state`` lacks are what the constructor makes them."""
    fields = _dict_of(state)
    for name in fields:
        if not name.isidentifier() or name.startswith("__") or callable(getattr(cls, name, None)):
            raise corrupt(f"{name[:60]!r} is no field of {cls.__name__}")
    asked = inspect.signature(cls).parameters
    made = cls(**{name: value for name, value in fields.items() if name in asked})
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def _bytes_of(source: Any) -> bytes:
    """All that a path or a stream holds; a stream is left where it was, and its position, which readers set anew, is no part of it."""
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    at = source.tell()
    source.seek(0)
    try:
        return bytes(source.read())
    finally:
        source.seek(at)


def _stream_of(state: Any) -> BytesIO:
    if type(state) is not bytes:
        raise corrupt("a file is not made of bytes")
    return BytesIO(state)


def _take_svg(value: Any) -> Any:
    return [_bytes_of(stream) for stream in value.data]


def _make_svg(cls: type, state: Any) -> Any:
    return cls([_stream_of(each) for each in _list_of(state)])


def _take_file(value: Any) -> Any:
    return [_bytes_of(vars(value)["_source"]), value.format]


def _make_file(cls: type, state: Any) -> Any:
    data, file_format = _list_of(state, 2)
    if type(file_format) is not str:
        raise corrupt("the format of a file is not text")
    made: Any = cls(_stream_of(data))
    vars(made)["_format"] = file_format
    return made


def _take_video_file(value: Any) -> Any:
    """The trim as it was asked for: ``get_active_trim_window`` would round a start that counts from the end."""
    fields = vars(value)
    return [_bytes_of(fields["_VideoFromFile__file"]), fields["_VideoFromFile__start_time"], fields["_VideoFromFile__duration"]]


def _make_video_file(cls: type, state: Any) -> Any:
    data, start, duration = _list_of(state, 3)
    if any(type(number) not in (int, float) for number in (start, duration)):
        raise corrupt("a video is not cut by two numbers")
    return cls(_stream_of(data), start_time=start, duration=duration)


def _take_video(value: Any) -> Any:
    """Depth and the parts a video may lack only if they are there: then versions that do not know them take the others."""
    fields = vars(value)
    state = {"components": fields["_VideoFromComponents__components"]}
    depth = fields.get("_VideoFromComponents__bit_depth", 8)
    return state if depth == 8 else {**state, "bit_depth": depth}


def _make_video(cls: type, state: Any) -> Any:
    return cls(**_only(_dict_of(state), {"components", "bit_depth"}))


def _take_components(value: Any) -> Any:
    return {name: part for name, part in vars(value).items() if part is not None or name in {"images", "frame_rate"}}


def _take_nested(value: Any) -> Any:
    return list(value.tensors)


def _make_nested(cls: type, state: Any) -> Any:
    return cls(_list_of(state))


def _take_curve(value: Any) -> Any:
    return [list(point) for point in value.points]


def _make_curve(cls: type, state: Any) -> Any:
    points = [_list_of(point, 2) for point in _list_of(state)]
    if any(type(number) is not float for point in points for number in point):
        raise corrupt("a curve is not made of pairs of floats")
    return cls([(x, y) for x, y in points])


def _sizes(state: Any) -> list[int]:
    sizes = _list_of(state)
    if any(type(size) is not int or not 0 <= size < 1 << 63 for size in sizes):
        raise corrupt("a size is not made of whole numbers")
    return sizes


def _dict_of(state: Any) -> dict[str, Any]:
    if type(state) is not dict or any(type(key) is not str for key in state):
        raise corrupt("an object's state is no dict of its fields")
    return state


def _only(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    if not fields.keys() <= names:
        raise corrupt(f"{min(fields.keys() - names)[:60]!r} is no part of this type")
    return fields


def _list_of(state: Any, length: int | None = None) -> list[Any]:
    if type(state) is not list or length not in (None, len(state)):
        raise corrupt(f"an object's state is no list of {'its parts' if length is None else f'{length} parts'}")
    return state


_KINDS = {
    "clip_vision_output": _Kind("Output", "comfy.clip_vision:Output", _fields_of, _with_fields),
    "file_3d": _Kind("File3D", "comfy_api.latest:Types.File3D", _take_file, _make_file),
    "linear_curve": _Kind("LinearCurve", "comfy_api.input:LinearCurve", _take_curve, _make_curve),
    "mesh": _Kind("MESH", "comfy_api.latest:Types.MESH", _fields_of, _with_fields),
    "monotone_cubic_curve": _Kind("MonotoneCubicCurve", "comfy_api.input:MonotoneCubicCurve", _take_curve, _make_curve),
    "nested_tensor": _Kind("NestedTensor", "comfy.nested_tensor:NestedTensor", _take_nested, _make_nested),
    "range": _Kind("RangeInput", "comfy_api.input:RangeInput", _fields_of, _with_fields),
    "splat": _Kind("SPLAT", "comfy_api.latest:Types.SPLAT", _fields_of, _with_fields),
    "svg": _Kind("SVG", "comfy_api.latest:io.SVG.Type", _take_svg, _make_svg),
    "video_components": _Kind("VideoComponents", "comfy_api.latest:Types.VideoComponents", _take_components, _with_fields),
    "video_file": _Kind("VideoFromFile", "comfy_api.latest:InputImpl.VideoFromFile", _take_video_file, _make_video_file),
    "video_tensors": _Kind("VideoFromComponents", "comfy_api.latest:InputImpl.VideoFromComponents", _take_video, _make_video),
    "voxel": _Kind("VOXEL", "comfy_api.latest:Types.VOXEL", _fields_of, _with_fields),
}
_BY_NAME = {kind.name: kind for kind in _KINDS.values()}
_READS_BYTES = {_take_svg, _take_file, _take_video_file}
