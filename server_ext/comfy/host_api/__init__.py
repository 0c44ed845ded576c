"""Access to ComfyUI: its queue, messages, folders, running prompt and version.

ComfyUI trusts its callers, so arguments are checked here first. Functions may be called from any thread unless they say otherwise.
"""

from __future__ import annotations

from yggdrasill.server_ext.comfy.host_api.classes import call_node, node_classes
from yggdrasill.server_ext.comfy.host_api.folders import media_folders, model_folders, named_model_folders, user_directory
from yggdrasill.server_ext.comfy.host_api.messages import close_socket, open_socket, send_json, send_preview, send_text
from yggdrasill.server_ext.comfy.host_api.process import on_main_loop, prompt_server, shielded
from yggdrasill.server_ext.comfy.host_api.prompts import (
    Validation,
    delete_queued,
    enqueue,
    forget,
    interrupt_running,
    prompt_state,
    queue_depth,
    validate,
    waiting_prompts,
)
from yggdrasill.server_ext.comfy.host_api.running import ExecutingNode, executing_node, interrupted, preview_method, raise_interrupt
from yggdrasill.server_ext.comfy.host_api.version import MINIMUM_VERSION, comfy_version, flags_problem, version_problem

__all__ = [
    "MINIMUM_VERSION",
    "ExecutingNode",
    "Validation",
    "call_node",
    "close_socket",
    "comfy_version",
    "delete_queued",
    "enqueue",
    "executing_node",
    "flags_problem",
    "forget",
    "interrupt_running",
    "interrupted",
    "media_folders",
    "model_folders",
    "named_model_folders",
    "node_classes",
    "on_main_loop",
    "open_socket",
    "preview_method",
    "prompt_server",
    "prompt_state",
    "queue_depth",
    "raise_interrupt",
    "send_json",
    "send_preview",
    "send_text",
    "shielded",
    "user_directory",
    "validate",
    "version_problem",
    "waiting_prompts",
]
