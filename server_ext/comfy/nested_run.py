"""Runs a prompt inside another one that waits, on the same thread and event loop, so that two nodes never execute at once.

ComfyUI keeps facts about *the* running prompt in globals. They are exchanged around every step of the nested prompt: during a step they
are those of the nested prompt, otherwise those of the outer one. An interrupt of the owner applies to the outer prompt and is never lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.compat.probe import NESTED_RUNS
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.prompt_run import PromptRun

__all__ = ["GlobalsPatch", "NestedExecutors", "NestedRun"]


class GlobalsPatch:
    """Awaits ``coroutine``, calling ``enter()`` before and ``leave()`` after each of its steps."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._coroutine, self._enter, self._leave = coroutine, enter, leave

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        step: Callable[[Any], Any] = steps.send
        sent: Any = None
        while True:
            try:
                self._enter()
            except BaseException:
                self._coroutine.close()
                raise
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


class NestedExecutors:
    """The idle executors of one outer prompt; several of its nodes may run nested prompts at once.

    Their caches are of the type of ComfyUI's own and belong to the outer prompt: when it ends, or when ComfyUI's RAM cache is under pressure,
    their results and models are released.
    """

    def __init__(self) -> None:
        self._idle: list[Any] = []
        self._settings = compat.cache_settings()
        self._end = asyncio.ensure_future(self._release_at_end())

    def take(self) -> Any:
        """Return an idle executor, or a new one."""
        return self._idle.pop() if self._idle else compat.new_executor()

    def give_back(self, executor: Any) -> None:
        """Keep an executor for the next nested prompt, unless ComfyUI would release the results in its cache now."""
        self._idle.append(executor)
        if compat.ram_shortfall(self._settings) > 0:
            self.release()

    def release(self) -> None:
        """Release everything that the idle executors keep."""
        while self._idle:
            compat.release_executor(self._idle.pop())

    def releasing(self, release: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """Return the outer prompt's function that releases RAM down to a target, extended to the idle executors."""
        if release is None or getattr(release, "executors", None) is self:
            return release

        def release_all(target: float, *rest: Any, **named: Any) -> Any:
            freed = release(target, *rest, **named)
            if compat.available_ram() < target:
                self.release()
            return freed

        release_all.executors = self  # type: ignore[attr-defined]
        return release_all

    async def _release_at_end(self) -> None:
        """Wait until ComfyUI ends the outer prompt, which cancels the tasks of its event loop."""
        try:
            await asyncio.Event().wait()
        finally:
            self.release()
            # this task refers to the loop, so the entry would not end with it
            _executors.pop(asyncio.get_running_loop(), None)


_executors: WeakKeyDictionary[asyncio.AbstractEventLoop, NestedExecutors] = WeakKeyDictionary()
"""By the event loop of the outer prompt. ComfyUI runs each prompt on an event loop of its own."""


def _executors_here() -> NestedExecutors:
    loop = asyncio.get_running_loop()
    found = _executors.get(loop)
    if found is None:
        found = _executors[loop] = NestedExecutors()
    return found


class NestedRun:
    """One nested execution of ``run``, with a cache that ends with the outer prompt. `cancel` may be called from any thread."""

    def __init__(self, run: PromptRun) -> None:
        extension_context().require(NESTED_RUNS)
        self._run = run
        self._globals = compat.RunningState()
        self._flag = compat.InterruptFlag()
        self._nested_globals: tuple[Any, ...] = ("", None, run.prompt_id, None, *self._globals.read()[4:])
        self._outer_globals: tuple[Any, ...] = ()
        self._executors: NestedExecutors | None = None
        self._interrupted = False
        self._inside = False
        self._starting = False
        self._cancelled = False

    async def execute(self) -> None:
        """Run the prompt until it succeeds or fails. Messages go to the socket of the run, as for a queued prompt."""
        run, self._executors = self._run, _executors_here()
        executor = self._executors.take()
        executor.add_message = self._with_start(executor, type(executor).add_message)
        work = executor.execute_async(run.prompt, run.prompt_id, dict(run.extra_data), run.sinks)
        self._starting = True
        try:
            await GlobalsPatch(work, self._enter, self._leave)
        finally:
            del executor.add_message
        interrupted = any(kind == "execution_interrupted" for kind, _ in executor.status_messages)
        self._executors.give_back(executor)
        if interrupted and not self._cancelled:
            self._flag.set(True)
        compat.send_json("executing", {"node": None, "prompt_id": run.prompt_id}, run.prompt_id)

    def cancel(self) -> None:
        """Stop the nested prompt when it next checks ComfyUI's interrupt flag."""
        with self._flag.mutex:
            self._cancelled = True
            if self._inside:
                self._flag.set(True)

    def _with_start(self, executor: Any, add_message: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``add_message``: `execute_async` clears the interrupt flag before its first message, so the flag is locked until then and restored."""

        def add(event: str, data: dict[str, Any], broadcast: bool) -> Any:
            if self._starting and event == "execution_start":
                self._end_start()
            return add_message(executor, event, data, broadcast)

        return add

    def _end_start(self) -> None:
        self._starting = False
        self._flag.set(self._interrupted or self._cancelled)
        self._flag.mutex.release()

    def _enter(self) -> None:
        with ExitStack() as locked:
            locked.enter_context(self._flag.mutex)
            self._interrupted = self._flag.is_set
            self._inside = True
            if self._cancelled:
                self._flag.set(True)
            self._outer_globals = self._with_release(self._globals.read())
            self._globals.write(self._nested_globals)
            if self._starting:
                # `_end_start` releases it
                locked.pop_all()

    def _with_release(self, outer: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the outer prompt's globals with a function for RAM pressure that reaches the idle executors too."""
        *others, release, headroom = outer
        return outer if self._executors is None else (*others, self._executors.releasing(release), headroom)

    def _leave(self) -> None:
        try:
            self._nested_globals = self._globals.read()
            self._run.registry = self._nested_globals[3]
        finally:
            self._globals.write(self._outer_globals)
            if self._starting:
                self._end_start()
            with self._flag.mutex:
                self._inside = False
                if self._interrupted:
                    self._flag.set(True)
                elif self._cancelled:
                    self._flag.set(False)
