"""Translates ComfyUI's messages about a partitioned prompt into messages about the posted prompt: inner nodes replace placed nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt

__all__ = ["INNER_OUTPUTS", "Message", "pack_outputs", "translate_history", "translate_message"]

INNER_OUTPUTS = "yggdrasill"
"""The key under which a placed node stores the outputs of its inner nodes, so that ComfyUI's cache keeps them too."""

Message = tuple[str, dict[str, Any]]


def pack_outputs(outputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the outputs of inner nodes as the output of the placed node, or None if there are none."""
    return {INNER_OUTPUTS: [[node, output] for node, output in outputs.items()]} if outputs else None


def _unpack(output: Any) -> dict[str, Any]:
    return dict(output.get(INNER_OUTPUTS) or ()) if isinstance(output, Mapping) else {}


def translate_message(partitioned: PartitionedPrompt, event: str, data: Mapping[str, Any]) -> list[Message]:
    """Return the messages to send instead of one of ComfyUI's; most are unchanged."""
    if event == "execution_cached":
        return [(event, {**data, "nodes": _inner(partitioned, data["nodes"])})]
    node_id = data.get("node_id") if event.startswith("execution_") else data.get("node")
    if not isinstance(node_id, str) or node_id not in partitioned.calls:
        return [(event, _with_lists(partitioned, data))]
    if event == "executing":
        return []
    if event == "executed":
        return _executed(partitioned, data)
    return [(event, {**_with_lists(partitioned, data), **_failure(partitioned, node_id, data)})]


def _executed(partitioned: PartitionedPrompt, data: Mapping[str, Any]) -> list[Message]:
    """Return the ``executed`` messages of a call. If it ran, all were sent during the run; if it was in ComfyUI's cache, none yet."""
    fresh = {node: output for node, output in _unpack(data.get("output")).items() if node not in partitioned.shown}
    return [("executed", {**data, "node": node, "display_node": node, "output": output}) for node, output in fresh.items()]


def _failure(partitioned: PartitionedPrompt, node_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
    failed = partitioned.failures.get(node_id)
    if failed is None or "exception_type" not in data:
        node, kind = partitioned.display_node(node_id)
        return {"node_id": node, "node_type": kind}
    return {
        "node_id": failed.node_id,
        "node_type": failed.node_type,
        "exception_type": failed.exception_type,
        "exception_message": failed.message,
        "traceback": list(failed.traceback) or data.get("traceback", []),
        "current_inputs": {},
    }


def _with_lists(partitioned: PartitionedPrompt, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with inner nodes in the lists ``executed`` and ``current_outputs``."""
    lists = {name: _inner(partitioned, data[name]) for name in ("executed", "current_outputs") if isinstance(data.get(name), list)}
    if "executed" in lists:
        unfinished = set(partitioned.running.values())
        lists["executed"] += [node for node in tuple(partitioned.executed) if node not in lists["executed"] and node not in unfinished]
    return {**data, **lists}


def _inner(partitioned: PartitionedPrompt, nodes: Iterable[str]) -> list[str]:
    return [inner for node in nodes for inner in (partitioned.inner_ids(node) if node in partitioned.calls else [node])]


def translate_history(partitioned: PartitionedPrompt, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a prompt that ended, as the history stores it, with outputs and metadata by inner node."""
    outputs: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for node, output in result.get("outputs", {}).items():
        if node not in partitioned.calls:
            outputs[node], meta[node] = output, result["meta"].get(node)
            continue
        for inner, shown in _unpack(output).items():
            outputs[inner] = shown
            meta[inner] = {"node_id": inner, "display_node": inner, "parent_node": None, "real_node_id": inner}
    return {**result, "outputs": outputs, "meta": meta}
