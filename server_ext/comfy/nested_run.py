"""Runs a prompt inside another one that waits, on the same thread and event loop, so that two nodes never execute at once.

ComfyUI keeps facts about *the* running prompt in globals. They are exchanged around every step of the nested prompt: during a step they
are those of the nested prompt, otherwise those of the outer one. An interrupt of the owner applies to the outer prompt and is never lost.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ClassVar

from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.prompt_run import PromptRun

__all__ = ["GlobalsPatch", "NestedRun"]


class GlobalsPatch:
    """Awaits ``coroutine``, calling ``enter()`` before and ``leave()`` after each of its steps."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._coroutine, self._enter, self._leave = coroutine, enter, leave

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        step: Callable[[Any], Any] = steps.send
        sent: Any = None
        while True:
            self._enter()
            try:
                awaited = step(sent)
            except StopIteration as end:
                return end.value
            finally:
                self._leave()
            try:
                step, sent = steps.send, (yield awaited)
            except BaseException as error:  # noqa: BLE001 - the coroutine handles it
                step, sent = steps.throw, error


class _Globals:
    """ComfyUI's global facts about the running prompt."""

    def __init__(self) -> None:
        self._progress: Any = importlib.import_module("comfy_execution.progress")
        self._memory: Any = importlib.import_module("comfy.memory_management")
        self._args = importlib.import_module("comfy.cli_args").args
        self._server = host_api.prompt_server()

    def read(self) -> tuple[Any, ...]:
        server, memory = self._server, self._memory
        return (
            server.client_id,
            server.last_node_id,
            server.last_prompt_id,
            self._progress.global_progress_registry,
            self._args.preview_method,
            memory.extra_ram_release_callback,
            memory.RAM_CACHE_HEADROOM,
        )

    def write(self, facts: tuple[Any, ...]) -> None:
        server, memory = self._server, self._memory
        server.client_id, server.last_node_id, server.last_prompt_id = facts[:3]
        self._progress.global_progress_registry, self._args.preview_method = facts[3:5]
        memory.set_ram_cache_release_state(*facts[5:])


class NestedRun:
    """One nested execution of ``run``, with a cache of its own. `cancel` may be called from any thread."""

    #: Idle executors; several waiting nodes may run nested prompts at once. Their caches outlive each run.
    _idle: ClassVar[list[Any]] = []

    def __init__(self, run: PromptRun) -> None:
        self._run = run
        self._globals = _Globals()
        self._management: Any = importlib.import_module("comfy.model_management")
        self._nested_globals: tuple[Any, ...] = ("", None, run.prompt_id, None, *self._globals.read()[4:])
        self._outer_globals: tuple[Any, ...] = ()
        self._interrupted = False
        self._inside = False
        self._starting = False
        self._cancelled = False

    async def execute(self) -> None:
        """Run the prompt until it succeeds or fails. Messages go to the socket of the run, as for a queued prompt."""
        run = self._run
        executor = self._idle.pop() if self._idle else self._new_executor()
        executor.add_message = self._with_start(executor, type(executor).add_message)
        work = executor.execute_async(run.prompt, run.prompt_id, dict(run.extra_data), run.sinks)
        self._starting = True
        try:
            await GlobalsPatch(work, self._enter, self._leave)
        finally:
            del executor.add_message
            self._idle.append(executor)
        interrupted = any(kind == "execution_interrupted" for kind, _ in executor.status_messages)
        if interrupted and not self._cancelled:
            self._management.interrupt_current_processing(True)
        host_api.send_json("executing", {"node": None, "prompt_id": run.prompt_id}, run.prompt_id)

    def cancel(self) -> None:
        """Stop the nested prompt when it next checks ComfyUI's interrupt flag."""
        with self._management.interrupt_processing_mutex:
            self._cancelled = True
            if self._inside:
                self._management.interrupt_current_processing(True)

    @staticmethod
    def _new_executor() -> Any:
        execution = importlib.import_module("execution")
        return execution.PromptExecutor(
            host_api.prompt_server(), cache_type=execution.CacheType.CLASSIC, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        )

    def _with_start(self, executor: Any, add_message: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``add_message``: `execute_async` clears the interrupt flag before its first message, so the flag is locked until then and restored."""

        def add(event: str, data: dict[str, Any], broadcast: bool) -> Any:
            if self._starting and event == "execution_start":
                self._end_start()
            return add_message(executor, event, data, broadcast)

        return add

    def _end_start(self) -> None:
        self._starting = False
        self._management.interrupt_current_processing(self._interrupted or self._cancelled)
        self._management.interrupt_processing_mutex.release()

    def _enter(self) -> None:
        mutex = self._management.interrupt_processing_mutex
        mutex.acquire()
        self._interrupted = self._management.interrupt_processing
        self._inside = True
        if self._cancelled:
            self._management.interrupt_current_processing(True)
        if not self._starting:
            mutex.release()
        self._outer_globals = self._globals.read()
        self._globals.write(self._nested_globals)

    def _leave(self) -> None:
        self._nested_globals = self._globals.read()
        self._run.registry = self._nested_globals[3]
        self._globals.write(self._outer_globals)
        if self._starting:
            self._end_start()
        with self._management.interrupt_processing_mutex:
            self._inside = False
            if self._interrupted:
                self._management.interrupt_current_processing(True)
            elif self._cancelled:
                self._management.interrupt_current_processing(False)
