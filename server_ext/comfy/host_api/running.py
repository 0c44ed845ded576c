"""The prompt and node that are executing, their preview method, and requests to interrupt them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

__all__ = ["ExecutingNode", "executing_node", "interrupted", "preview_method", "raise_interrupt"]


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
    return str(importlib.import_module("comfy.cli_args").args.preview_method.value)
