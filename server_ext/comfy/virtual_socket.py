"""A fake websocket client registered with ComfyUI, through which a run receives all messages about one prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.custom_messages import CUSTOM_MESSAGE

__all__ = ["VirtualSocket"]

_TEXT = 3
_PREVIEW_WITH_METADATA = 4
_MAX_NODE_ID = 1000
_MAX_METADATA = 64 << 10
_BEGINNING = (0.0, 1.0)


class VirtualSocket:
    """Receives the messages of the prompt ``prompt_id`` and calls ``on_message(kind, facts)`` for each relevant one.

    Kinds: ``started``, ``cached`` (nodes), ``executing`` (node), ``progress`` (node, value, max), ``executed`` (node, output),
    ``preview`` (node, type, image), ``text`` (node, text), ``custom`` (event, data: a message of a node's pack), ``error`` (node, node_type, exception_type, message, traceback), ``interrupted`` (node),
    ``success``, ``ended`` and ``lost`` (the prompt is no longer in any queue). A node that another node created has ``display`` too, the id of
    the node that the editor shows, and, once ComfyUI has reported its progress, ``parent`` and ``real``: its creator, and the node of the
    prompt that this goes back to. The methods never raise, because an exception would end ComfyUI's main loop.
    """

    def __init__(self, prompt_id: str, on_message: Callable[[str, dict[str, Any]], None], state: Callable[[str], str | None]) -> None:
        self.prompt_id = prompt_id
        self._on_message = on_message
        self._state = state
        self._progress: dict[str, tuple[Any, Any]] = {}
        #: The ids, as in `_node_ids`, of the nodes that have started; empty before and after the run.
        self._started: dict[str, dict[str, Any]] = {}
        #: ``parent`` and ``real`` of nodes that other nodes created.
        self._origins: dict[str, dict[str, str]] = {}

    async def send_json(self, message: Any) -> None:
        """Receive a JSON message."""
        with compat.shielded("a message of ComfyUI could not be read"):
            self._handle(message["type"], message.get("data") or {})

    async def send_bytes(self, message: Any) -> None:
        """Receive a binary message. A preview with the id of its node, and a text on a node, are forwarded; others are ignored."""
        with compat.shielded("a preview of ComfyUI could not be read"):
            data = memoryview(message)
            kind = int.from_bytes(data[:4], "big")
            if len(data) >= 8 and kind == _TEXT:
                self._handle_text(data)
            if len(data) < 8 or kind != _PREVIEW_WITH_METADATA:
                return
            length = int.from_bytes(data[4:8], "big")
            if length > _MAX_METADATA or len(data) < 8 + length:
                return
            metadata = json.loads(bytes(data[8 : 8 + length]))
            if metadata.get("prompt_id") == self.prompt_id:
                ids = _node_ids({"node": metadata.get("node_id"), "display_node": metadata.get("display_node_id")})
                ids |= _origin(metadata)
                self._on_message("preview", {**ids, "type": str(metadata.get("image_type")), "image": bytes(data[8 + length :])})

    def _handle_text(self, data: memoryview) -> None:
        """Forward a text on a node. It has no prompt id, and ComfyUI may send it to every client, so the node must be one of this prompt."""
        length = int.from_bytes(data[4:8], "big")
        if length <= _MAX_NODE_ID and len(data) >= 8 + length:
            ids = self._started.get(bytes(data[8 : 8 + length]).decode("utf-8", "replace"))
            if ids is not None:
                self._on_message("text", {**ids, "text": bytes(data[8 + length :]).decode("utf-8", "replace")})

    def _handle(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "status":
            if self._state(self.prompt_id) is None:
                self._on_message("lost", {})
            return
        if data.get("prompt_id") != self.prompt_id:
            return
        read = _READERS.get(kind)
        if read is not None:
            event, facts = read(data)
            facts |= self._origins.get(str(facts.get("node")), {})
            if event == "executing":
                self._started[facts["node"]] = facts
            elif event == "ended":
                self._started = {}
            self._on_message(event, facts)
        elif kind == "progress_state":
            self._handle_progress(data.get("nodes") or {})

    def _handle_progress(self, nodes: Mapping[str, Any]) -> None:
        """Forward the progress of nodes for which it changed."""
        for node, state in nodes.items():
            if state.get("parent_node_id") is not None:
                self._origins.setdefault(node, _origin(state))
            progress = (state.get("value"), state.get("max"))
            # every node starts with 0 of 1 and ends with 1 of 1; only nodes that report steps in between have progress
            has_steps = progress != _BEGINNING and state.get("state") == "running"
            has_ended = state.get("state") == "finished" and node in self._progress
            if (has_steps or has_ended) and self._progress.get(node) != progress:
                self._progress[node] = progress
                ids = _node_ids({"node": node, "display_node": state.get("display_node_id")})
                self._on_message("progress", {**ids, "value": float(progress[0]), "max": float(progress[1])})


def _executing(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    node = data.get("node")
    return ("ended", {}) if node is None else ("executing", _node_ids(data))


def _node_ids(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the id of a node and, for a node that another node created, the id of the node that the editor shows."""
    node, display = str(data.get("node")), data.get("display_node")
    return {"node": node} if display is None or str(display) == node else {"node": node, "display": str(display)}


def _origin(state: Mapping[str, Any]) -> dict[str, str]:
    """Return ``parent`` and ``real`` of a node that another node created, from ComfyUI's metadata about it."""
    parent, real = state.get("parent_node_id"), state.get("real_node_id")
    return {} if parent is None else {"parent": str(parent), "real": str(real)}


def _error(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return "error", {
        "node": str(data.get("node_id")),
        "node_type": str(data.get("node_type")),
        "exception_type": str(data.get("exception_type")),
        "message": str(data.get("exception_message")).strip(),
        "traceback": [str(line) for line in data.get("traceback") or []],
    }


_READERS: dict[str, Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {
    "execution_start": lambda data: ("started", {}),
    "execution_cached": lambda data: ("cached", {"nodes": [str(node) for node in data.get("nodes") or []]}),
    "executing": _executing,
    "executed": lambda data: ("executed", {**_node_ids(data), "output": data.get("output")}),
    "execution_error": _error,
    "execution_interrupted": lambda data: ("interrupted", {"node": str(data.get("node_id"))}),
    "execution_success": lambda data: ("success", {}),
    CUSTOM_MESSAGE: lambda data: ("custom", {"event": str(data.get("event")), "data": data.get("data")}),
}
