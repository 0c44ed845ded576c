"""Running a prompt inside another one that waits, on the same thread and event loop, so never two nodes at once.

ComfyUI keeps facts about *the* running prompt in globals. They are exchanged at every step: while a piece of the inner prompt
runs they are its own, else the outer's. The owner's interrupt is for the outer prompt and is never lost to the inner one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ClassVar

from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.prompt_run import PromptRun

__all__ = ["GlobalsPatch", "NestedRun"]


class GlobalsPatch:
    """Awaits ``coroutine`` with ``enter()`` before and ``leave()`` after each of its steps."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._coroutine, self._enter, self._leave = coroutine, enter, leave

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        step: Callable[[Any], Any] = steps.send
        given: Any = None
        while True:
            self._enter()
            try:
                waited_for = step(given)
            except StopIteration as end:
                return end.value
            finally:
                self._leave()
            try:
                step, given = steps.send, (yield waited_for)
            except BaseException as error:  # noqa: BLE001 - it is for the inner coroutine
                step, given = steps.throw, error


class _Globals:
    """What ComfyUI knows of the running prompt."""

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
    """Runs ``run`` once, with caches of its own. Its `cancel` may be called from any thread."""

    #: Executors that run nothing now; several nodes of a prompt may run something while they wait. Their caches outlive each run.
    _idle: ClassVar[list[Any]] = []

    def __init__(self, run: PromptRun) -> None:
        self._run = run
        self._globals = _Globals()
        self._management: Any = importlib.import_module("comfy.model_management")
        self._inner: tuple[Any, ...] = ("", None, run.prompt_id, None, *self._globals.read()[4:])
        self._outer: tuple[Any, ...] = ()
        self._flag = False
        self._inside = False
        self._starting = False
        self._cancelled = False

    async def go(self) -> None:
        """Run the prompt to its end, good or bad; messages go to the run's socket as always."""
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
        """Let the inner prompt stop at its next look at ComfyUI's interrupt flag."""
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
        """`execute_async` clears the interrupt flag before its first message; until then the flag is held, and then put back."""

        def add(event: str, data: dict[str, Any], broadcast: bool) -> Any:
            if self._starting and event == "execution_start":
                self._end_start()
            return add_message(executor, event, data, broadcast)

        return add

    def _end_start(self) -> None:
        self._starting = False
        self._management.interrupt_current_processing(self._flag or self._cancelled)
        self._management.interrupt_processing_mutex.release()

    def _enter(self) -> None:
        mutex = self._management.interrupt_processing_mutex
        mutex.acquire()
        self._flag = self._management.interrupt_processing
        self._inside = True
        if self._cancelled:
            self._management.interrupt_current_processing(True)
        if not self._starting:
            mutex.release()
        self._outer = self._globals.read()
        self._globals.write(self._inner)

    def _leave(self) -> None:
        self._inner = self._globals.read()
        self._run.registry = self._inner[3]
        self._globals.write(self._outer)
        if self._starting:
            self._end_start()
        with self._management.interrupt_processing_mutex:
            self._inside = False
            if self._flag:
                self._management.interrupt_current_processing(True)
            elif self._cancelled:
                self._management.interrupt_current_processing(False)
