"""Custom nodes for measuring ComfyUI servers: noise, a sleep, a cheap sink, a comparison. Only a ComfyUI process loads them."""

from __future__ import annotations

import time
from typing import Any

import torch

__all__ = ["NODE_CLASS_MAPPINGS"]

_noise: dict[tuple[int, int], torch.Tensor] = {}


def _base(batch: int, size: int) -> torch.Tensor:
    """Return the same noise in every process, computed once."""
    if (batch, size) not in _noise:
        _noise[batch, size] = torch.rand(batch * size * size * 3, generator=torch.Generator().manual_seed(1))
    return _noise[batch, size]


class Noise:
    """Return images [batch, size, size, 3] of float32 noise in [low, high); a different seed moves every number."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        whole, real = ("INT", {"default": 1, "min": 0, "max": 1 << 40}), ("FLOAT", {"default": 0.0, "min": -9.0, "max": 9.0})
        return {"required": {"seed": whole, "batch": whole, "size": whole, "low": real, "high": real}}

    def make(self, seed: int, batch: int, size: int, low: float, high: float) -> tuple[torch.Tensor]:
        base = _base(batch, size)
        moved = torch.roll(base, seed % base.numel())
        if (low, high) != (0.0, 1.0):
            moved = moved * (high - low) + low
        return (moved.reshape(batch, size, size, 3),)


class Sleep:
    """Waits without computing anything, and returns ``tag``."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "wait"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"seconds": ("FLOAT", {"default": 1.0}), "tag": ("INT", {"default": 0, "max": 1 << 40})}}

    def wait(self, seconds: float, tag: int) -> tuple[int]:
        time.sleep(seconds)
        return (tag,)


class Sink:
    """Reports the shape of a value of any type, or the value itself if it is a number; ``tag`` only distinguishes sinks.

    Every page of a tensor is read, so that mapping memory lazily counts for the transport.
    """

    RETURN_TYPES = ()
    FUNCTION = "take"
    CATEGORY = "bench"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"value": ("*", {}), "tag": ("INT", {"default": 0, "max": 1 << 40})}}

    def take(self, value: Any, tag: int) -> dict[str, Any]:
        tensor = value["samples"] if isinstance(value, dict) else value
        if isinstance(tensor, torch.Tensor):
            float(tensor.reshape(-1)[:: 4096 // tensor.element_size()].sum())
        return {"ui": {"reported": [list(tensor.shape) if isinstance(tensor, torch.Tensor) else tensor]}}


class Compare:
    """Reports the largest absolute difference between images and the expected noise."""

    RETURN_TYPES = ()
    FUNCTION = "compare"
    CATEGORY = "bench"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"got": ("IMAGE",), **Noise.INPUT_TYPES()["required"]}}

    def compare(self, got: torch.Tensor, **noise: Any) -> dict[str, Any]:
        (expected,) = Noise().make(**noise)
        if got.shape != expected.shape:
            raise ValueError(f"got {list(got.shape)} and expected {list(expected.shape)}")
        return {"ui": {"reported": [float((got.float() - expected).abs().max())]}}


NODE_CLASS_MAPPINGS = {f"Bench{kind.__name__}": kind for kind in (Noise, Sleep, Sink, Compare)}
