"""A ComfyUI node pack in one file for the packs suite: a node that records any value, and a node that makes values of common types.

The module runs inside ComfyUI and does not import the package. A value is recorded by its bits where it is data. Objects of classes that it
does not know are recorded by class and attributes, functions and models by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["NODE_CLASS_MAPPINGS", "Dump", "Source", "describe"]

_MAX_DEPTH = 8
_MAX_TEXT = 4000


def describe(value: Any, depth: int = 0) -> Any:
    """Return JSON that is equal for two values if a node cannot distinguish their data."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return ["int", str(int(value))]
    if isinstance(value, float):
        return ["float", float(value).hex()]
    name = type(value).__name__
    if depth > _MAX_DEPTH:
        return [name, "..."]
    if isinstance(value, (bytes, bytearray)):
        return [name, _digest(bytes(value))]
    return _by_kind(value, name, depth + 1)


def _by_kind(value: Any, name: str, depth: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [name, *(describe(item, depth) for item in value)]
    if isinstance(value, (set, frozenset)):
        return [name, *sorted((describe(item, depth) for item in value), key=json.dumps)]
    if isinstance(value, Mapping):
        # a mapping with samples is an AUDIO, whatever its class: nodes read it by key
        kind = "audio" if {"waveform", "sample_rate"} <= set(value) else name
        return [kind, *([describe(key, depth), describe(value[key], depth)] for key in value)]
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        return [name, str(value.dtype), list(value.shape), _digest(_bytes_of(value))]
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return [name, str(value.dtype), list(value.shape), _digest(value.tobytes())]
    if hasattr(value, "tobytes") and hasattr(value, "mode"):
        return [name, value.mode, list(value.size), _digest(value.tobytes())]
    if callable(value) or _is_model(value):
        return [name, getattr(value, "__qualname__", "")]
    return _fields(value, name, depth)


def _fields(value: Any, name: str, depth: int) -> Any:
    fields = getattr(value, "__dict__", None)
    if not fields:
        return [name, str(value) if " at 0x" not in str(value) else ""]
    return [name, *([key, describe(item, depth)] for key, item in sorted(fields.items()))]


def _is_model(value: Any) -> bool:
    return any(base.__name__ in ("Module", "ModelPatcher", "CLIP", "VAE", "ControlBase") for base in type(value).__mro__)


def _bytes_of(tensor: Any) -> bytes:
    import torch

    plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    return bytes(plain.numpy().tobytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


class Dump:
    """Records the values of a link in the prompt's history."""

    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "dump"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"value": ("*",)}}

    def dump(self, value: list[Any]) -> dict[str, Any]:
        text = json.dumps([describe(each) for each in value])
        return {"ui": {"note": [text if len(text) < _MAX_TEXT else f"{text[:200]} ... {_digest(text.encode())}"]}}


class Source:
    """Makes a value of a type, the same on each server."""

    RETURN_TYPES = ("*",)
    RETURN_NAMES = ("value",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"kind": (list(SOURCES),)}}

    def make(self, kind: str) -> tuple[Any]:
        return (SOURCES[kind](),)


def _noise(*shape: int) -> Any:
    import torch

    return torch.rand(*shape, generator=torch.Generator().manual_seed(7))


def _mask() -> Any:
    mask = _noise(1, 64, 64) * 0
    mask[:, 16:48, 8:40] = 1.0
    return mask


SOURCES: dict[str, Callable[[], Any]] = {
    "*": lambda: 3,
    "AUDIO": lambda: {"waveform": _noise(1, 2, 16000) - 0.5, "sample_rate": 16000},
    "BBOX": lambda: (8, 8, 32, 32),
    "BOOLEAN": lambda: True,
    "BYTES": lambda: b"\x00\x01\x02\x03",
    "COLOR": lambda: "#336699",
    "CONDITIONING": lambda: [[_noise(1, 77, 768), {"pooled_output": _noise(1, 768)}]],
    "DICT": lambda: {"b": 1, "a": 2},
    "FLOAT": lambda: 1.5,
    "FLOATS": lambda: [0.25, 0.5, 1.0],
    "IMAGE": lambda: _noise(3, 64, 64, 3),
    "INT": lambda: 3,
    "LATENT": lambda: {"samples": _noise(2, 4, 8, 8)},
    "LIST": lambda: [3, 1, 2],
    "MASK": _mask,
    "NUMBER": lambda: 2,
    "SET": lambda: {1, 2, 3},
    "SIGMAS": lambda: _noise(5).sort(descending=True).values,
    "STRING": lambda: "a red fox, a blue bird",
}

NODE_CLASS_MAPPINGS = {"PacksDump": Dump, "PacksSource": Source}
