"""ComfyUI's queue: checking prompts, putting them in and taking them out, and how they stand.

An item of another length than the queue takes ends the thread that runs prompts, so what goes in is checked here first.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.comfy.host_api.json_values import json_copy
from yggdrasill.server_ext.comfy.host_api.process import prompt_server

__all__ = [
    "Validation",
    "delete_queued",
    "enqueue",
    "forget",
    "interrupt_running",
    "prompt_state",
    "queue_depth",
    "validate",
    "waiting_prompts",
]


@dataclass(frozen=True)
class Validation:
    """What ComfyUI thinks of a prompt: the output nodes it would run, or what is wrong with which node."""

    ok: bool
    outputs: list[str]
    error: dict[str, Any] | None
    node_errors: dict[str, Any]


async def validate(prompt_id: str, prompt: dict[str, Any]) -> Validation:
    """Let ComfyUI check ``prompt``, in which it writes constants as the node classes want them. On the main loop only."""
    ok, error, outputs, node_errors = await importlib.import_module("execution").validate_prompt(prompt_id, prompt, None)
    return Validation(bool(ok), [str(node) for node in outputs], error, dict(node_errors))


def enqueue(number: float, prompt_id: str, prompt: Mapping[str, Any], extra_data: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Put a validated prompt into ComfyUI's queue; smaller numbers go first.

    Raises:
        InvalidArgument: something in it is not what the queue takes; nothing was queued.
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:  # noqa: PLR0124 - not a number
        raise InvalidArgument(f"a place in the queue is a number, got {number!r}")
    if not prompt_id or not isinstance(prompt_id, str) or not outputs:
        raise InvalidArgument("a prompt in the queue needs an id and at least one output node")
    copy = json_copy(dict(prompt), "the prompt")
    extra = {**json_copy(dict(extra_data), "extra_data"), "create_time": int(time.time() * 1000)}
    prompt_server().prompt_queue.put((number, prompt_id, copy, extra, [str(node) for node in outputs], {}))


def delete_queued(prompt_id: str) -> bool:
    """Take a waiting prompt out of the queue; False if none of that id waits."""
    return bool(prompt_server().prompt_queue.delete_queue_item(lambda item: item[1] == prompt_id))


def interrupt_running(prompt_id: str) -> bool:
    """Interrupt the prompt of that id if it runs right now, and no other; False if it does not run."""
    return bool(prompt_server().prompt_queue.interrupt_if_running(prompt_id))


def prompt_state(prompt_id: str) -> str | None:
    """``running``, ``queued`` or ``finished``; None for a prompt that ComfyUI does not have (any more)."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        if any(item[1] == prompt_id for item in prompt_queue.currently_running.values()):
            return "running"
        if any(item[1] == prompt_id for item in prompt_queue.queue):
            return "queued"
        return "finished" if prompt_id in prompt_queue.history else None


def queue_depth() -> tuple[int, int]:
    """How many prompts wait and run, the owner's included."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        return len(prompt_queue.queue), len(prompt_queue.currently_running)


def waiting_prompts() -> list[tuple[float, str]]:
    """The places and ids of the prompts that wait, the owner's included, in no order."""
    prompt_queue = prompt_server().prompt_queue
    with prompt_queue.mutex:
        return [(float(item[0]), str(item[1])) for item in prompt_queue.queue]


def forget(prompt_id: str) -> None:
    """Remove a finished prompt from ComfyUI's history."""
    prompt_server().prompt_queue.delete_history_item(prompt_id)
