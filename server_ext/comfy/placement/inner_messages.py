"""Forwards messages about nodes that run at an endpoint under their own ids, as ComfyUI would send them for local nodes."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.custom_messages import is_custom
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt
from yggdrasill.server_ext.comfy.preview_files import FileParts, store_files

__all__ = ["InnerMessages"]

_LOG = logging.getLogger("yggdrasill.comfy")


class InnerMessages:
    """Sends to the client that started the prompt. Create it in the task of the placed node; the threads of the call use it.

    ``inner`` are the ids of the nodes to report; other nodes at the endpoint, such as ports, are not reported.
    """

    def __init__(self, node_id: str, prompt_id: str, partitioned: PartitionedPrompt | None, inner: Collection[str]) -> None:
        self._node_id = node_id
        self._prompt_id = prompt_id
        self._partitioned = partitioned
        self._inner = frozenset(inner)
        self._sid = compat.running_client()
        self._registry: Any = None
        self._shown: dict[str, Any] = {}
        self._running: str | None = None
        self._file_parts = FileParts()
        #: The messages of blocked ports, by port name.
        self.blocked: dict[str, str | None] = {}
        # ComfyUI iterates over the entries in other threads without a lock: all are created here, and no message creates another one
        with compat.shielded("the progress of remote nodes cannot be shown"):
            self._registry = compat.progress_registry()
            for node in (*self._inner, *(partitioned.prompt if partitioned is not None else ())):
                self._registry.ensure_entry(node)

    @property
    def outputs(self) -> dict[str, Any]:
        """Return the outputs that inner nodes have shown, by id."""
        return dict(self._shown)

    def progress(self, node_path: str, done: float, total: float, text: str | None) -> None:
        """Ignore the progress of the call: the inner nodes report their own."""

    def watch(self, kind: str, data: Mapping[str, Any]) -> None:
        """Forward an event of the job."""
        handle = _HANDLERS.get(str(data.get("what"))) if kind == "comfy" else None
        if handle is not None:
            with compat.shielded("a message about a remote node could not be shown"):
                handle(self, data)

    def end(self) -> None:
        """Finish the node that is running, after the call has succeeded."""
        self._finish_running()
        if self._partitioned is not None:
            self._partitioned.running.pop(self._node_id, None)

    # -- handlers by message ------------------------------------------------------------------------------------

    def _blocked(self, data: Mapping[str, Any]) -> None:
        self.blocked[str(data.get("port"))] = data.get("message")

    def _cached(self, data: Mapping[str, Any]) -> None:
        nodes = [node for node in map(str, data.get("nodes") or ()) if node in self._inner]
        if nodes:
            self._send("execution_cached", {"nodes": nodes, "timestamp": int(time.time() * 1000)})
            for node in nodes:
                self._report("finish_progress", node)

    def _executing(self, data: Mapping[str, Any]) -> None:
        self._finish_running()
        node, display = self._ids(data)
        if display not in self._inner:
            return
        self._running = display
        if self._partitioned is not None:
            self._partitioned.running[self._node_id] = display
            self._partitioned.executed.add(display)
        self._send("executing", {"node": node, "display_node": display})
        self._report("start_progress", display)

    def _progress(self, data: Mapping[str, Any]) -> None:
        _, display = self._ids(data)
        if display in self._inner:
            value, maximum = float(data["value"]), float(data["max"])
            self._report("update_progress", display, value, maximum)
            # the older of two messages, which the editor's panel of runs reads
            self._send("progress", {"value": value, "max": maximum, "node": display})

    def _executed(self, data: Mapping[str, Any]) -> None:
        node, display = self._ids(data)
        if display not in self._inner:
            return
        output, files = data.get("output"), [*(data.get("files") or ()), *self._file_parts.take(data.get("parts"))]
        self._report_left_out(node, display, data.get("left_out"))
        if output:
            output = store_files(output, files, lambda name: f"{self._prompt_id[:8]}-{node.replace(':', '.')}-{name}")
            self._shown[node] = output
        if self._partitioned is not None:
            self._partitioned.shown.add(node)
        self._send("executed", {"node": node, "display_node": display, "output": output})

    def _file_part(self, data: Mapping[str, Any]) -> None:
        self._file_parts.add(data)

    def _report_left_out(self, node: str, display: str, left_out: Any) -> None:
        """Show on the node, and write to the log, what the endpoint did not send of an output."""
        if isinstance(left_out, list) and left_out:
            text = f"Not sent by the endpoint: {'; '.join(map(str, left_out[:5]))}"
            _LOG.warning("Yggdrasill: node %s: %s", node, text)
            if self._sid is not None:
                compat.send_text(text, display, self._sid)

    def _custom(self, data: Mapping[str, Any]) -> None:
        event, facts = data.get("event"), data.get("data")
        if self._sid is None or not is_custom(event):
            return
        if isinstance(facts, Mapping) and "prompt_id" in facts:
            facts = {**facts, "prompt_id": self._prompt_id}
        compat.send_any(str(event), facts, self._sid)

    def _preview(self, data: Mapping[str, Any]) -> None:
        node, display = self._ids(data)
        if display not in self._inner or self._sid is None:
            return
        ids = {"node_id": node, "display_node_id": display, "real_node_id": display, "parent_node_id": None}
        facts = {**ids, "prompt_id": self._prompt_id, "image_type": str(data.get("type"))}
        compat.send_preview(facts, base64.b64decode(str(data.get("image", ""))), self._sid)

    def _text(self, data: Mapping[str, Any]) -> None:
        _, display = self._ids(data)
        if display in self._inner and self._sid is not None:
            compat.send_text(str(data.get("text")), display, self._sid)

    def _ids(self, data: Mapping[str, Any]) -> tuple[str, str]:
        """Return the id of a node and of the node that the editor shows for it: nodes created by another node are shown as that one."""
        node = str(data.get("node"))
        return node, str(data.get("display") or node)

    def _finish_running(self) -> None:
        if self._running is not None:
            self._report("finish_progress", self._running)
            self._running = None

    def _report(self, change: str, node: str, *progress: float) -> None:
        """Change the progress of ``node``, which has an entry in the registry."""
        if self._registry is not None:
            with compat.shielded("the progress of a remote node could not be shown"):
                getattr(self._registry, change)(node, *progress)

    def _send(self, event: str, facts: Mapping[str, Any]) -> None:
        if self._sid is not None:
            compat.send_json(event, {**facts, "prompt_id": self._prompt_id}, self._sid)


_HANDLERS = {
    "port_blocked": InnerMessages._blocked,
    "cached": InnerMessages._cached,
    "executing": InnerMessages._executing,
    "progress": InnerMessages._progress,
    "executed": InnerMessages._executed,
    "preview": InnerMessages._preview,
    "text": InnerMessages._text,
    "file_part": InnerMessages._file_part,
    "custom": InnerMessages._custom,
}
