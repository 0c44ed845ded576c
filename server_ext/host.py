"""What a host of jobs offers to the service: it runs tasks in threads of its own choice, and knows what it has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from yggdrasill.server_ext.tasks import Task

__all__ = ["Host"]


class Host(Protocol):
    """What runs tasks: this process's threads, or ComfyUI's queue."""

    @property
    def name(self) -> str:
        """``headless`` or ``comfy``."""
        ...

    def enqueue(self, task: Task) -> None:
        """Call ``task.execute`` in some thread, when its turn has come."""
        ...

    def withdraw(self, task: Task) -> bool:
        """Take back a task that has not begun; False if it has."""
        ...

    def queue_depth(self) -> dict[str, Any]:
        """``{"queued", "running", "slots"}``."""
        ...

    def memory(self) -> list[dict[str, Any]]:
        """``{device, free, total}`` in bytes of the devices it computes on, as far as that is known without effort."""
        ...

    def describe(self) -> dict[str, Any]:
        """What this host adds to the capabilities; may take a moment."""
        ...

    def model_fingerprints(self, files: Sequence[str]) -> dict[str, dict[str, str]]:
        """By file and model folder, what tells a model file's content; reads parts of the files.

        Raises:
            InvalidConfig: this host is no ComfyUI.
        """
        ...

    def node_forms(self, names: Sequence[str]) -> dict[str, Any]:
        """``{"nodes": {class: entry of ComfyUI's /object_info}, "asks_again", "unknown"}``; blocks.

        Raises:
            InvalidConfig: this host is no ComfyUI.
        """
        ...
