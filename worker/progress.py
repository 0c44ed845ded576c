"""Progress of a running prompt as small messages for the caller: at most a few in a second, numbered, with the newest preview."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ProgressReport", "Report"]

Report = Callable[[dict[str, Any]], object]
"""Sends a message to the caller of a job. It returns at once and does not raise."""
_SECONDS = 0.5
_PREVIEW_SECONDS = 1.0
_MAX_PREVIEW = 256 << 10


class ProgressReport:
    """Turns ComfyUI's messages about one prompt into reports ``{"type", "seq", "completed", "total", "node", "class_type", "value", "max"}``.

    Reports may arrive out of order; ``seq`` increases. Previews are base64 in ``preview``.
    """

    def __init__(self, report: Report, prompt: Mapping[str, Any], *, previews: bool) -> None:
        self._report, self._previews = report, previews
        self._classes = {str(node): str(entry.get("class_type")) for node, entry in prompt.items()}
        self._finished: set[str] = set()
        self._node: str | None = None
        self._value, self._max = 0.0, 0.0
        self._seq = 0
        self._sent = self._shown = -_PREVIEW_SECONDS

    def on_message(self, kind: str, data: Mapping[str, Any]) -> None:
        """Receive a message of ComfyUI."""
        if kind == "execution_cached":
            self._finished |= {str(node) for node in data.get("nodes") or ()}
        elif kind == "executing":
            node = data.get("node")
            if self._node is not None:
                self._finished.add(self._node)
            self._node = None if node is None else str(node)
            self._value = self._max = 0.0
            self._send(force=node is not None)
        elif kind == "progress":
            self._value, self._max = _number(data.get("value")), _number(data.get("max"))
            self._node = str(data["node"]) if data.get("node") is not None else self._node
            self._send()
        elif kind == "executed":
            self._finished.add(str(data.get("node")))

    def on_preview(self, media_type: str, data: bytes) -> None:
        """Receive a preview image."""
        now = time.monotonic()
        if self._previews and now - self._shown >= _PREVIEW_SECONDS and len(data) <= _MAX_PREVIEW:
            self._shown = now
            self._send(force=True, preview={"media_type": media_type, "base64": base64.b64encode(data).decode("ascii")})

    def on_fetch(self, done: int, total: int, what: str) -> None:
        """Receive the progress of the verification of a version."""
        now = time.monotonic()
        if now - self._sent >= _SECONDS:
            self._sent, self._seq = now, self._seq + 1
            self._report({"type": "fetch", "seq": self._seq, "what": what, "value": done, "max": total})

    def _send(self, *, force: bool = False, **more: Any) -> None:
        now = time.monotonic()
        if not force and now - self._sent < _SECONDS:
            return
        self._sent, self._seq = now, self._seq + 1
        message: dict[str, Any] = {
            "type": "progress",
            "seq": self._seq,
            "completed": len(self._finished & self._classes.keys()),
            "total": len(self._classes),
        }
        if self._node is not None:
            message |= {"node": self._node, "class_type": self._classes.get(self._node)}
        if self._max:
            message |= {"value": self._value, "max": self._max}
        self._report({**message, **more})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
