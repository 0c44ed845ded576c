"""What is passed on of a prompt's messages: not oftener than it can be used, and nothing that was the last of its kind is lost."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

from yggdrasill.server_ext.comfy.preview_files import read_files
from yggdrasill.server_ext.comfy.prompt_run import PromptRun

__all__ = ["PREVIEW_INTERVAL", "EventThrottle"]

PREVIEW_INTERVAL = 0.1
"""Seconds between two previews of one node; of those that come meanwhile the newest is shown after them."""
_LARGEST_PREVIEW = 512 << 10
_LARGEST_OUTPUT = 64 << 10
_PLAIN = ("started", "cached", "executing", "progress", "output")
#: After these no more previews of the nodes before can come.
_FLUSHING = ("executing", "executed", "error", "interrupted", "success", "ended", "lost")


class EventThrottle:
    """Tells the run's progress sink and whoever watches it. For one thread."""

    def __init__(self, run: PromptRun) -> None:
        self._run = run
        self._watch = run.watch
        self._last_sent: dict[str, float] = {}
        self._pending: dict[str, Mapping[str, Any]] = {}

    def handle(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Pass a message on."""
        place = f"{self._run.node_path}/{facts.get('node')}"
        sink = self._run.context.progress_sink
        if kind == "progress" and sink is not None:
            sink(place, facts["value"], facts["max"], None)
        if self._watch is None:
            return
        if kind in _FLUSHING:
            for node in list(self._pending):
                self._send(node, time.monotonic())
        if kind == "preview" and len(facts["image"]) <= _LARGEST_PREVIEW:
            self._pending[facts["node"]] = facts
            self.flush_due()
        elif kind in _PLAIN:
            self._watch(kind, dict(facts))
        elif kind == "executed" and _small(facts):
            files = read_files(facts.get("output"))
            self._watch(kind, {**facts, "files": files} if files else dict(facts))

    def timeout(self, limit: float) -> float:
        """Seconds until a preview that waits may be shown, at most so many."""
        now = time.monotonic()
        return max(0.0, min([limit, *(self._last_sent[node] + PREVIEW_INTERVAL - now for node in self._pending)]))

    def flush_due(self) -> None:
        """Show the previews that have waited long enough."""
        now = time.monotonic()
        for node in [node for node in self._pending if now - self._last_sent.get(node, -PREVIEW_INTERVAL) >= PREVIEW_INTERVAL]:
            self._send(node, now)

    def _send(self, node: str, now: float) -> None:
        facts = self._pending.pop(node)
        self._last_sent[node] = now
        if self._watch is not None:
            picture = base64.b64encode(facts["image"]).decode("ascii")
            self._watch("preview", {**facts, "image": picture})


def _small(facts: Mapping[str, Any]) -> bool:
    try:
        return len(json.dumps(facts)) <= _LARGEST_OUTPUT
    except (TypeError, ValueError):
        return False
