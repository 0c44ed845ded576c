"""The interface of a host, and the headless host: executes tasks in worker threads of this process, limited by slots."""

from __future__ import annotations

import heapq
import itertools
import queue
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from yggdrasill.errors import Cancelled, InvalidConfig
from yggdrasill.executor.context import CancelToken
from yggdrasill.server_ext.jobs.execution import Task

__all__ = ["Acquirable", "HeadlessHost", "Host", "Lease", "Slots"]


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


_POLL_SECONDS = 0.25
"""Interval at which a thread that waits for a slot checks its cancel token."""


class Slots:
    """A fixed number of slots. Jobs that resume have priority over new jobs. ``on_free`` is called when a new job may start."""

    def __init__(self, count: int, on_free: Callable[[], None]) -> None:
        self.count = count
        self._free = count
        self._resuming = 0
        self._changed = threading.Condition()
        self._on_free = on_free

    def try_lease(self, token: CancelToken) -> Lease | None:
        """Return a slot for a new job, or None if none is free."""
        with self._changed:
            if self._free <= self._resuming:
                return None
            self._free -= 1
        return Lease(self, token)

    def release(self) -> None:
        """Return a slot."""
        with self._changed:
            self._free += 1
            self._changed.notify()
        self._on_free()

    def acquire(self, token: CancelToken) -> None:
        """Wait for a slot.

        Raises:
            Cancelled: the job was cancelled while it waited; no slot is held.
        """
        with self._changed:
            self._resuming += 1
            while self._free == 0 and not token.cancelled:
                self._changed.wait(_POLL_SECONDS)
            self._resuming -= 1
            acquired = self._free > 0
            self._free -= acquired
        if not acquired:
            # a new job that this waiter held back may start now
            self._on_free()
            raise Cancelled(token.reason)


class Acquirable(Protocol):
    """What a `Lease` holds; `Slots` describes the methods."""

    def acquire(self, token: CancelToken) -> None:
        """Wait for it; raises `Cancelled`."""

    def release(self) -> None:
        """Give it back."""


class Lease:
    """The slot of one job.

    The job holds its slot only while none of its threads waits for another endpoint. A thread that resumes while another one still waits
    continues without a slot: holding one could prevent the job that the other thread waits for from starting.
    """

    def __init__(self, slots: Acquirable, token: CancelToken) -> None:
        self._slots = slots
        self._token = token
        self._lock = threading.Lock()
        self._waiting_threads = 0
        self._held = True

    @contextmanager
    def release_slot(self) -> Iterator[None]:
        """Release the slot inside the ``with`` block and acquire it again afterwards."""
        with self._lock:
            self._waiting_threads += 1
            held, self._held = self._held, False
        if held:
            self._slots.release()
        try:
            yield
        finally:
            self._reacquire()

    def _reacquire(self) -> None:
        with self._lock:
            self._waiting_threads -= 1
            last = self._waiting_threads == 0
        if not last:
            return
        self._slots.acquire(self._token)
        with self._lock:
            # another thread of the job may have released or reacquired the slot while this one waited
            keep = self._waiting_threads == 0 and not self._held
            self._held = self._held or keep
        if not keep:
            self._slots.release()

    def end(self) -> None:
        """Return the slot when the job ends."""
        with self._lock:
            held, self._held = self._held, False
        if held:
            self._slots.release()


_Entry = tuple[int, int, Task]
_IDLE_SECONDS = 30.0
"""An idle worker thread exits after this time without a task."""


class HeadlessHost:
    """Runs tasks by priority, those of one priority in first-in, first-out order; see `yggdrasill.server_ext.host.Host`.

    Every started task keeps its thread, even while its slot is released, so there can be more threads than slots.
    """

    name = "headless"

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self._slots = Slots(slots, self._dispatch)
        self._lock = threading.Lock()
        #: The queued tasks, and their order: ``(-priority, number, task)``. Entries of withdrawn tasks are skipped.
        self._waiting: set[Task] = set()
        self._order: list[_Entry] = []
        self._numbers = itertools.count()
        #: Entries of tasks whose exclusive key was busy at their turn, by key. The first one returns to the order when the key is free.
        self._parked: defaultdict[str, list[_Entry]] = defaultdict(list)
        self._running: set[Task] = set()
        self._busy_keys: set[str] = set()
        self._work: queue.SimpleQueue[tuple[Task, Lease]] = queue.SimpleQueue()
        self._idle = 0

    def enqueue(self, task: Task) -> None:
        """Run ``task`` when a slot is free."""
        with self._lock:
            self._waiting.add(task)
            heapq.heappush(self._order, (-task.job.priority, next(self._numbers), task))
        self._dispatch()

    def withdraw(self, task: Task) -> bool:
        """Remove a task that has not started. Return False if it has started."""
        with self._lock:
            if task not in self._waiting:
                return False
            self._waiting.remove(task)
            if task.exclusive_key is not None:
                self._unpark(task.exclusive_key)
            if len(self._order) > 2 * len(self._waiting) + 64:
                self._order = [entry for entry in self._order if entry[2] in self._waiting]
                heapq.heapify(self._order)
            return True

    def queue_depth(self) -> dict[str, Any]:
        """Return ``{"queued", "running", "slots"}``."""
        with self._lock:
            return {"queued": len(self._waiting), "running": len(self._running), "slots": self.slots}

    def memory(self) -> list[dict[str, Any]]:
        """Return ``{device, free, total}`` (bytes) of each CUDA device that this process uses.

        The query would create a context on any other device, which takes some hundred MB of it.
        """
        torch: Any = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return []
        used = [index for index in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(index) > 0]
        devices = ((f"cuda:{index}", *torch.cuda.mem_get_info(index)) for index in used)
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
            while (entry := self._next()) is not None:
                task = entry[2]
                lease = self._slots.try_lease(task.job.token)
                if lease is None:
                    heapq.heappush(self._order, entry)
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

    def _next(self) -> _Entry | None:
        """Take the first entry whose task may start out of the order."""
        while self._order:
            entry = heapq.heappop(self._order)
            key = entry[2].exclusive_key
            if entry[2] not in self._waiting:
                continue
            if key not in self._busy_keys:
                return entry
            heapq.heappush(self._parked[str(key)], entry)
        return None

    def _unpark(self, key: str) -> None:
        """Return the first parked task of a free key to the order."""
        if key in self._busy_keys:
            return
        parked = self._parked.get(key, [])
        while parked:
            entry = heapq.heappop(parked)
            if entry[2] in self._waiting:
                heapq.heappush(self._order, entry)
                break
        if not parked:
            self._parked.pop(key, None)

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
                self._unpark(task.exclusive_key)
            self._idle += 1
