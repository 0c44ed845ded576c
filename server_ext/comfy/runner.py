"""Runs workflows with inputs and outputs through ComfyUI's own queue, so that its memory management, cache and interrupt apply."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidArgument, format_options
from yggdrasill.executor.context import RunContext, waiting
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.binding import bind_prompt, give_output_types
from yggdrasill.server_ext.comfy.event_throttle import EventThrottle
from yggdrasill.server_ext.comfy.hidden_inputs import release_hidden, take_hidden
from yggdrasill.server_ext.comfy.inventory import normalize_model_paths
from yggdrasill.server_ext.comfy.job_inputs import JobInputs
from yggdrasill.server_ext.comfy.prompt_run import PromptRun, Watch
from yggdrasill.server_ext.comfy.reentrancy import ReentrantScheduler
from yggdrasill.server_ext.comfy.virtual_socket import VirtualSocket

__all__ = ["POLICIES", "QueueRunner", "observe_prompts"]

POLICIES = ("fifo", "front")
_POLL = 0.1
_FAR_AHEAD = -(1 << 40)
LOST_AFTER = 30.0
"""Seconds without a message after which a run looks in ComfyUI's queue whether its prompt still exists."""
_MAX_AHEAD = 8
"""Jobs that may go ahead of a waiting prompt of the owner; the next job queues behind it."""
_STEP = 1e-6
_HELD = frozenset({"started", "cached", "executing", "progress", "executed", "preview", "text"})
_HOLD_SECONDS = 0.02
"""How long messages of these kinds are collected before the waiting thread wakes; the end of the prompt wakes it at once."""


@dataclass(frozen=True)
class _Caller:
    watch: Watch | None = None
    key: str | None = None
    begin: Callable[[PromptRun], None] | None = None
    preview_method: str | None = None
    together: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


_caller: ContextVar[_Caller] = ContextVar("yggdrasill_comfy_caller", default=_Caller())  # noqa: B039 - it is frozen


