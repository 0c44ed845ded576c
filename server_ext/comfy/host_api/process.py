"""The server of this process and its main loop, and a wall between an exception of ours and ComfyUI's own code."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = ["on_main_loop", "prompt_server", "shielded"]

_LOG = logging.getLogger("yggdrasill.comfy")


def prompt_server() -> Any:
    """The PromptServer of this process.

    Raises:
        InvalidArgument: ComfyUI is not running here.
    """
    instance = getattr(importlib.import_module("server").PromptServer, "instance", None)
    if instance is None:
        raise InvalidArgument("there is no ComfyUI server in this process; this runs inside ComfyUI only")
    return instance


def on_main_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on ComfyUI's main loop from another thread and wait for its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, prompt_server().loop).result()


@contextlib.contextmanager
def shielded(what: str) -> Iterator[None]:
    """Turn an exception of ours into one line in ComfyUI's log, so that it never reaches ComfyUI's own code."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - this is what it is for
        _LOG.error("Yggdrasill: %s: %s: %s", what, type(error).__name__, error)
