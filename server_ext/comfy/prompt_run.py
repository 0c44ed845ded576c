"""One prompt of a job in ComfyUI: the messages received about it, and its result."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from yggdrasill.errors import BlockFailed, Cancelled, InvalidStructure, RunError
from yggdrasill.executor.context import RunContext, WaitCallback
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.comfy_ports import Blocked, port_value
from yggdrasill.server_ext.comfy.compat import Validation

__all__ = ["PromptRun", "Watch"]

Watch = Callable[[str, dict[str, Any]], None]
Message = tuple[str, dict[str, Any]]
_FINAL = frozenset({"success", "ended", "lost", "refused"})


class PromptRun:
    """ComfyUI's threads add messages with `post`, `hold` and `deliver`; one thread waits with `next_message` and reads `result`."""

    def __init__(
        self,
        prompt_id: str,
        graph: ComfyGraph,
        context: RunContext,
        watch: Watch | None = None,
        key: str | None = None,
        report_waits: WaitCallback | None = None,
    ) -> None:
        self.prompt_id = prompt_id
        #: The job key of the call that this run belongs to; other endpoints report it as the key they are blocked by.
        self.key = key
        self.watch = watch
        #: Receives the job keys that this run waits for through ComfyUI's only executor; a caller of this run waits for them too.
        self.report_waits = report_waits
        self.prompt: dict[str, Any] = {}
        self.sinks: list[str] = []
        #: The ``extra_data`` that ComfyUI receives with the prompt.
        self.extra_data: dict[str, Any] = {"client_id": prompt_id}
        #: Of a nested run: a function that stops it, the time by which it must end, and its progress registry.
        self.cancel_nested: Callable[[], None] | None = None
        self.deadline: float | None = None
        self.registry: Any = None
        #: The re-entrant run that this run is, or inside which one of its nodes started this run; None otherwise.
        self.reentrant_root: PromptRun | None = None
        self.stuck_since: float | None = None
        self.graph = graph
        self.context = context
        #: ``new``, then the state in ComfyUI's queue, or ``nested`` for a prompt that runs inside another one.
        self.state = "new"
        self.outputs: dict[str, Any] = {}
        #: Messages for the waiting thread, those that are held back, and those that it has not read yet.
        self._messages: queue.SimpleQueue[list[Message]] = queue.SimpleQueue()
        self._held: list[Message] = []
        self._unread: deque[Message] = deque()
        self._lock = threading.Lock()
        #: Whether a `flush` of held messages is scheduled. Used on ComfyUI's main loop.
        self.flushes_soon = False
        self._problem: Exception | None = None
        self._finished = False

    @property
    def node_path(self) -> str:
        """Return the node path of this run in its caller's project."""
        return self.context.place or self.graph.graph_id

    def post(self, kind: str, facts: dict[str, Any]) -> None:
        """Add a message; see `VirtualSocket` for the kinds."""
        self.hold(kind, facts)
        self.flush()

    def hold(self, kind: str, facts: dict[str, Any]) -> None:
        """Add a message that the waiting thread receives with the next one, or with `flush`: each time that it wakes costs as much as a small node."""
        with self._lock:
            self._held.append((kind, facts))

    def flush(self) -> None:
        """Pass the held messages to the waiting thread."""
        with self._lock:
            if self._held:
                self._messages.put(self._held)
                self._held = []

    def deliver(self, port: str, values: list[Any]) -> None:
        """Record the values that the sink of ``port`` received. A blocked port is left out, and the watcher receives the blocker's message."""
        if [type(value) for value in values] != [Blocked]:
            self.outputs[port] = port_value(values)
            self.context.host.emit_output(port, self.outputs[port])
        elif self.watch is not None:
            self.watch("port_blocked", {"port": port, "message": values[0].message})
        # ComfyUI sends messages about the same node afterwards
        self.hold("output", {"port": port})

    def refuse(self, error: Exception) -> None:
        """End the run with ``error`` because it could not be started."""
        self._problem = error
        self.post("refused", {})

    def next_message(self, seconds: float) -> Message | None:
        """Return the next message, or None if none arrives within ``seconds``."""
        if not self._unread:
            try:
                self._unread.extend(self._messages.get(timeout=seconds))
            except queue.Empty:
                return None
        message = self._unread.popleft()
        self._read(*message)
        return message

    @property
    def has_message(self) -> bool:
        """Return whether a message that arrived with the last one has not been read."""
        return bool(self._unread)

    @property
    def is_finished(self) -> bool:
        """Return whether the last message has been read."""
        return self._finished

    def _read(self, kind: str, facts: dict[str, Any]) -> None:
        self._finished = self._finished or kind in _FINAL
        if self._problem is not None:
            return
        if kind == "error" and facts["exception_type"] != "ExecutionBlocked":
            self._problem = self._failed(facts)
        elif kind == "interrupted":
            self._problem = Cancelled(
                f"{self.node_path}: interrupted by the owner of this ComfyUI", node=self.node_path, node_id=facts["node"]
            )
        elif kind == "lost":
            self._problem = RunError(
                f"{self.node_path}: the prompt is no longer in ComfyUI's queue, because the owner cleared the queue. Call again."
            )

    def _failed(self, facts: Mapping[str, Any]) -> BlockFailed:
        node = f"{self.node_path}/{facts['node']}"
        return BlockFailed(
            f"node {node!r} ({facts['node_type']}) failed: {facts['exception_type'].rpartition('.')[2]}: {facts['message']}",
            node=node,
            node_id=facts["node"],
            node_type=facts["node_type"],
            exception_type=facts["exception_type"],
            exception_message=facts["message"],
            traceback=facts["traceback"][-20:],
        )

    def result(self) -> dict[str, Any]:
        """Return the outputs by port after the last message.

        Raises:
            BlockFailed, Cancelled, RunError, InvalidStructure
        """
        if self.context.token.cancelled:
            raise Cancelled(f"{self.node_path}: {self.context.token.reason}", node=self.node_path)
        if self._problem is not None:
            raise self._problem
        return dict(self.outputs)

    def check(self, validation: Validation) -> None:
        """Raise `InvalidStructure` unless ComfyUI would execute every output port."""
        wanted = {port.nodes[0] for port in self.graph.outputs.values()}
        if validation.ok and wanted <= set(validation.outputs):
            return
        errors = [
            f"node {node!r} ({facts.get('class_type')}): {item.get('message')}: {item.get('details')}"
            for node, facts in validation.node_errors.items()
            for item in facts.get("errors", ())
        ]
        if not errors and validation.error is not None:
            errors = [f"{validation.error.get('message')}: {validation.error.get('details')}"]
        raise InvalidStructure(
            f"{self.node_path}: ComfyUI rejects the workflow: {'; '.join(errors[:5]) or 'no reason given'}",
            errors=errors,
            node_errors=validation.node_errors,
            error=validation.error,
        )
