"""Throttles a prompt's progress messages; the latest message of each kind is always delivered."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from yggdrasill.server_ext.comfy.preview_files import read_files
from yggdrasill.server_ext.comfy.prompt_run import PromptRun, Watch

__all__ = ["PREVIEW_INTERVAL", "EventThrottle"]

_LOG = logging.getLogger("yggdrasill.comfy")

PREVIEW_INTERVAL = 0.1
"""Minimum seconds between two previews, or two texts, of one node. Of those that arrive within it, only the newest is sent."""
_LONGEST_TEXT = 500
_LARGEST_PREVIEW = 512 << 10
_LARGEST_OUTPUT = 512 << 10
_MAX_CUSTOM = 1000
"""Messages of node packs that one run may send."""
_PLAIN = ("started", "cached", "executing", "progress", "output")
#: Messages after which the previews of earlier nodes are complete.
_FLUSHING = ("executing", "executed", "error", "interrupted", "success", "ended", "lost")


class EventThrottle:
    """Forwards the messages of ``run`` to its progress sink and to its watcher. Use it from one thread."""

    def __init__(self, run: PromptRun) -> None:
        self._run = run
        self._watch = run.watch
        self._last_sent: dict[str, float] = {}
        self._pending: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._custom = 0

    def handle(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Forward a message, or hold it back if it is a preview or a text that is not due.

        A preview over 512 KiB is dropped. An output over 512 KiB of JSON, and files over the limit of `preview_files`, are left out of an
        ``executed`` message, which lists them as ``left_out``. Larger files precede it in parts, as ``file_part`` messages.
        """
        node_path = f"{self._run.node_path}/{facts.get('node')}"
        sink = self._run.context.progress_sink
        if kind == "progress" and sink is not None:
            sink(node_path, facts["value"], facts["max"], None)
        if self._watch is None:
            return
        if kind in _FLUSHING:
            for key in list(self._pending):
                self._send(key, time.monotonic())
        if kind == "text" or (kind == "preview" and len(facts["image"]) <= _LARGEST_PREVIEW):
            self._pending[f"{kind}/{facts['node']}"] = kind, facts
            self.flush_due()
        elif kind in _PLAIN:
            self._watch(kind, dict(facts))
        elif kind == "executed":
            self._send_executed(self._watch, facts)
        elif kind == "custom":
            self._custom += 1
            if self._custom <= _MAX_CUSTOM:
                self._watch(kind, dict(facts))
            elif self._custom == _MAX_CUSTOM + 1:
                _LOG.warning("Yggdrasill: %s: messages of its nodes after the first %d are left out.", self._run.node_path, _MAX_CUSTOM)

    def _send_executed(self, watch: Watch, facts: Mapping[str, Any]) -> None:
        size = _json_size(facts)
        if size is None or size > _LARGEST_OUTPUT:
            what = (
                "an output that is not JSON"
                if size is None
                else f"an output of {size >> 10} KiB, over the limit of {_LARGEST_OUTPUT >> 10} KiB"
            )
            watch("executed", {**facts, "output": None, "left_out": [what]})
            return
        shown = read_files(facts.get("output"))
        for part in shown.parts():
            watch("file_part", {"node": facts["node"], **part})
        more: dict[str, Any] = {"files": shown.small, "left_out": shown.left_out, "parts": shown.large}
        watch("executed", {**facts, **{key: value for key, value in more.items() if value}})

    def timeout(self, limit: float) -> float:
        """Return the seconds until the next pending preview is due, at most ``limit``."""
        now = time.monotonic()
        return max(0.0, min([limit, *(self._last_sent[key] + PREVIEW_INTERVAL - now for key in self._pending)]))

    def flush_due(self) -> None:
        """Send the pending previews whose interval has elapsed."""
        now = time.monotonic()
        for key in [key for key in self._pending if now - self._last_sent.get(key, -PREVIEW_INTERVAL) >= PREVIEW_INTERVAL]:
            self._send(key, now)

    def _send(self, key: str, now: float) -> None:
        kind, facts = self._pending.pop(key)
        self._last_sent[key] = now
        if self._watch is not None and kind == "text":
            self._watch(kind, {**facts, "text": facts["text"][:_LONGEST_TEXT]})
        elif self._watch is not None:
            picture = base64.b64encode(facts["image"]).decode("ascii")
            self._watch(kind, {**facts, "image": picture})


def _json_size(facts: Mapping[str, Any]) -> int | None:
    try:
        return len(json.dumps(facts))
    except (TypeError, ValueError, RecursionError):
        return None
