"""Hidden inputs of a placed part in the user's terms: the prompt and the workflow as they were posted, instead of the part's own.

The caller adds one node with them to the part's prompt. At the endpoint it is removed, and the nodes that read them get the hash of its content as
a constant, so that a cached result of another workflow is not returned. ComfyUI's `get_input_data` then receives the user's values.

A placed node in a loop uses the same way for the nodes that take its values: each round executes them, as a local run does, although a value
may equal that of another round.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig
from yggdrasill.remote.comfy_ports import HIDDEN_NODE, INPUT_NODE, is_link
from yggdrasill.server_ext.comfy import compat
from yggdrasill.values.payload import blake3_hex

__all__ = ["add_hidden", "nodes_after_ports", "release_hidden", "replace_hidden_inputs", "take_hidden"]

_NODE_ID = "yggdrasill.hidden"
_INPUT = "yggdrasill_hidden"

_lock = threading.Lock()
_known: dict[str, tuple[Mapping[str, Any], int]] = {}
"""The hidden inputs of running prompts by hash, each with the number of its users."""


def add_hidden(
    prompt: Mapping[str, Any], nodes: Iterable[str], posted: Mapping[str, Any], extra_pnginfo: Any, execution: str | None = None
) -> dict[str, Any]:
    """Return the prompt of a part with the hidden inputs of ``nodes``: the posted prompt, and the ``extra_pnginfo`` posted with it.

    With ``execution``, results of another execution are not taken from a cache for these nodes and those after them.
    """
    facts = {"nodes": list(nodes), "prompt": dict(posted), "extra_pnginfo": extra_pnginfo}
    if execution is not None:
        facts["execution"] = execution
    return {**prompt, _NODE_ID: {"class_type": HIDDEN_NODE, "inputs": {"facts": json.loads(json.dumps(facts, default=str))}}}


def nodes_after_ports(prompt: Mapping[str, Any]) -> list[str]:
    """Return the nodes of a part's prompt that take values from its ports."""
    ports = {node_id for node_id, node in prompt.items() if node["class_type"] == INPUT_NODE}
    return [node_id for node_id, node in prompt.items() if any(is_link(value) and value[0] in ports for value in node["inputs"].values())]


def take_hidden(prompt: dict[str, Any]) -> str | None:
    """Remove the node with the hidden inputs from a prompt, and return the hash under which they are known until `release_hidden`.

    Raises:
        InvalidConfig: the node is malformed.
    """
    found = [node_id for node_id, node in prompt.items() if node["class_type"] == HIDDEN_NODE]
    if not found:
        return None
    facts = prompt.pop(found[0])["inputs"].get("facts")
    nodes = facts.get("nodes") if isinstance(facts, dict) else None
    if len(found) > 1 or not isinstance(nodes, list) or not isinstance(facts.get("prompt"), dict):
        raise InvalidConfig("The hidden inputs of this workflow are not valid. Use the same version of Yggdrasill on both sides.")
    digest = blake3_hex(memoryview(json.dumps(facts, sort_keys=True).encode("utf-8")))
    for node_id in nodes:
        if node_id in prompt:
            prompt[node_id]["inputs"][_INPUT] = digest
    with _lock:
        _known[digest] = facts, _known.get(digest, (facts, 0))[1] + 1
    return digest


def release_hidden(digest: str | None) -> None:
    """Undo one `take_hidden`."""
    with _lock:
        if digest is not None:
            facts, users = _known.pop(digest)
            if users > 1:
                _known[digest] = facts, users - 1


def replace_hidden_inputs() -> None:
    """Patch ComfyUI's `get_input_data`, once per process, so that nodes of placed parts receive the user's hidden inputs."""
    compat.wrap_input_data(_replacing, "hidden")


def _replacing(get_input_data: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(
        inputs: Any, class_def: Any, unique_id: Any, execution_list: Any = None, dynprompt: Any = None, extra_data: Any = None, **named: Any
    ) -> Any:
        digest = inputs.get(_INPUT) if isinstance(inputs, dict) else None
        if digest is not None:
            inputs = {name: value for name, value in inputs.items() if name != _INPUT}
            facts = _known.get(digest, (None, 0))[0] if isinstance(digest, str) else None
            if facts is not None and dynprompt is not None:
                dynprompt = _PostedPrompt(dynprompt, facts["prompt"])
                extra_data = {**(extra_data or {}), "extra_pnginfo": facts.get("extra_pnginfo")}
        return get_input_data(inputs, class_def, unique_id, execution_list, dynprompt, extra_data or {}, **named)

    return wrapped


class _PostedPrompt:
    """ComfyUI's dynamic prompt, except that the original prompt is the posted one."""

    def __init__(self, dynprompt: Any, posted: Mapping[str, Any]) -> None:
        self._dynprompt = dynprompt
        self._posted = posted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dynprompt, name)

    def get_original_prompt(self) -> dict[str, Any]:
        """Return a copy of the posted prompt."""
        return dict(self._posted)
