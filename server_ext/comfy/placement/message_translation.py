"""Translates ComfyUI's messages about a partitioned prompt into messages about the posted prompt: inner nodes replace placed nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from yggdrasill.server_ext.comfy.placement.partitioned_prompt import InnerFailure, NodeIds, PartitionedPrompt

__all__ = ["INNER_OUTPUTS", "Message", "pack_outputs", "translate_history", "translate_message"]

INNER_OUTPUTS = "yggdrasill"
"""The key under which a placed node stores the outputs of its inner nodes, so that ComfyUI's cache keeps them too."""

Message = tuple[str, dict[str, Any]]


def pack_outputs(outputs: Iterable[tuple[NodeIds, Any]]) -> dict[str, Any] | None:
    """Return the outputs of inner nodes, each with its ids at the endpoint, as the output of the placed node, or None if there are none."""
    packed = [[[ids.node, ids.display, ids.parent, ids.real], output] for ids, output in outputs]
    return {INNER_OUTPUTS: packed} if packed else None


def _outputs(partitioned: PartitionedPrompt, running_id: str, output: Any) -> Iterator[tuple[NodeIds, Any]]:
    """Yield the outputs of the inner nodes of a call. Of a call that did not run in this prompt, those that ComfyUI shows again."""
    packed = output.get(INNER_OUTPUTS) or () if isinstance(output, Mapping) else ()
    for ids, shown in packed:
        inner = NodeIds(*ids)
        if running_id in partitioned.started or _is_repeated(partitioned, inner.display):
            yield partitioned.ids_in(running_id, inner), shown


def _is_repeated(partitioned: PartitionedPrompt, node_id: str) -> bool:
    return node_id in partitioned.posted and partitioned.posted[node_id]["class_type"] in partitioned.repeated


def translate_message(partitioned: PartitionedPrompt, event: str, data: Mapping[str, Any]) -> list[Message]:
    """Return the messages to send instead of one of ComfyUI's; most are unchanged."""
    if event == "execution_cached":
        return [(event, {**data, "nodes": _inner(partitioned, data["nodes"])})]
    if event == "progress_state":
        return [(event, {**data, "nodes": _states(partitioned, data["nodes"])})]
    node_id = data.get("node_id") if event.startswith("execution_") else data.get("node")
    call_id = partitioned.call_of(node_id) if isinstance(node_id, str) else None
    if call_id is None or not isinstance(node_id, str):
        return [(event, {**_with_lists(partitioned, data), **_failure_in_copy(partitioned, node_id, data)})]
    if event == "executing":
        return []
    if event == "executed":
        return _executed(partitioned, node_id, data)
    return [(event, {**_with_lists(partitioned, data), **_failure(partitioned, node_id, data)})]


def _executed(partitioned: PartitionedPrompt, running_id: str, data: Mapping[str, Any]) -> list[Message]:
    """Return the ``executed`` messages of a call. If it ran, all were sent during the run; if it was in ComfyUI's cache, none yet."""
    fresh = [(ids, shown) for ids, shown in _outputs(partitioned, running_id, data.get("output")) if ids.node not in partitioned.shown]
    return [("executed", {**data, "node": ids.node, "display_node": ids.display, "output": shown}) for ids, shown in fresh]


def _states(partitioned: PartitionedPrompt, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the progress of nodes without placed nodes, and with the ids of inner nodes of copies."""
    found = {}
    for node_id, state in nodes.items():
        ids = partitioned.copied.get(node_id)
        if ids is not None:
            shown = {"display_node_id": ids.display, "parent_node_id": ids.parent, "real_node_id": ids.real}
            found[node_id] = {**state, **shown}
        elif partitioned.call_of(node_id) is None:
            found[node_id] = state
    return found


def _failure(partitioned: PartitionedPrompt, running_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
    failed = partitioned.failures.get(running_id)
    if failed is None or "exception_type" not in data:
        node, kind = partitioned.display_node(running_id)
        return {"node_id": node, "node_type": kind}
    return {"node_id": failed.node_id, "node_type": failed.node_type, **_exception(failed, data)}


def _failure_in_copy(partitioned: PartitionedPrompt, node_id: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of an error that ComfyUI reports on the node that started a loop, if a copy of a call raised it.

    The error of a node stays there, as in a local run; an error of the call itself is reported on a node of the part.
    """
    if "exception_type" not in data or partitioned.dynprompt is None:
        return {}
    message = str(data.get("exception_message"))
    for running_id, failed in partitioned.failures.items():
        if message.startswith(failed.raised) and partitioned.dynprompt.get_real_node_id(running_id) == node_id:
            place = {} if failed.is_local_error else {"node_id": failed.node_id, "node_type": failed.node_type}
            return {**place, **_exception(failed, data)}
    return {}


def _exception(failed: InnerFailure, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "exception_type": failed.exception_type,
        "exception_message": failed.message,
        "traceback": list(failed.traceback) or data.get("traceback", []),
        "current_inputs": {},
    }


def _with_lists(partitioned: PartitionedPrompt, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with inner nodes in the lists ``executed`` and ``current_outputs``."""
    lists = {name: _inner(partitioned, data[name]) for name in ("executed", "current_outputs") if isinstance(data.get(name), list)}
    if "executed" in lists:
        unfinished = {ids.node for ids in tuple(partitioned.running.values())}
        lists["executed"] += [node for node in tuple(partitioned.executed) if node not in lists["executed"] and node not in unfinished]
    return {**data, **lists}


def _inner(partitioned: PartitionedPrompt, nodes: Iterable[str]) -> list[str]:
    found = []
    for node in nodes:
        is_call = partitioned.call_of(node) is not None
        found += [ids.node for ids in partitioned.inner_nodes(node)] if is_call else [node]
    return found


def translate_history(partitioned: PartitionedPrompt, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a prompt that ended, as the history stores it, with outputs and metadata by inner node."""
    outputs: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for node, output in result.get("outputs", {}).items():
        if partitioned.call_of(node) is None:
            outputs[node], meta[node] = output, result["meta"].get(node)
            continue
        for ids, shown in _outputs(partitioned, node, output):
            outputs[ids.node] = shown
            meta[ids.node] = {"node_id": ids.node, "display_node": ids.display, "parent_node": ids.parent, "real_node_id": ids.real}
    return {**result, "outputs": outputs, "meta": meta}
