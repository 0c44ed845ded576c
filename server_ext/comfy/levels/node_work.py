"""The work of one node in a thread of its own, which an interrupt stops.

While the work computes, no other node of ComfyUI executes, as for any node that is not asynchronous: two models would otherwise compete for a
device. While it waits for another endpoint or for a workflow, other nodes execute, and the node runs ComfyUI workflows of its own project
nested, and re-entrant runs that its calls to other servers depend on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken, Host, RunContext, enter_run, observe_waits
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.compat.probe import REMOTE_GRAPH
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.levels.built import current_prompt
from yggdrasill.server_ext.comfy.node_messages import NodeMessages
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.reentrant_slot import ReentrantSlot
from yggdrasill.server_ext.comfy.runner import observe_prompts
from yggdrasill.server_ext.headless import Lease

__all__ = ["ExecutorTurn", "Meter", "NodeWork"]

Result = TypeVar("Result")
_POLL = 0.1
_GRACE = 20.0
"""Seconds that an interrupted node waits for its work to stop. It stops between two blocks, or where a block checks for cancellation. Until
then its models take the memory that the next prompt needs; ComfyUI waits without a limit for a node of its own."""


class Meter:
    """The progress of a node: completed steps, and the fraction of the running one."""

    def __init__(self, messages: NodeMessages) -> None:
        self._messages = messages
        self._lock = threading.Lock()
        self._total = 1
        self._done = 0

    def begin(self, total: int, done: int = 0) -> None:
        """Start counting at ``done`` of ``total`` steps."""
        with self._lock:
            self._total, self._done = max(total, 1), done
        self._show(0.0)

    def step(self, count: int = 1) -> None:
        """Complete ``count`` steps."""
        with self._lock:
            self._done += count
        self._show(0.0)

    def step_progress(self, node_path: str, done: float, total: float, text: str | None) -> None:
        """Set the progress of the running step; a `ProgressSink`."""
        self._show(min(max(done / total, 0.0), 1.0) if total > 0 else 0.0)

    def _show(self, share: float) -> None:
        with self._lock:
            done = min(self._done + share, self._total)
        self._messages.progress("", done, self._total, None)


class ExecutorTurn:
    """The right to compute instead of ComfyUI's other nodes. A thread holds it, from the start; a `Lease` gives it back during waits.

    ComfyUI's event loop is blocked in `block` while the thread computes. A thread that resumes is granted the right there.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._is_held = True
        self._is_wanted = False

    def acquire(self, token: CancelToken) -> None:
        """Wait for the right to compute.

        Raises:
            Cancelled: the token was cancelled; the right is not held.
        """
        with self._changed:
            self._is_wanted = True
        self._wake()
        with self._changed:
            while not self._is_held and not token.cancelled:
                self._changed.wait(_POLL)
            self._is_wanted = False
            if not self._is_held:
                raise Cancelled(token.reason)

    def release(self) -> None:
        """Let other nodes execute."""
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    def block(self, seconds: float) -> bool:
        """Block the event loop, for at most ``seconds``, while the thread computes. Return whether it still computes."""
        with self._changed:
            if self._is_wanted and not self._is_held:
                self._is_held = True
                self._changed.notify_all()
            return not self._changed.wait_for(lambda: not self._is_held, seconds)


class NodeWork(Generic[Result]):
    """Runs ``work(self)`` in a thread, in a run context of its own. Create it in the task of the node."""

    def __init__(self, node_id: str, work: Callable[[NodeWork[Result]], Result], *, seed: int | None = None) -> None:
        extension_context().require(REMOTE_GRAPH)
        node = compat.executing_node()
        self._outer_run: PromptRun | None = extension_context().runner.run_of(node.prompt_id) if node else None
        self._reentrant_slot = ReentrantSlot(
            extension_context().runner, self._outer_run.reentrant_root if self._outer_run is not None else None
        )
        self._preview_method = compat.preview_method()
        self.messages = NodeMessages(node_id, node.prompt_id if node else "", self._outer_run)
        self.meter = Meter(self.messages)
        self.token = CancelToken()
        self._seed = seed
        self._work = work
        self._future: Future[Result] = Future()
        self._turn = ExecutorTurn(self._reentrant_slot.wake)
        self._lease = Lease(self._turn, self.token)
        self._prompt_id = node.prompt_id if node else ""
        threading.Thread(target=self._run, name=f"yggdrasill-node-{node_id}", daemon=True).start()

    def _run(self) -> None:
        current_prompt.set(self._prompt_id)
        try:
            with (
                observe_waits(self._reentrant_slot.update_waits),
                observe_prompts(self._on_message, "", begin=self._reentrant_slot.run_local, preview_method=self._preview_method),
                enter_run(
                    seed=self._seed, path=(), token=self.token, progress=self.meter.step_progress, host=Host(self._lease.release_slot)
                ) as context,
            ):
                self.context: RunContext = context
                self._future.set_result(self._work(self))
        except BaseException as error:  # noqa: BLE001 - the node raises it
            self._future.set_exception(error)
        finally:
            self._lease.end()

    def _on_message(self, kind: str, facts: dict[str, Any]) -> None:
        """Show a message of a workflow that this node runs nested."""
        self.messages.watch("comfy", {"what": kind, **facts})

    async def result(self) -> Result:
        """Wait for the work and return its result. An interrupt stops the work before its next part, and waits for that.

        Raises:
            The errors of the work; ComfyUI's InterruptProcessingException.
        """
        future = asyncio.wrap_future(self._future)
        try:
            while not future.done():
                if not self._turn.block(_POLL):
                    await self._reentrant_slot.wait_with(future, _POLL)
                if compat.interrupted():
                    self.token.cancel("interrupted")
                    await self._reentrant_slot.stop()
                    await asyncio.wait([future], timeout=_GRACE)
                    compat.raise_interrupt()
                if self._outer_run is not None and self._outer_run.context.token.cancelled:
                    self.token.cancel(self._outer_run.context.token.reason)
                    await self._reentrant_slot.stop()
                    raise Cancelled(self.token.reason)
            await self._reentrant_slot.finish()
            return future.result()
        finally:
            self.token.cancel("the node was stopped")
            self._reentrant_slot.end()
            if not future.done():
                future.cancel()
