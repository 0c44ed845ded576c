"""The interface between the service and the host that executes its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from yggdrasill.server_ext.tasks import Task

__all__ = ["Host"]


class Host(Protocol):
    """Executes tasks: worker threads of this process, or ComfyUI's queue."""

    @property
    def name(self) -> str:
        """``headless`` or ``comfy``."""
        ...

    def enqueue(self, task: Task) -> None:
        """Queue a task. The host calls ``task.execute`` once, in a thread that it chooses."""
        ...

    def withdraw(self, task: Task) -> bool:
        """Remove a task that has not started. Return False if it has started."""
        ...

    def queue_depth(self) -> dict[str, Any]:
        """Return ``{"queued", "running", "slots"}``."""
        ...

    def memory(self) -> list[dict[str, Any]]:
        """Return ``{device, free, total}`` (bytes) of each device, as far as this is known without initializing one."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the host's entries in the capabilities. May block."""
        ...

    def model_fingerprints(self, files: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return fingerprints of model files by file and model folder. Reads parts of the files.

        Raises:
            InvalidConfig: this host is not a ComfyUI.
        """
        ...

    def node_forms(self, names: Sequence[str]) -> dict[str, Any]:
        """Return ``{"nodes": {class: entry of ComfyUI's /object_info}, "asks_again", "unknown"}``. Blocks.

        Raises:
            InvalidConfig: this host is not a ComfyUI.
        """
        ...
