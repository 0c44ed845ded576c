"""The runnables that stay built between nodes, so that their models stay loaded, and the rules by which they are released.

They follow ComfyUI: its cache type decides how many are kept and for how long, *Unload models* and *Free model and node cache* release all,
and a model that ComfyUI loads takes their place where memory is short. A runnable that a node runs is not affected until the node ends.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.foundation.container import Container
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.compat.memory import LRU, NONE

__all__ = ["MAX_BUILT", "BuiltRunnables", "built_runnables", "current_prompt", "referenced_files", "size_of"]

MAX_BUILT = 8
_PROMPTS = 2
"""Prompts with nodes that run blocks after which an unused runnable is released: a cache that is not an LRU cache keeps those of the last
prompt while the next one runs."""

current_prompt: ContextVar[str] = ContextVar("yggdrasill_built_for_prompt", default="")
"""The prompt whose node this thread works for; blank in ComfyUI's own threads, which know it."""


@dataclass
class _Entry:
    runnable: Container
    prompt_id: str
    files: frozenset[Path]


class BuiltRunnables:
    """Runnables by the key of their config, the last used one last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._prompts: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def keep(self, key: str, runnable: Container, files: Collection[Path] = ()) -> None:
        """Keep a runnable that is used now, and release those that ComfyUI's cache type does not keep.

        ``files`` are its checkpoints. A runnable that is kept under another key moves to this one.
        """
        settings, prompt_id = compat.cache_settings(), _executing_prompt()
        compat.on_memory_request(_release)
        short = compat.ram_shortfall(settings) > 0
        with self._lock:
            self._prompts[prompt_id] = None
            self._prompts.move_to_end(prompt_id)
            while len(self._prompts) > _PROMPTS:
                self._prompts.popitem(last=False)
            for other, entry in list(self._entries.items()):
                if other == key or entry.runnable is runnable:
                    del self._entries[other]
            if settings.kind == NONE:
                return
            self._entries[key] = _Entry(runnable, prompt_id, frozenset(files))
            most = min(MAX_BUILT, settings.entries) if settings.kind == LRU else MAX_BUILT
            for other, entry in list(self._entries.items()):
                unused = settings.kind != LRU and entry.prompt_id not in self._prompts
                if other != key and (short or unused or len(self._entries) > most):
                    del self._entries[other]

    def files(self) -> set[Path]:
        """Return the checkpoints of all runnables."""
        with self._lock:
            return {file for entry in self._entries.values() for file in entry.files}

    def release(self, device: Any = None, required: float | None = None) -> None:
        """Release runnables: all of them, or those with weights on ``device``, least recently used first, until ``required`` bytes are free."""
        with self._lock:
            keys = [key for key, entry in self._entries.items() if required is None or _is_on(entry.runnable, device)]
        for key in keys:
            with self._lock:
                self._entries.pop(key, None)
            if required is not None:
                gc.collect()
                if compat.free_memory_of(device) >= required:
                    return
        if keys:
            gc.collect()


built_runnables = BuiltRunnables()


def _release(required: float | None, device: Any) -> None:
    built_runnables.release(device, required)


def _executing_prompt() -> str:
    if found := current_prompt.get():
        return found
    node = compat.executing_node()
    return node.prompt_id if node is not None else ""


def referenced_files(config: Any) -> frozenset[Path]:
    """Return the paths of the checkpoints that a config names."""
    return frozenset(Path(reference) for reference in _references(config))


def size_of(files: Iterable[Path]) -> int:
    """Return the bytes of files and folders on this machine."""
    return sum(_size(path) for path in files)


def _references(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("checkpoint_ref", "checkpoint_path") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _references(value)


def _size(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    except OSError:
        return 0


def _is_on(runnable: Container, device: Any) -> bool:
    return any(_same_device(found, device) for found in _devices(runnable))


def _same_device(one: Any, other: Any) -> bool:
    return getattr(one, "type", None) == getattr(other, "type", "") and (one.index or 0) == (other.index or 0)


def _devices(runnable: Container) -> Iterator[Any]:
    """Return the devices of the modules and tensors that the blocks have as attributes."""
    for block in runnable.blocks():
        for value in vars(block).values():
            parameters = getattr(value, "parameters", None)
            if callable(parameters):
                yield from (parameter.device for parameter in parameters())
            elif hasattr(value, "device"):
                yield value.device
