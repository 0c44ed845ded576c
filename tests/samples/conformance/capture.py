"""A ComfyUI node pack in one file for the conformance tests: a node that records a value in every bit, and nodes that make values.

The record is independent of the tested codec: types, order, memory order and a hash of the bits. The module runs inside ComfyUI
and does not import the package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

__all__ = ["NODE_CLASS_MAPPINGS", "Capture", "Source", "fingerprint"]


def fingerprint(value: Any) -> Any:
    """Return JSON that is equal for two values if a node cannot distinguish them.

    A file path is recorded as the bytes of the file, a stream as its bytes (readers set the position), and a view with gaps as a
    dense tensor of its elements.
    """
    name = type(value).__name__
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return ["int", str(value)]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, (bytes, bytearray)):
        return [name, _digest(bytes(value))]
    if isinstance(value, (list, tuple)):
        return [name, *map(fingerprint, value)]
    if isinstance(value, (set, frozenset)):
        return [name, *sorted((fingerprint(item) for item in value), key=json.dumps)]
    if isinstance(value, dict):
        return [name, *([fingerprint(key), fingerprint(item)] for key, item in value.items())]
    if callable(value):
        raise TypeError(f"a {name} is no value that can be compared")
    return [name, *_BY_CLASS.get(name, _fields)(value)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _undated(data: bytes) -> bytes:
    """Return a file without the time in its gzip header: ComfyUI writes .spz files with the second in which a node ran."""
    return data[:4] + bytes(4) + data[8:] if data[:2] == b"\x1f\x8b" else data


def _tensor(value: Any) -> list[Any]:
    import torch

    strides = value.stride() if _dense(value) else torch.empty_like(value, device="meta").stride()
    plain = value.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    return [str(value.dtype), list(value.shape), list(strides), _digest(plain.numpy().tobytes())]


def _dense(tensor: Any) -> bool:
    """Return whether the elements fill their memory without gaps or overlaps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _array(value: Any) -> list[Any]:
    return [str(value.dtype), list(value.shape), _digest(value.tobytes())]


def _stream(value: BytesIO) -> list[Any]:
    return [_digest(value.getvalue())]


def _video_file(value: Any) -> list[Any]:
    source = value.get_stream_source()
    data = Path(source).read_bytes() if isinstance(source, str) else source.read()
    trim = vars(value)["_VideoFromFile__start_time"], vars(value)["_VideoFromFile__duration"]
    return [_digest(data), fingerprint(trim), fingerprint(value.get_components())]


def _curve(value: Any) -> list[Any]:
    return [fingerprint(value.to_lut()), *_fields(value)]


def _fields(value: Any) -> list[Any]:
    return [[key, fingerprint(item)] for key, item in sorted(vars(value).items())]


_BY_CLASS: dict[str, Callable[[Any], list[Any]]] = {
    "BytesIO": _stream,
    "File3D": lambda value: [value.format, _digest(_undated(value.get_bytes()))],
    "Fraction": lambda value: [str(value)],
    "LinearCurve": _curve,
    "MonotoneCubicCurve": _curve,
    "NestedTensor": lambda value: [fingerprint(value.tensors)],
    "Parameter": _tensor,
    "SVG": lambda value: [fingerprint(value.data)],
    "Tensor": _tensor,
    "VideoFromFile": _video_file,
    "ndarray": _array,
}


class Capture:
    """Records the values on a link in the prompt's history, and returns them as text."""

    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("note",)
    FUNCTION = "note"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"value": ("*",)}}

    def note(self, value: list[Any]) -> dict[str, Any]:
        text = json.dumps([fingerprint(each) for each in value])
        return {"ui": {"note": [text]}, "result": (text,)}


class Source:
    """Makes values of types whose ComfyUI nodes need weights or a service."""

    RETURN_TYPES = ("*",)
    RETURN_NAMES = ("value",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"kind": (list(_SOURCES),)}}

    def make(self, kind: str) -> tuple[Any]:
        return (_SOURCES[kind](),)


