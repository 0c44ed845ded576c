"""Forwards messages about nodes that run at an endpoint under their own ids, as ComfyUI would send them for local nodes."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping
from typing import Any

from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.custom_messages import is_custom
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import NodeIds, PartitionedPrompt
from yggdrasill.server_ext.comfy.preview_files import FileParts, store_files

__all__ = ["InnerMessages"]

_LOG = logging.getLogger("yggdrasill.comfy")


class InnerMessages:
    """Sends to the client that started the prompt. Create it in the task of the placed node; the threads of the call use it.

    Only the nodes of the posted prompt inside the call are reported; other nodes at the endpoint, such as ports, are not. ``running_id`` is
    the id of the placed node, or of its copy in a loop; the inner nodes of a copy are reported as copies too.
    """

    def __init__(self, running_id: str, prompt_id: str, partitioned: PartitionedPrompt | None) -> None:
        self._running_id = running_id
        self._prompt_id = prompt_id
        self._partitioned = partitioned
        call_id = partitioned.call_of(running_id) if partitioned is not None else None
        self._inner = frozenset(partitioned.inner_ids(call_id)) if partitioned is not None and call_id is not None else frozenset()
        self._sid = compat.running_client()
        self._registry: Any = None
        self._shown: dict[str, tuple[NodeIds, Any]] = {}
        self._running: str | None = None
        self._file_parts = FileParts()
        #: The messages of blocked ports, by port name.
        self.blocked: dict[str, str | None] = {}
        if partitioned is None:
            return
        partitioned.started.add(running_id)
        nodes = partitioned.inner_nodes(running_id)
        if call_id != running_id:
            partitioned.copied.update({ids.node: ids for ids in nodes})
        # ComfyUI iterates over the entries in other threads without a lock: all are created here, and no message creates another one
        with compat.shielded("the progress of remote nodes cannot be shown"):
            self._registry = compat.progress_registry()
            for node in (*(ids.node for ids in nodes), *partitioned.prompt):
                self._registry.ensure_entry(node)

    @property
    def outputs(self) -> list[tuple[NodeIds, Any]]:
        """Return the outputs that inner nodes have shown, each with the ids of its node at the endpoint."""
        return list(self._shown.values())

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
            self._partitioned.running.pop(self._running_id, None)

    # -- handlers by message ------------------------------------------------------------------------------------

    def _blocked(self, data: Mapping[str, Any]) -> None:
        self.blocked[str(data.get("port"))] = data.get("message")

    def _cached(self, data: Mapping[str, Any]) -> None:
        nodes = [self._ids_in_run(NodeIds.of(node)).node for node in map(str, data.get("nodes") or ()) if node in self._inner]
        if nodes:
            self._send("execution_cached", {"nodes": nodes, "timestamp": int(time.time() * 1000)})
            for node in nodes:
                self._report("finish_progress", node)

    def _executing(self, data: Mapping[str, Any]) -> None:
        self._finish_running()
        inner = _inner_ids(data)
        if inner.display not in self._inner:
            return
        ids = self._ids_in_run(inner)
        self._running = self._entry_of(inner)
        if self._partitioned is not None:
            self._partitioned.running[self._running_id] = ids
            self._partitioned.executed.add(ids.node)
        self._send("executing", {"node": ids.node, "display_node": ids.display})
        self._report("start_progress", self._running)

    def _progress(self, data: Mapping[str, Any]) -> None:
        inner = _inner_ids(data)
        if inner.display in self._inner:
            value, maximum = float(data["value"]), float(data["max"])
            entry = self._entry_of(inner)
            self._report("update_progress", entry, value, maximum)
            # the older of two messages, which the editor's panel of runs reads
            self._send("progress", {"value": value, "max": maximum, "node": entry})

    def _executed(self, data: Mapping[str, Any]) -> None:
        inner = _inner_ids(data)
        if inner.display not in self._inner:
            return
        ids = self._ids_in_run(inner)
        output, files = data.get("output"), [*(data.get("files") or ()), *self._file_parts.take(data.get("parts"))]
        self._report_left_out(ids, data.get("left_out"))
        if output:
            prefix = f"{self._prompt_id[:8]}-{ids.node.replace(':', '.')}"
            output = store_files(output, files, lambda name: f"{prefix}-{name}", self._prompt_id)
            self._shown[inner.node] = inner, output
        if self._partitioned is not None:
            self._partitioned.shown.add(ids.node)
        self._send("executed", {"node": ids.node, "display_node": ids.display, "output": output})

    def _file_part(self, data: Mapping[str, Any]) -> None:
        self._file_parts.add(data)

    def _report_left_out(self, ids: NodeIds, left_out: Any) -> None:
        """Show on the node, and write to the log, what the endpoint did not send of an output."""
        if isinstance(left_out, list) and left_out:
            text = f"Not sent by the endpoint: {'; '.join(map(str, left_out[:5]))}"
            _LOG.warning("Yggdrasill: node %s: %s", ids.node, text)
            if self._sid is not None:
                compat.send_text(text, ids.display, self._sid)

    def _custom(self, data: Mapping[str, Any]) -> None:
        event, facts = data.get("event"), data.get("data")
        if self._sid is None or not is_custom(event):
            return
        if isinstance(facts, Mapping) and "prompt_id" in facts:
            facts = {**facts, "prompt_id": self._prompt_id}
        compat.send_any(str(event), facts, self._sid)

    def _preview(self, data: Mapping[str, Any]) -> None:
        inner = _inner_ids(data)
        if inner.display not in self._inner or self._sid is None:
            return
        ids = self._ids_in_run(inner)
        facts = {"node_id": ids.node, "display_node_id": ids.display, "real_node_id": ids.real, "parent_node_id": ids.parent}
        facts |= {"prompt_id": self._prompt_id, "image_type": str(data.get("type"))}
        compat.send_preview(facts, base64.b64decode(str(data.get("image", ""))), self._sid)

    def _text(self, data: Mapping[str, Any]) -> None:
        inner = _inner_ids(data)
        if inner.display in self._inner and self._sid is not None:
            compat.send_text(str(data.get("text")), self._ids_in_run(inner).display, self._sid)

    def _ids_in_run(self, inner: NodeIds) -> NodeIds:
        """Return the ids of a node in the prompt that runs here."""
        return inner if self._partitioned is None else self._partitioned.ids_in(self._running_id, inner)

    def _entry_of(self, inner: NodeIds) -> str:
        """Return the node whose progress is shown: nodes that the endpoint created have no entry, and are shown as their display node."""
        return self._ids_in_run(NodeIds.of(inner.display)).node

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


def _inner_ids(data: Mapping[str, Any]) -> NodeIds:
    """Return the ids of a node at the endpoint, from a message about it."""
    return NodeIds.of(str(data.get("node")), data.get("display"), data.get("parent"), data.get("real"))


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
