"""ComfyUI's memory: the settings of its node cache, the memory that is free, and the moments at which it wants memory back."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yggdrasill.server_ext.comfy.compat.guard import shielded
from yggdrasill.server_ext.comfy.compat.server import command_line

__all__ = [
    "CLASSIC",
    "LRU",
    "NONE",
    "RAM",
    "CacheSettings",
    "available_ram",
    "cache_settings",
    "free_memory_of",
    "make_room",
    "on_memory_request",
    "ram_shortfall",
]

CLASSIC, LRU, RAM, NONE = "CLASSIC", "LRU", "RAM_PRESSURE", "NONE"
"""The types of ComfyUI's node cache, by their names in ``execution.CacheType``."""

_GIB = 1024.0
_EVERYTHING = 1e30
"""The number of bytes that ComfyUI requires of each device when it unloads all models."""
_REQUESTS = "_yggdrasill_memory_requests"

MemoryRequest = Callable[["float | None", Any], None]
"""Receives the bytes that a device must have free, None if all memory is wanted back, and the device."""


@dataclass(frozen=True)
class CacheSettings:
    """The type of the node cache, the entries of an LRU cache, and the two thresholds of a RAM cache in GiB."""

    kind: str = CLASSIC
    entries: int = 0
    ram: float = 0.0
    ram_inactive: float = 0.0

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the settings as ``PromptExecutor`` takes them."""
        return {"lru": self.entries, "ram": self.ram, "ram_inactive": self.ram_inactive}


def cache_settings() -> CacheSettings:
    """Return the settings with which ComfyUI was started. A ComfyUI with other flags counts as one with a classic cache."""
    with shielded("the settings of ComfyUI's node cache could not be read"):
        args = command_line()
        if args.cache_classic:
            return CacheSettings()
        if args.cache_none:
            return CacheSettings(NONE)
        if args.cache_lru > 0:
            return CacheSettings(LRU, entries=int(args.cache_lru))
        total = float(importlib.import_module("comfy.model_management").total_ram) / _GIB
        thresholds = [min(10.0, max(2.0, total * 0.1)), min(128.0, total)]
        given = args.cache_ram if isinstance(args.cache_ram, (list, tuple)) else [args.cache_ram] if args.cache_ram else []
        return CacheSettings(RAM, 0, *[float(value) for value in [*given[:2], *thresholds[len(given) :]]][:2])
    return CacheSettings()


def available_ram() -> float:
    """Return the bytes of RAM that are available on this machine."""
    return float(importlib.import_module("psutil").virtual_memory().available)


def ram_shortfall(settings: CacheSettings) -> float:
    """Return the bytes of RAM that a cache with these settings must release now: 0 unless it is a RAM cache under pressure."""
    return max(0.0, settings.ram * 1024**3 - available_ram()) if settings.kind == RAM else 0.0


def free_memory_of(device: Any) -> float:
    """Return the bytes that ComfyUI counts as free on a device."""
    return float(importlib.import_module("comfy.model_management").get_free_memory(device))


def make_room(nbytes: int) -> None:
    """Let ComfyUI unload its models until its device has ``nbytes`` free, beside the memory that it keeps free to compute."""
    management = importlib.import_module("comfy.model_management")
    device = management.get_torch_device()
    if getattr(device, "type", "cpu") != "cpu":
        management.free_memory(nbytes + management.minimum_inference_memory(), device)


def on_memory_request(release: MemoryRequest) -> None:
    """Call ``release`` whenever ComfyUI needs memory of a device, before it unloads models of its own.

    ComfyUI does so when it loads a model, after it ran out of memory, and for *Unload models* and *Free model and node cache*. Functions are
    called in the order in which they were passed, while memory is short.
    """
    management = importlib.import_module("comfy.model_management")
    requests: list[MemoryRequest] | None = getattr(management, _REQUESTS, None)
    if requests is None:
        requests = []
        setattr(management, _REQUESTS, requests)
        _wrap_free_memory(management, requests)
    if release not in requests:
        requests.append(release)


def _wrap_free_memory(management: Any, requests: list[MemoryRequest]) -> None:
    original = management.free_memory

    def free_memory(memory_required: Any, device: Any, *rest: Any, **named: Any) -> Any:
        for release in list(requests):
            with shielded("graphs of blocks could not be released"):
                _request(management, release, float(memory_required), device)
        return original(memory_required, device, *rest, **named)

    management.free_memory = free_memory


def _request(management: Any, release: MemoryRequest, required: float, device: Any) -> None:
    if device is None or required >= _EVERYTHING or not math.isfinite(required):
        release(None, device)
    elif management.get_free_memory(device) < required:
        release(required, device)
