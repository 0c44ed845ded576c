"""ComfyUI's server and main loop in this process, and a guard that keeps our exceptions out of ComfyUI's own code."""

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
    """Return the PromptServer of this process.

    Raises:
        InvalidArgument: this process does not run ComfyUI.
    """
    instance = getattr(importlib.import_module("server").PromptServer, "instance", None)
    if instance is None:
        raise InvalidArgument("This process has no ComfyUI server. The extension runs only inside ComfyUI.")
    return instance


def on_main_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on ComfyUI's main loop from another thread, and return its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, prompt_server().loop).result()


@contextlib.contextmanager
def shielded(what: str) -> Iterator[None]:
    """Write an exception to ComfyUI's log as one line that starts with ``what``, so that it never reaches ComfyUI's own code."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - every exception is logged instead
        _LOG.error("Yggdrasill: %s: %s: %s", what, type(error).__name__, error)
