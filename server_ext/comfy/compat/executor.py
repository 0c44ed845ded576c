"""ComfyUI's executor: its state of the running prompt, executors for nested prompts, and the functions that the extension wraps."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from yggdrasill.server_ext.comfy.compat.memory import cache_settings
from yggdrasill.server_ext.comfy.compat.server import command_line, prompt_server

__all__ = [
    "InterruptFlag",
    "RunningState",
    "new_executor",
    "progress_registry",
    "release_executor",
    "wrap_execution",
    "wrap_input_data",
    "wrap_validation",
]

_MARK = "_yggdrasill_original"

AsyncFunction = Callable[..., Awaitable[Any]]


def progress_registry() -> Any:
    """Return the progress registry of the running prompt. Call it in the task of a node."""
    return importlib.import_module("comfy_execution.progress").get_progress_state()


class RunningState:
    """ComfyUI's global facts about the running prompt.

    The workflow's metadata is not one of them: calls of the outer prompt send messages while a nested prompt runs, and the socket of a nested
    prompt ignores it.

    Raises:
        ImportError, AttributeError: this ComfyUI keeps them elsewhere.
    """

    def __init__(self) -> None:
        self._progress: Any = importlib.import_module("comfy_execution.progress")
        self._memory: Any = importlib.import_module("comfy.memory_management")
        self._args = command_line()
        self._server = prompt_server()

    def read(self) -> tuple[Any, ...]:
        """Return client, node and prompt, the progress registry, the preview method, and the two values of the RAM cache."""
        server, memory = self._server, self._memory
        return (
            server.client_id,
            server.last_node_id,
            server.last_prompt_id,
            self._progress.global_progress_registry,
            self._args.preview_method,
            memory.extra_ram_release_callback,
            memory.RAM_CACHE_HEADROOM,
        )

    def write(self, facts: tuple[Any, ...]) -> None:
        """Set the facts that `read` returned."""
        server, memory = self._server, self._memory
        server.client_id, server.last_node_id, server.last_prompt_id = facts[:3]
        self._progress.global_progress_registry, self._args.preview_method = facts[3:5]
        memory.set_ram_cache_release_state(*facts[5:])


class InterruptFlag:
    """ComfyUI's flag that stops the running prompt. ``mutex`` is re-entrant and guards it."""

    def __init__(self) -> None:
        self._management: Any = importlib.import_module("comfy.model_management")
        self.mutex = self._management.interrupt_processing_mutex

    @property
    def is_set(self) -> bool:
        """Return whether an interrupt is pending."""
        return bool(self._management.interrupt_processing)

    def set(self, value: bool) -> None:
        """Set or clear the flag."""
        self._management.interrupt_current_processing(value)


def new_executor() -> Any:
    """Return an executor for nested prompts, with a cache of its own of the type and the sizes of ComfyUI's."""
    execution, settings, server = importlib.import_module("execution"), cache_settings(), prompt_server()
    kind = getattr(execution.CacheType, settings.kind, execution.CacheType.CLASSIC)
    options: dict[str, Any] = {"cache_type": kind, "cache_args": settings.arguments}
    if "asset_manager" in inspect.signature(execution.PromptExecutor).parameters:
        # without it, files that nested prompts show are not registered as assets
        options["asset_manager"] = getattr(server, "asset_manager", None)
    return execution.PromptExecutor(server, **options)


def release_executor(executor: Any) -> None:
    """Release the results and models in the cache of an executor, which must not run again."""
    executor.caches = None


def wrap_validation(wrap: Callable[[AsyncFunction], AsyncFunction]) -> None:
    """Replace ``execution.validate_prompt(prompt_id, prompt, targets)``, once per process."""
    _wrap(importlib.import_module("execution"), "validate_prompt", wrap)


def wrap_execution(wrap: Callable[[AsyncFunction], AsyncFunction]) -> None:
    """Replace ``PromptExecutor.execute_async(self, prompt, prompt_id, extra_data, outputs)``, once per process."""
    _wrap(importlib.import_module("execution").PromptExecutor, "execute_async", wrap)


def wrap_input_data(wrap: Callable[[Callable[..., Any]], Callable[..., Any]], purpose: str) -> None:
    """Replace ``execution.get_input_data(inputs, class, ...)``, once per process and ``purpose``."""
    _wrap(importlib.import_module("execution"), "get_input_data", wrap, purpose)


def _wrap(owner: Any, name: str, wrap: Callable[[Any], Any], purpose: str = "") -> None:
    original = getattr(owner, name)
    marked = f"{_MARK}_{name}{purpose and '_'}{purpose}"
    if not hasattr(owner, marked):
        setattr(owner, marked, original)
        setattr(owner, name, wrap(original))
