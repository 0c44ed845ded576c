"""Running the children of a DAG: one after another, or independent ones at the same time."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from yggdrasill.errors import InvalidArgument

__all__ = ["run_branches"]


def run_branches(
    order: Sequence[str], sources: Mapping[str, set[str]], call: Callable[[str], None], max_workers: int | None = None
) -> None:
    """Call every id of ``order`` after the ids in its ``sources``.

    With more than one worker, ids that are ready run at the same time, each in a copy of the caller's context and grad
    mode. After a failure nothing new starts, and the failure that comes first in ``order`` is raised.
    """
    workers = 1 if max_workers is None else max_workers
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise InvalidArgument(f"max_workers must be an integer of at least 1, got {max_workers!r}")
    if workers == 1 or len(order) < 2:
        for name in order:
            call(name)
        return
    waiting = {name: set(sources[name]) for name in order}
    running: dict[Future[None], str] = {}
    failed: dict[str, BaseException] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="yggdrasill-branch") as pool:
        while (waiting and not failed) or running:
            if not failed:
                for name in [name for name, before in waiting.items() if not before]:
                    del waiting[name]
                    running[pool.submit(contextvars.copy_context().run, _in_grad_mode(), call, name)] = name
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                name = running.pop(future)
                error = future.exception()
                if error is not None:
                    failed[name] = error
                for before in waiting.values():
                    before.discard(name)
    for name in order:
        if name in failed:
            raise failed[name]


def _in_grad_mode() -> Callable[[Callable[[str], None], str], None]:
    """torch keeps its grad mode per thread, so a worker has to be given the caller's."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return lambda call, name: call(name)
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run(call: Callable[[str], None], name: str) -> None:
        modes: list[AbstractContextManager[Any]] = [torch.inference_mode()] if inference else [torch.set_grad_enabled(grad)]
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            call(name)

    return run