def _noise(*shape: int) -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _svg() -> Any:
    from comfy_api.latest import io

    drawing = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="4" height="4"/></svg>'
    return io.SVG.Type([BytesIO(drawing), BytesIO(drawing * 50)])


def _voxel() -> Any:
    from comfy_api.latest import Types

    return Types.VOXEL(_noise(1, 8, 8, 8))


def _range() -> Any:
    from comfy_api.input import RangeInput

    return RangeInput.from_raw({"min": 0.1, "max": 0.9, "midpoint": 0.4})


def _splat() -> Any:
    from comfy_api.latest import Types

    shapes = {"positions": 3, "scales": 3, "rotations": 4, "opacities": 1}
    fields = {name: _noise(1, 10, width).sigmoid() for name, width in shapes.items()}
    return Types.SPLAT(**fields, sh=_noise(1, 10, 1, 3))


def _moge_geometry() -> dict[str, Any]:
    return {
        "points": _noise(1, 16, 16, 3),
        "depth": _noise(1, 16, 16).abs() + 1,
        "mask": _noise(1, 16, 16) > 0,
        "intrinsics": _noise(1, 3, 3),
    }


def _da3_geometry() -> dict[str, Any]:
    return {"depth": _noise(2, 16, 16).abs() + 1, "confidence": _noise(2, 16, 16).abs()}


def _face_landmarks() -> dict[str, Any]:
    regions = "face_oval lips left_eye right_eye left_eyebrow right_eyebrow left_iris right_iris irises nose tesselation contours".split()
    ring = frozenset((index, (index + 1) % 5) for index in range(5))
    face = {"landmarks_xy": (_noise(5, 2).numpy() + 2) * 8, "bbox_xyxy": _noise(4).numpy(), "blendshapes": {"jawOpen": 0.25}}
    return {"frames": [[face], []], "image_size": (32, 32), "connection_sets": dict.fromkeys(regions, ring)}


def _pose_keypoint() -> list[dict[str, Any]]:
    counts = {"pose_keypoints_2d": 18, "face_keypoints_2d": 70, "hand_left_keypoints_2d": 21, "hand_right_keypoints_2d": 21}
    person = {name: (_noise(count * 3).abs() * 20).tolist() for name, count in counts.items()}
    return [{"people": [person], "canvas_width": 64, "canvas_height": 64}]


def _track_data() -> dict[str, Any]:
    import torch

    packed = (_noise(2, 3, 16, 2).abs() * 100).to(torch.uint8)
    return {"packed_masks": packed, "orig_size": (32, 32), "n_frames": 2, "scores": [0.5, 0.25, 1.0]}


def _points() -> Any:
    from comfy_api.latest import Types

    return Types.File3D(BytesIO(b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n"), "ply")


_SOURCES: dict[str, Callable[[], Any]] = {
    "DA3_GEOMETRY": _da3_geometry,
    "FACE_LANDMARKS": _face_landmarks,
    "FILE_3D_PLY": _points,
    "MOGE_GEOMETRY": _moge_geometry,
    "POSE_KEYPOINT": _pose_keypoint,
    "RANGE": _range,
    "SAM3_TRACK_DATA": _track_data,
    "SPLAT": _splat,
    "SVG": _svg,
    "VOXEL": _voxel,
}


class Blocked:
    """Returns the value, or an ExecutionBlocker if ``block`` is set."""

    RETURN_TYPES = ("*",)
    RETURN_NAMES = ("value",)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"value": ("*",), "block": ("BOOLEAN", {"default": True})}}

    def give(self, value: Any, block: bool) -> tuple[Any]:
        from comfy_execution.graph_utils import ExecutionBlocker

        return (ExecutionBlocker(None) if block else value,)


NODE_CLASS_MAPPINGS = {"ConformanceCapture": Capture, "ConformanceSource": Source, "ConformanceBlocked": Blocked}
