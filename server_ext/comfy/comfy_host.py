"""The host inside ComfyUI: workflows go through its queue, graphs of blocks run in slot threads beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.inventory import inventory, memory, node_hashes
from yggdrasill.server_ext.comfy.model_files import fingerprints
from yggdrasill.server_ext.comfy.object_info import read_object_info
from yggdrasill.server_ext.comfy.runner import observe_prompts
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.server_ext.job import Job
from yggdrasill.server_ext.tasks import Task

__all__ = ["ComfyHost"]

_MAX_PROMPTS = 64
"""Workflow jobs whose values are unpacked or packed at the same time. One whose prompt is in ComfyUI's queue lends its place, so any number are there."""


class ComfyHost:
    """See `yggdrasill.server_ext.host.Host`. A workflow's thread only waits, for ComfyUI runs one prompt at a time."""

    name = "comfy"

    def __init__(self, slots: int = 1) -> None:
        self._blocks = HeadlessHost(slots)
        self._prompts = HeadlessHost(_MAX_PROMPTS)
        self._lock = threading.Lock()
        self._watched: dict[str, tuple[HeadlessHost, _WatchedTask]] = {}

    def enqueue(self, task: Task) -> None:
        """Run ``task`` when its turn has come."""
        home = self._prompts if task.deployment.kind == "comfy" else self._blocks
        watched = _WatchedTask(task, self._done)
        with self._lock:
            self._watched[task.job.job_id] = home, watched
        home.enqueue(watched)  # type: ignore[arg-type]  # it stands for the task in all that a host does with one

    def withdraw(self, task: Task) -> bool:
        """Take back a task that has not begun; False if it has."""
        with self._lock:
            found = self._watched.get(task.job.job_id)
        if found is None or not found[0].withdraw(found[1]):  # type: ignore[arg-type]
            return False
        self._done(task)
        return True

    def queue_depth(self) -> dict[str, Any]:
        """``{"queued", "running", "slots"}``; the prompts of ComfyUI's owner count."""
        waiting, running = host_api.queue_depth()
        blocks, prompts = self._blocks.queue_depth(), self._prompts.queue_depth()
        return {"queued": waiting + blocks["queued"] + prompts["queued"], "running": running + blocks["running"], "slots": 1}

    def memory(self) -> list[dict[str, Any]]:
        """``{device, free, total}`` in bytes."""
        return memory()

    def describe(self) -> dict[str, Any]:
        """What a workflow may name here; see `inventory`."""
        return {"comfy": inventory()}

    def model_fingerprints(self, files: Sequence[str]) -> dict[str, dict[str, str]]:
        """See `yggdrasill.server_ext.comfy.model_files.fingerprints`."""
        return fingerprints(files)

    def node_hashes(self) -> Mapping[str, str]:
        """A hash of the form of every node class."""
        return node_hashes()

    def node_forms(self, names: Sequence[str]) -> dict[str, Any]:
        """See `yggdrasill.server_ext.comfy.object_info.node_forms`."""
        found: dict[str, Any] = host_api.on_main_loop(read_object_info(names))
        return found

    def _done(self, task: Task) -> None:
        with self._lock:
            self._watched.pop(task.job.job_id, None)


class _WatchedTask:
    """A task whose workflows report what happens in them as events of its job."""

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
            with observe_prompts(self._on_message, task.job.key):
                task.execute(release_slot)
        finally:
            self._done(task)

    def _on_message(self, kind: str, facts: dict[str, Any]) -> None:
        slot = f"preview/{facts['node']}" if kind == "preview" else None
        self._task.services.tell(self._task.job, "comfy", {"what": kind, **facts}, slot)
