"""The two patches of ComfyUI that placement needs, because ComfyUI has no hooks for them. Prompts without placed parts are not affected.

`validate_prompt`: a posted prompt is partitioned after node replacement, when its execution targets are known; an error is returned in
ComfyUI's own form. `PromptExecutor.execute_async`: the partitioned prompt runs, and its messages are translated to the posted prompt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.placement.message_translation import translate_history, translate_message
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt, PostedPrompt
from yggdrasill.server_ext.comfy.placement.validation_result import Validate, ValidationResult

__all__ = ["Check", "Running", "patch_comfyui"]

Check = Callable[[PostedPrompt, Validate], Awaitable[ValidationResult]]
Running = Callable[[str, PartitionedPrompt], AbstractContextManager[None]]

_BY_EXECUTOR = frozenset({"execution_cached", "execution_error", "execution_interrupted"})
_BY_SERVER = frozenset({"executing", "executed"})


def patch_comfyui(check: Check, running: Running) -> None:
    """Patch both functions, once per process.

    ``check`` validates posted prompts; the context ``running(prompt_id, partitioned)`` is entered while a partitioned prompt runs.
    """
    compat.wrap_validation(lambda validate: _checked(validate, check))
    compat.wrap_execution(lambda execute: _executed(execute, running))


def _checked(validate: Callable[..., Awaitable[ValidationResult]], check: Check) -> Callable[..., Awaitable[ValidationResult]]:
    async def validate_prompt(prompt_id: str, prompt: Any, *rest: Any, **named: Any) -> ValidationResult:
        if type(prompt) is not PostedPrompt:
            return await validate(prompt_id, prompt, *rest, **named)
        return await check(prompt, lambda other: validate(prompt_id, other, *rest, **named))

    return validate_prompt


def _executed(execute: Callable[..., Awaitable[None]], running: Running) -> Callable[..., Awaitable[None]]:
    async def execute_async(self: Any, prompt: Any, prompt_id: str, *rest: Any, **named: Any) -> None:
        partitioned = prompt.partitioned if type(prompt) is PostedPrompt else None
        if partitioned is None:
            await execute(self, prompt, prompt_id, *rest, **named)
            return
        server, self.server = self.server, _TranslatingServer(self.server, partitioned)
        self.add_message = _translated(self, type(self).add_message, partitioned)
        try:
            with running(prompt_id, partitioned):
                await execute(self, partitioned.prompt, prompt_id, *rest, **named)
                self.history_result = translate_history(partitioned, self.history_result)
        finally:
            del self.add_message
            self.server = server

    return execute_async


def _translated(
    executor: Any, add_message: Callable[..., None], partitioned: PartitionedPrompt
) -> Callable[[str, dict[str, Any], bool], None]:
    def add(event: str, data: dict[str, Any], broadcast: bool) -> None:
        if event == "execution_cached":
            _show_posted_prompt(partitioned)
        for kind, facts in translate_message(partitioned, event, data) if event in _BY_EXECUTOR else [(event, data)]:
            add_message(executor, kind, facts, broadcast)

    return add


def _show_posted_prompt(partitioned: PartitionedPrompt) -> None:
    """Make the hidden input PROMPT the posted prompt, for nodes that save it with a picture. Called before any node runs."""
    running = compat.progress_registry().dynprompt
    running.get_original_prompt = lambda: dict(partitioned.posted)


class _TranslatingServer:
    """A proxy of ComfyUI's server for the executor of one partitioned prompt. It differs only in messages about nodes, which it translates."""

    def __init__(self, server: Any, partitioned: PartitionedPrompt) -> None:
        object.__setattr__(self, "_server", server)
        object.__setattr__(self, "_partitioned", partitioned)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._server, name, value)

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        messages = translate_message(self._partitioned, event, data) if event in _BY_SERVER else [(event, data)]
        for kind, facts in messages:
            self._server.send_sync(kind, facts, sid)
