"""A call that a node makes. It starts at once in a thread of its own, and the node waits without blocking ComfyUI's event loop.

Subclasses define what is called: `remote_call.py` for the Remote Graph node, `placement/placed_call.py` for a placed part. This module has
what they share: messages on the node, interrupts, and prompts that run nested while the node waits.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken, RunContext, observe_waits
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.compat.probe import REMOTE_GRAPH
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.node_messages import NodeMessages
from yggdrasill.server_ext.comfy.prompt_run import PromptRun
from yggdrasill.server_ext.comfy.reentrant_slot import ReentrantSlot
from yggdrasill.server_ext.comfy.runner import observe_prompts

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NodeCall"]

_POLL = 0.1


@dataclass(eq=False, kw_only=True)
class NodeCall(ABC):
    """One call. ``ports`` maps sockets ``p0``, ``p1`` ... to their values; a subclass implements `_run`."""

    ports: Mapping[str, list[Any]]
    node_id: str
    seed: int = 0
    token: CancelToken = field(default_factory=CancelToken)

    feature: ClassVar[str] = REMOTE_GRAPH

    def start(self) -> Self:
        """Start the call. Must be called in the task of the node, because messages are attributed to the executing node.

        Raises:
            UnsupportedVersion: this ComfyUI does not support such calls.
        """
        extension_context().require(self.feature)
        node = compat.executing_node()
        self._preview_method = compat.preview_method()
        self._outer_run = run = extension_context().runner.run_of(node.prompt_id) if node else None
        self._prompt_id = node.prompt_id if node else ""
        self._messages = self._make_messages(self._prompt_id, run)
        path = (*run.context.path, self.node_id) if run is not None else ()
        self._reentrant_slot = ReentrantSlot(extension_context().runner, run.reentrant_root if run is not None else None)
        self._context = RunContext(self.seed, path, token=self.token, progress=self._messages.progress)
        self._future: Future[dict[int, list[Any]]] = Future()
        threading.Thread(target=self._work, name=f"yggdrasill-call-{self.node_id}", daemon=True).start()
        return self

    async def result(self) -> dict[int, list[Any]]:
        """Wait for the call and return the values by output socket; a socket without values is left out.

        An interrupt cancels the call without waiting for its end.

        Raises:
            YggdrasillError: as the run that is called. ComfyUI's InterruptProcessingException.
        """
        future = asyncio.wrap_future(self._future)
        try:
            while not future.done():
                await self._reentrant_slot.wait_with(future, _POLL)
                if compat.interrupted():
                    self.token.cancel("interrupted")
                    await self._reentrant_slot.stop()
                    compat.raise_interrupt()
                if self._outer_run is not None and self._outer_run.context.token.cancelled:
                    self.token.cancel(self._outer_run.context.token.reason)
                    await self._reentrant_slot.stop()
                    raise Cancelled(self.token.reason)
            await self._reentrant_slot.finish()
            return future.result()
        except BaseException:
            self.token.cancel("the calling node was stopped")
            raise
        finally:
            self._reentrant_slot.end()

    def _make_messages(self, prompt_id: str, run: PromptRun | None) -> Any:
        return NodeMessages(self.node_id, prompt_id, run)

    # -- in the thread of the call -------------------------------------------------------------------------------

    @abstractmethod
    def _run(self) -> dict[int, list[Any]]:
        """Make the call and return the values by output socket."""

    def _work(self) -> None:
        try:
            with observe_waits(self._reentrant_slot.update_waits):
                outputs = self._run()
            self._future.set_result(outputs)
        except BaseException as error:  # noqa: BLE001 - the node raises it
            self._future.set_exception(error)

    def _on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Handle an event of the called job."""
        self._messages.watch(kind, data)

    def run_nested(self, graph: ComfyGraph, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a workflow inside the prompt of this node while the node waits, and return its outputs. Call it in the thread of the call.

        Raises:
            As `ComfyGraph.run`.
        """
        with observe_prompts(
            lambda kind, facts: self._on_event("comfy", {"what": kind, **facts}),
            "",
            begin=self._reentrant_slot.run_local,
            preview_method=self._preview_method,
        ):
            return extension_context().runner.run_prompt(graph, inputs, self._context)
