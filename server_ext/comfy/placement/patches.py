"""The two patches of ComfyUI that placement needs, because ComfyUI has no hooks for them. Prompts without placed parts are not affected.

`validate_prompt`: a posted prompt is partitioned after node replacement, when its execution targets are known; an error is returned in
ComfyUI's own form. `PromptExecutor.execute_async`: the partitioned prompt runs, and its messages are translated to the posted prompt.

An exception in `execute_async` ends ComfyUI's worker thread, so a failure of the extension leaves messages and results as ComfyUI has them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from typing import Any

from yggdrasill.errors import InvalidArgument, RunError
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.placement.message_translation import Message, translate_history, translate_message
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt, PostedPrompt
from yggdrasill.server_ext.comfy.placement.validation_result import Validate, ValidationResult, error_result

__all__ = ["Check", "Running", "expect_posted", "patch_comfyui"]

Check = Callable[[PostedPrompt, Validate], Awaitable[ValidationResult]]
Running = Callable[[str, PartitionedPrompt], AbstractContextManager[None]]

_BY_EXECUTOR = frozenset({"execution_cached", "execution_error", "execution_interrupted"})
_BY_SERVER = frozenset({"executing", "executed", "progress_state"})

_expected: ContextVar[bool] = ContextVar("yggdrasill_expects_posted_prompt", default=False)
"""Whether the request that this task handles posted a prompt with placed parts, which validation has not seen yet."""


def expect_posted(is_placed: bool) -> None:
    """Record whether the prompt of the request that this task handles has placed parts."""
    _expected.set(is_placed)


def patch_comfyui(check: Check, running: Running) -> None:
    """Patch both functions, once per process.

    ``check`` validates posted prompts; the context ``running(prompt_id, partitioned)`` is entered while a partitioned prompt runs.
    """
    compat.wrap_validation(lambda validate: _checked(validate, check))
    compat.wrap_execution(lambda execute: _executed(execute, running))


def _checked(validate: Callable[..., Awaitable[ValidationResult]], check: Check) -> Callable[..., Awaitable[ValidationResult]]:
    async def validate_prompt(prompt_id: str, prompt: Any, *rest: Any, **named: Any) -> ValidationResult:
        is_expected = _expected.get()
        _expected.set(False)
        if type(prompt) is not PostedPrompt:
            return _replaced(prompt) if is_expected else await validate(prompt_id, prompt, *rest, **named)
        try:
            return await check(prompt, lambda other: validate(prompt_id, other, *rest, **named))
        except Exception as error:  # noqa: BLE001 - the prompt is refused with it
            compat.log_failure("a prompt with placed parts could not be validated", error)
            problem = RunError(f"The workflow could not be divided: {type(error).__name__}: {error}. Remove the placements to run it here.")
            return error_result(problem, prompt, list(prompt)[:1])

    return validate_prompt


def _replaced(prompt: Any) -> ValidationResult:
    problem = InvalidArgument(
        "Another extension replaced the prompt after its parts were placed, so they cannot be found in it. Remove the placements to run the "
        "workflow here, or disable the extension that changes prompts when they are queued."
    )
    return error_result(problem, prompt if isinstance(prompt, dict) else {}, list(prompt)[:1] if isinstance(prompt, dict) else [])


def _executed(execute: Callable[..., Awaitable[None]], running: Running) -> Callable[..., Awaitable[None]]:
    async def execute_async(self: Any, prompt: Any, prompt_id: str, *rest: Any, **named: Any) -> None:
        if type(prompt) is PostedPrompt and not prompt.is_checked:
            _fail(self, prompt, prompt_id, *rest, **named)
            return
        partitioned = prompt.partitioned if type(prompt) is PostedPrompt else None
        if partitioned is None:
            await execute(self, prompt, prompt_id, *rest, **named)
            return
        with ExitStack() as stack:
            stack.enter_context(_Translation(self, partitioned))
            stack.enter_context(_Shielded(running(prompt_id, partitioned)))
            await execute(self, partitioned.prompt, prompt_id, *rest, **named)
            self.history_result = _history(partitioned, self.history_result)

    return execute_async


def _fail(executor: Any, prompt: PostedPrompt, prompt_id: str, extra_data: Mapping[str, Any] | None = None, *rest: Any) -> None:
    """End a prompt with placed parts that reached the executor without validation, as ComfyUI ends one whose node fails."""
    with compat.shielded("a prompt that was not validated could not be refused"):
        executor.success, executor.status_messages = False, []
        executor.history_result = {"outputs": {}, "meta": {}}
        executor.server.client_id = (extra_data or {}).get("client_id")
        node = next(iter(prompt), "")
        facts = {
            "prompt_id": prompt_id,
            "node_id": node,
            "node_type": str(prompt.get(node, {}).get("class_type")),
            "executed": [],
            "exception_message": "Another extension replaced ComfyUI's validation, so the placed parts of this workflow were not sent to their "
            "endpoints. Remove the placements to run it here, or disable that extension.\n",
            "exception_type": "yggdrasill.errors.RunError",
            "traceback": [],
            "current_inputs": {},
            "current_outputs": [],
        }
        executor.add_message("execution_start", {"prompt_id": prompt_id}, False)
        executor.add_message("execution_error", facts, False)


class _Shielded:
    """Enters and leaves a context of ours; a failure of either is logged."""

    def __init__(self, context: AbstractContextManager[None]) -> None:
        self._context = context
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with compat.shielded("a placed prompt could not be recorded"):
            self._stack.enter_context(self._context)

    def __exit__(self, *raised: object) -> None:
        with compat.shielded("a placed prompt could not be recorded"):
            self._stack.close()


class _Translation:
    """While entered, the messages of an executor are those of the posted prompt."""

    def __init__(self, executor: Any, partitioned: PartitionedPrompt) -> None:
        self._executor = executor
        self._partitioned = partitioned
        self._server: Any = None

    def __enter__(self) -> None:
        with compat.shielded("the messages of a placed prompt cannot be translated"):
            executor = self._executor
            executor.add_message = _translated(executor, type(executor).add_message, self._partitioned)
            self._server, executor.server = executor.server, _TranslatingServer(executor.server, self._partitioned)

    def __exit__(self, *raised: object) -> None:
        with compat.shielded("the messages of a placed prompt cannot be translated"):
            if self._server is not None:
                self._executor.server = self._server
            del self._executor.add_message


@compat.guarded("a message of a placed prompt could not be translated", lambda partitioned, event, data: [(event, data)])
def _messages(partitioned: PartitionedPrompt, event: Any, data: Any) -> list[Message]:
    return translate_message(partitioned, event, data)


@compat.guarded("the history of a placed prompt could not be translated", lambda partitioned, result: result)
def _history(partitioned: PartitionedPrompt, result: dict[str, Any]) -> dict[str, Any]:
    return translate_history(partitioned, result)


def _translated(
    executor: Any, add_message: Callable[..., None], partitioned: PartitionedPrompt
) -> Callable[[str, dict[str, Any], bool], None]:
    def add(event: str, data: dict[str, Any], broadcast: bool) -> None:
        if event == "execution_cached":
            with compat.shielded("the hidden input PROMPT of a placed prompt could not be set"):
                _use_dynamic_prompt(partitioned)
        for kind, facts in _messages(partitioned, event, data) if event in _BY_EXECUTOR else [(event, data)]:
            add_message(executor, kind, facts, broadcast)

    return add


def _use_dynamic_prompt(partitioned: PartitionedPrompt) -> None:
    """Record ComfyUI's dynamic prompt, and make the hidden input PROMPT the posted one, for nodes that save it. Called before any node runs."""
    partitioned.dynprompt = running = compat.progress_registry().dynprompt
    running.get_original_prompt = lambda: dict(partitioned.posted)


class _TranslatingServer:
    """A proxy of ComfyUI's server for the executor of one partitioned prompt. It differs only in messages about nodes, which it translates."""

    def __init__(self, server: Any, partitioned: PartitionedPrompt) -> None:
        object.__setattr__(self, "_server", server)
        object.__setattr__(self, "_partitioned", partitioned)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # a page that connects again receives this node as the one that executes
        if name == "last_node_id" and isinstance(value, str) and value in self._partitioned.calls:
            value = self._partitioned.display_node(value)[0]
        setattr(self._server, name, value)

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        messages = _messages(self._partitioned, event, data) if event in _BY_SERVER else [(event, data)]
        for kind, facts in messages:
            self._server.send_sync(kind, facts, sid)