@contextlib.contextmanager
def observe_prompts(
    watch: Watch,
    key: str,
    *,
    begin: Callable[[PromptRun], None] | None = None,
    preview_method: str | None = None,
    together: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[None]:
    """Call ``watch(kind, facts)`` with each message, as JSON values, of the prompts that this thread and its branches run for the job ``key``.

    ``begin(run)`` starts each checked prompt, on ComfyUI's main loop; if it is None, prompts are queued. ``preview_method`` applies to prompts
    that set none. ``watch`` is called inside ``together()`` with messages that have arrived together.
    """
    before = _caller.set(_Caller(watch, key, begin, preview_method, together))
    try:
        yield
    finally:
        _caller.reset(before)


class QueueRunner:
    """ComfyUI's queue as a `PromptRunner`.

    ``policy`` orders jobs relative to the prompts of ComfyUI's owner: ``fifo`` in the order of arrival, ``front`` ahead of waiting prompts,
    at most eight jobs ahead of each. A running prompt is never interrupted for a job.
    """

    def __init__(self, policy: str = "fifo") -> None:
        if policy not in POLICIES:
            raise InvalidArgument(f"Invalid queue policy {policy!r}. Available: {format_options(POLICIES)}.")
        self.policy = policy
        self.job_inputs = JobInputs()
        self._runs: dict[str, PromptRun] = {}
        self._lock = threading.Lock()
        self._jobs_ahead: dict[str, int] = {}
        self.reentrancy = ReentrantScheduler(compat.delete_queued)

    def run_of(self, prompt_id: str) -> PromptRun | None:
        """Return the run that a prompt belongs to, or None for a prompt of the owner."""
        with self._lock:
            return self._runs.get(prompt_id)

    def changing(self, node_types: Sequence[str]) -> list[str]:
        """Implement `PromptRunner.changing`."""
        classes = compat.node_classes()
        return [name for name in node_types if name not in classes or compat.may_rerun(classes[name])]

    # -- one run ------------------------------------------------------------------------------------------------

    def run_prompt(
        self,
        graph: ComfyGraph,
        inputs: Mapping[str, Any],
        context: RunContext,
        preview_method: str | None = None,
    ) -> dict[str, Any]:
        """Implement `PromptRunner.run_prompt`; `observe_prompts` defines how the prompt starts."""
        caller = _caller.get()
        with waiting() as learn:
            run = PromptRun(str(uuid.uuid4()), graph, context, caller.watch, caller.key, learn)
            previews = preview_method or caller.preview_method
            if previews is not None:
                run.extra_data["preview_method"] = previews
            return self._run(run, inputs, caller.begin or self.queue, caller.together)

    def _run(
        self,
        run: PromptRun,
        inputs: Mapping[str, Any],
        begin: Callable[[PromptRun], None],
        together: Callable[[], AbstractContextManager[None]],
    ) -> dict[str, Any]:
        digests: dict[str, str] = {}
        hidden: str | None = None
        try:
            for name, value in inputs.items():
                digests[name] = self.job_inputs.put(value)
            with self._lock:
                self._runs[run.prompt_id] = run
            prompt = bind_prompt(run.graph, digests, run.prompt_id)
            hidden = take_hidden(prompt)
            normalize_model_paths(prompt)
            asyncio.run_coroutine_threadsafe(self._start(run, prompt, begin), compat.main_loop())
            self._follow(run, together)
            return run.result()
        finally:
            self.reentrancy.remove_run(run)
            with self._lock:
                self._runs.pop(run.prompt_id, None)
            self.job_inputs.drop(digests.values())
            release_hidden(hidden)

    async def _start(self, run: PromptRun, prompt: dict[str, Any], begin: Callable[[PromptRun], None]) -> None:
        """Check the prompt, open its socket, and start it. Runs on ComfyUI's main loop."""
        try:
            give_output_types(prompt, {node: [port.type] for port in run.graph.inputs.values() for node in port.nodes})
            validation = await compat.validate(run.prompt_id, prompt)
            run.check(validation)
            if run.context.token.cancelled:
                run.refuse(InvalidArgument("the run was cancelled before it was queued"))
                return
            compat.open_socket(
                run.prompt_id, VirtualSocket(run.prompt_id, lambda kind, facts: self._on_message(run, kind, facts), self._state)
            )
            run.prompt, run.sinks = prompt, validation.outputs
            begin(run)
        except Exception as error:  # noqa: BLE001 - the run ends with the error
            run.refuse(error)
            with compat.shielded("a socket could not be closed"):
                compat.close_socket(run.prompt_id)

    def queue(self, run: PromptRun) -> None:
        """Put a checked run into ComfyUI's queue. Call it on the main loop."""
        compat.enqueue(self._number(), run.prompt_id, run.prompt, run.extra_data, run.sinks)
        run.state = "queued"
        self.reentrancy.add_run(run)

    def _state(self, prompt_id: str) -> str | None:
        run = self.run_of(prompt_id)
        if run is not None and run.state != "queued":
            return run.state
        return compat.prompt_state(prompt_id)

    def _on_message(self, run: PromptRun, kind: str, facts: dict[str, Any]) -> None:
        if kind in _HELD:
            run.hold(kind, facts)
            if not run.flushes_soon:
                run.flushes_soon = True
                asyncio.get_running_loop().call_later(_HOLD_SECONDS, self._flush, run)
            return
        run.post(kind, facts)
        if kind in ("ended", "lost"):
            compat.close_socket(run.prompt_id)
            compat.forget(run.prompt_id)

    @staticmethod
    def _flush(run: PromptRun) -> None:
        run.flushes_soon = False
        run.flush()

    def _number(self) -> float:
        """Return the position of a new job in the queue. Runs on ComfyUI's main loop, which also assigns the owner's numbers."""
        number = compat.next_number()
        return self._front_number(compat.waiting_prompts(), number) if self.policy == "front" else number

    def _front_number(self, waiting: list[tuple[float, str]], count: float) -> float:
        """Return a number before the owner's prompts, but behind earlier jobs and behind prompts with `_MAX_AHEAD` jobs ahead of them."""
        owners = {prompt_id: number for number, prompt_id in waiting if self.run_of(prompt_id) is None}
        behind = [number for number, prompt_id in waiting if prompt_id not in owners or self._jobs_ahead.get(prompt_id, 0) >= _MAX_AHEAD]
        position = max([_FAR_AHEAD + count, *(number + _STEP for number in behind)])
        self._jobs_ahead = {prompt_id: self._jobs_ahead.get(prompt_id, 0) + (position < number) for prompt_id, number in owners.items()}
        return position

    # -- following ----------------------------------------------------------------------------------------------

    def _follow(self, run: PromptRun, together: Callable[[], AbstractContextManager[None]]) -> None:
        """Forward the messages of a run until it ends. A cancelled token stops this prompt and no other."""
        throttle = EventThrottle(run)
        seen = time.monotonic()
        while not run.is_finished:
            message = run.next_message(throttle.timeout(_POLL))
            if message is not None:
                with together():
                    throttle.handle(*message)
                    while run.has_message and not run.is_finished and (message := run.next_message(0.0)) is not None:
                        throttle.handle(*message)
                seen = time.monotonic()
            elif run.state == "queued" and time.monotonic() - seen > LOST_AFTER:
                seen = time.monotonic()
                if compat.prompt_state(run.prompt_id) not in ("running", "queued"):
                    run.post("lost", {})
            throttle.flush_due()
            self.reentrancy.check_stuck(run, time.monotonic())
            if run.deadline is not None and time.monotonic() > run.deadline:
                run.context.token.cancel("it ran inside a waiting prompt for longer than the time limit")
            if run.context.token.cancelled:
                self._cancel(run)

    def _cancel(self, run: PromptRun) -> None:
        """Remove the prompt from the queue, or interrupt it if it is running. No other prompt is affected."""
        cancel_nested = run.cancel_nested
        if cancel_nested is not None:
            cancel_nested()
        elif run.state == "queued" and compat.delete_queued(run.prompt_id):
            asyncio.run_coroutine_threadsafe(self._close(run), compat.main_loop())
            run.post("lost", {})
        elif run.state == "queued":
            compat.interrupt_running(run.prompt_id)

    @staticmethod
    async def _close(run: PromptRun) -> None:
        compat.close_socket(run.prompt_id)
