"""The headless host: executes tasks in worker threads of this process, limited by slots."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from yggdrasill.errors import InvalidConfig
from yggdrasill.server_ext.slots import Lease, Slots
from yggdrasill.server_ext.tasks import Task

__all__ = ["HeadlessHost"]

_IDLE_SECONDS = 30.0
"""An idle worker thread exits after this time without a task."""


class HeadlessHost:
    """Runs tasks in first-in, first-out order; see `yggdrasill.server_ext.host.Host`.

    Every started task keeps its thread, even while its slot is released, so there can be more threads than slots.
    """

    name = "headless"

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self._slots = Slots(slots, self._dispatch)
        self._lock = threading.Lock()
        self._waiting: deque[Task] = deque()
        self._running: set[Task] = set()
        self._busy_keys: set[str] = set()
        self._work: queue.SimpleQueue[tuple[Task, Lease]] = queue.SimpleQueue()
        self._idle = 0

    def enqueue(self, task: Task) -> None:
        """Run ``task`` when a slot is free."""
        with self._lock:
            self._waiting.append(task)
        self._dispatch()

    def withdraw(self, task: Task) -> bool:
        """Remove a task that has not started. Return False if it has started."""
        with self._lock:
            try:
                self._waiting.remove(task)
            except ValueError:
                return False
            return True

    def queue_depth(self) -> dict[str, Any]:
        """Return ``{"queued", "running", "slots"}``."""
        with self._lock:
            return {"queued": len(self._waiting), "running": len(self._running), "slots": self.slots}

    def memory(self) -> list[dict[str, Any]]:
        """Return ``{device, free, total}`` (bytes) of each CUDA device; empty until this process has initialized CUDA."""
        torch: Any = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return []
        devices = ((f"cuda:{index}", *torch.cuda.mem_get_info(index)) for index in range(torch.cuda.device_count()))
        return [{"device": device, "free": free, "total": total} for device, free, total in devices]

    def describe(self) -> dict[str, Any]:
        """Return no additional capabilities."""
        return {}

    def model_fingerprints(self, files: Sequence[str]) -> dict[str, dict[str, str]]:
        """Raise `InvalidConfig`."""
        raise InvalidConfig("This endpoint is not a ComfyUI and has no model folders. Use a ComfyUI endpoint.")

    def node_forms(self, names: Sequence[str]) -> dict[str, Any]:
        """Raise `InvalidConfig`."""
        raise InvalidConfig("This endpoint is not a ComfyUI and has no node classes. Use a ComfyUI endpoint.")

    # -- threads ------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        with self._lock:
            while (task := next((t for t in self._waiting if t.exclusive_key not in self._busy_keys), None)) is not None:
                lease = self._slots.try_lease(task.job.token)
                if lease is None:
                    return
                self._waiting.remove(task)
                self._running.add(task)
                if task.exclusive_key is not None:
                    self._busy_keys.add(task.exclusive_key)
                self._work.put((task, lease))
                if self._idle:
                    self._idle -= 1
                else:
                    threading.Thread(target=self._run_worker, name="yggdrasill-slot", daemon=True).start()

    def _run_worker(self) -> None:
        while True:
            try:
                task, lease = self._work.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._idle == 0:
                        # a task was put for this thread just as its wait timed out
                        continue
                    self._idle -= 1
                return
            try:
                task.execute(lease.release_slot)
            finally:
                self._mark_done(task)
                del task
                lease.end()
                # a task with the same key may start now, even if this one ended without a slot
                self._dispatch()

    def _mark_done(self, task: Task) -> None:
        with self._lock:
            self._running.discard(task)
            if task.exclusive_key is not None:
                self._busy_keys.discard(task.exclusive_key)
            self._idle += 1
