"""ComfyUI's queue: validates prompts, adds and removes them, reports their states, and interrupts the running one.

A malformed queue item ends the thread that runs prompts, so items are checked before they are added.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.comfy.compat.server import command_line, json_copy, prompt_server

__all__ = [
    "ExecutingNode",
    "Validation",
    "delete_queued",
    "enqueue",
    "executing_node",
    "forget",
    "interrupt_running",
    "interrupted",
    "preview_method",
    "prompt_state",
    "queue_depth",
    "raise_interrupt",
    "validate",
    "waiting_prompts",
]


@dataclass(frozen=True)
class Validation:
    """ComfyUI's validation of a prompt: the output nodes that it would run, or the errors by node."""

    ok: bool
    outputs: list[str]
    error: dict[str, Any] | None
    node_errors: dict[str, Any]


async def validate(prompt_id: str, prompt: dict[str, Any]) -> Validation:
    """Validate ``prompt`` with ComfyUI, which converts its constants in place. Call it on the main loop."""
    ok, error, outputs, node_errors = await importlib.import_module("execution").validate_prompt(prompt_id, prompt, None)
    return Validation(bool(ok), [str(node) for node in outputs], error, dict(node_errors))


def enqueue(number: float, prompt_id: str, prompt: Mapping[str, Any], extra_data: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Add a validated prompt to ComfyUI's queue. Smaller numbers run first.

    Raises:
        InvalidArgument: the queue would not accept an argument; nothing was queued.
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:  # noqa: PLR0124 - not a number
        raise InvalidArgument(f"The position in the queue must be a number, got {number!r}.")
    if not prompt_id or not isinstance(prompt_id, str) or not outputs:
        raise InvalidArgument("A queued prompt needs an id and at least one output node.")
    copy = json_copy(dict(prompt), "the prompt")
    extra = {**json_copy(dict(extra_data), "extra_data"), "create_time": int(time.time() * 1000)}
    prompt_server().prompt_queue.put((number, prompt_id, copy, extra, [str(node) for node in outputs], {}))


def delete_queued(prompt_id: str) -> bool:
    """Remove a waiting prompt from the queue. Return False if no prompt with this id waits."""
    return bool(prompt_server().prompt_queue.delete_queue_item(lambda item: item[1] == prompt_id))


def interrupt_running(prompt_id: str) -> bool:
    """Interrupt the prompt with this id if it is running, and no other. Return False if it is not running."""
    return bool(prompt_server().prompt_queue.interrupt_if_running(prompt_id))


def prompt_state(prompt_id: str) -> str | None:
    """Return ``running``, ``queued`` or ``finished``, or None if ComfyUI does not have the prompt."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        if any(item[1] == prompt_id for item in prompt_queue.currently_running.values()):
            return "running"
        if any(item[1] == prompt_id for item in prompt_queue.queue):
            return "queued"
        return "finished" if prompt_id in prompt_queue.history else None


def queue_depth() -> tuple[int, int]:
    """Return the numbers of waiting and of running prompts, including those of the owner."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        return len(prompt_queue.queue), len(prompt_queue.currently_running)


def waiting_prompts() -> list[tuple[float, str]]:
    """Return the numbers and ids of the waiting prompts, including those of the owner, in no particular order."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        return [(float(item[0]), str(item[1])) for item in prompt_queue.queue]


def forget(prompt_id: str) -> None:
    """Remove a finished prompt from ComfyUI's history."""
    prompt_server().prompt_queue.delete_history_item(prompt_id)


# -- the running prompt ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExecutingNode:
    """The prompt and node that the current code executes for."""

    prompt_id: str
    node_id: str


def interrupted() -> bool:
    """Return whether an interrupt of the running prompt is pending."""
    return bool(importlib.import_module("comfy.model_management").processing_interrupted())


def raise_interrupt() -> None:
    """Raise ComfyUI's own exception if an interrupt is pending, which clears it."""
    importlib.import_module("comfy.model_management").throw_exception_if_processing_interrupted()


def executing_node() -> ExecutingNode | None:
    """Return the executing prompt and node, in the thread or task of a node; None elsewhere."""
    context = importlib.import_module("comfy_execution.utils").get_executing_context()
    return None if context is None else ExecutingNode(str(context.prompt_id), str(context.node_id))


def preview_method() -> str:
    """Return the preview method of the running prompt: ``none``, ``auto``, ``latent2rgb`` or ``taesd``. Call it in the task of a node."""
    return str(command_line().preview_method.value)
