"""Messages on a node while it executes: progress, previews and a line of text, under the id of the node."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.prompt_run import PromptRun

__all__ = ["NodeMessages"]


class NodeMessages:
    """Sends to the client that started the prompt. Create it in the thread of the node; the thread of the call uses it."""

    def __init__(self, node_id: str, prompt_id: str, run: PromptRun | None) -> None:
        self._node_id = node_id
        self._prompt_id = prompt_id
        # inside a nested run ComfyUI's globals are those of the outer prompt
        is_nested = run is not None and run.registry is not None
        self._sid = run.prompt_id if run is not None else compat.running_client()
        self._registry = run.registry if run is not None and is_nested else compat.progress_registry()

    def progress(self, place: str, done: float, total: float, text: str | None) -> None:
        """Report progress anywhere in the called graph as progress of this node."""
        if total > 0:
            # another thread may be adding nodes to the registry; the next report follows soon
            with compat.shielded("progress could not be shown"):
                self._registry.update_progress(self._node_id, done, total)

    def watch(self, kind: str, data: Mapping[str, Any]) -> None:
        """Show the preview in an event of the job; ignore other events."""
        if kind == "comfy" and data.get("what") == "preview":
            with compat.shielded("a preview could not be shown"):
                self.show_image(str(data.get("type")), base64.b64decode(str(data.get("image", ""))))

    def show_image(self, image_type: str, image: bytes) -> None:
        """Show an encoded picture (``JPEG`` or ``PNG``) on the node."""
        if self._sid is not None:
            with compat.shielded("a preview could not be shown"):
                compat.send_preview(self._metadata(image_type), image, self._sid)

    def show_text(self, text: str) -> None:
        """Show a line of text on the node."""
        if self._sid is not None:
            with compat.shielded("a text could not be shown"):
                compat.send_text(text, self._node_id, self._sid)

    def _metadata(self, image_type: str) -> dict[str, Any]:
        prompt = self._registry.dynprompt
        return {
            "node_id": self._node_id,
            "prompt_id": self._prompt_id,
            "display_node_id": prompt.get_display_node_id(self._node_id),
            "parent_node_id": prompt.get_parent_node_id(self._node_id),
            "real_node_id": prompt.get_real_node_id(self._node_id),
            "image_type": image_type,
        }
