"""The host inside ComfyUI: workflows run through ComfyUI's queue, graphs of blocks run in slot threads beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.inventory import inventory, memory, node_hashes
from yggdrasill.server_ext.comfy.model_files import fingerprints, model_files
from yggdrasill.server_ext.comfy.object_info import read_object_info
from yggdrasill.server_ext.comfy.runner import observe_prompts
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.server_ext.jobs.execution import Task
from yggdrasill.server_ext.jobs.model import Job

__all__ = ["ComfyHost"]

_MAX_PROMPTS = 64
"""Workflow jobs whose values are unpacked or packed at the same time. A job whose prompt is in ComfyUI's queue releases its slot, so the
number of queued jobs is not limited.
"""


class ComfyHost:
    """Implements `yggdrasill.server_ext.host.Host`. The thread of a workflow job only waits, because ComfyUI runs one prompt at a time."""

    name = "comfy"

    def __init__(self, slots: int = 1) -> None:
        self._blocks = HeadlessHost(slots)
        self._prompts = HeadlessHost(_MAX_PROMPTS)
        self._lock = threading.Lock()
        self._watched: dict[str, tuple[HeadlessHost, _WatchedTask]] = {}

    def enqueue(self, task: Task) -> None:
        """Execute ``task`` when a slot is free."""
        host = self._prompts if task.deployment.kind == "comfy" else self._blocks
        watched = _WatchedTask(task, self._done)
        with self._lock:
            self._watched[task.job.job_id] = host, watched
        host.enqueue(watched)  # type: ignore[arg-type]  # it has every member of a task that a host uses

    def withdraw(self, task: Task) -> bool:
        """Remove a task that has not started. Return False if it has started."""
        with self._lock:
            found = self._watched.get(task.job.job_id)
        if found is None or not found[0].withdraw(found[1]):  # type: ignore[arg-type]
            return False
        self._done(task)
        return True

    def queue_depth(self) -> dict[str, Any]:
        """Return ``{"queued", "running", "slots"}``, including the prompts of ComfyUI's owner."""
        waiting, running = compat.queue_depth()
        blocks, prompts = self._blocks.queue_depth(), self._prompts.queue_depth()
        return {"queued": waiting + blocks["queued"] + prompts["queued"], "running": running + blocks["running"], "slots": 1}

    def memory(self) -> list[dict[str, Any]]:
        """Return ``{device, free, total}`` in bytes for each device."""
        return memory()

    def describe(self) -> dict[str, Any]:
        """Return the node classes and model files that a workflow may name, see `inventory`, and the features that are off."""
        return {"comfy": {**inventory(), "off": dict(extension_context().off)}}

    def model_files(self) -> Mapping[str, Sequence[str]]:
        """Return `yggdrasill.server_ext.comfy.model_files.model_files`."""
        return model_files()

    def model_fingerprints(self, files: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return `yggdrasill.server_ext.comfy.model_files.fingerprints`."""
        return fingerprints(files)

    def node_hashes(self) -> Mapping[str, str]:
        """Return a hash of the inputs and outputs of every node class."""
        return node_hashes()

    def node_forms(self, names: Sequence[str]) -> dict[str, Any]:
        """Return `yggdrasill.server_ext.comfy.object_info.read_object_info`."""
        found: dict[str, Any] = compat.on_main_loop(read_object_info(names))
        return found

    def _done(self, task: Task) -> None:
        with self._lock:
            self._watched.pop(task.job.job_id, None)


class _WatchedTask:
    """A task whose workflows report their messages as events of its job."""

    def __init__(self, task: Task, done: Callable[[Task], None]) -> None:
        self._task = task
        self._done = done

    @property
    def job(self) -> Job:
        return self._task.job

    @property
    def exclusive_key(self) -> str | None:
        return self._task.exclusive_key

    def execute(self, release_slot: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        task = self._task
        try:
            with observe_prompts(self._on_message, task.job.call_key, together=task.services.together):
                task.execute(release_slot)
        finally:
            self._done(task)

    def _on_message(self, kind: str, facts: dict[str, Any]) -> None:
        slot = f"preview/{facts['node']}" if kind == "preview" else None
        self._task.services.emit(self._task.job, "comfy", {"what": kind, **facts}, slot)
