"""The prompt and node that run now: which they are, how previews are made, and whether somebody asked them to stop."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

__all__ = ["ExecutingNode", "executing_node", "interrupted", "preview_method", "raise_interrupt"]


@dataclass(frozen=True)
class ExecutingNode:
    """The prompt and node that this code is called for."""

    prompt_id: str
    node_id: str


def interrupted() -> bool:
    """Whether somebody asked the prompt that runs to stop, and nothing has taken notice yet."""
    return bool(importlib.import_module("comfy.model_management").processing_interrupted())


def raise_interrupt() -> None:
    """Take notice of an interrupt by raising ComfyUI's own exception; nothing happens without one."""
    importlib.import_module("comfy.model_management").throw_exception_if_processing_interrupted()


def executing_node() -> ExecutingNode | None:
    """The prompt and node whose code is running, in a node's own thread or task."""
    context = importlib.import_module("comfy_execution.utils").get_executing_context()
    return None if context is None else ExecutingNode(str(context.prompt_id), str(context.node_id))


def preview_method() -> str:
    """How the prompt that runs wants previews of latents made: ``none``, ``auto``, ``latent2rgb`` or ``taesd``. In a node's own task."""
    return str(importlib.import_module("comfy.cli_args").args.preview_method.value)
