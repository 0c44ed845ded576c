"""Torch's per-thread settings in the threads of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from yggdrasill.executor.thread_state import ThreadState


class Doubled(TorchFunctionMode):
    """Doubles the result of every ``torch.add``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.add else result


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def facts() -> tuple[Any, ...]:
    """The settings that change a result."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        (torch.ones(2, 2) @ torch.ones(2, 2)).dtype,
        torch.ones(1).device,
        torch.add(torch.zeros(1, device="cpu"), 1).tolist(),
    )


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast half without cache": lambda: torch.autocast("cpu", dtype=torch.float16, cache_enabled=False),
    "function mode": Doubled,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_thread_computes_with_the_callers_settings_and_gets_its_own_back(name: str) -> None:
    def work(state: ThreadState) -> tuple[Any, Any, Any]:
        before = facts()
        with state.applied():
            inside = facts()
        return before, inside, facts()

    with SETTINGS[name]():
        here, state = facts(), ThreadState.capture()
        before, inside, after = in_thread(lambda: work(state))
    assert inside == here
    assert before == after


def test_the_default_device_follows() -> None:
    with torch.device("meta"):
        state = ThreadState.capture()

        def work() -> tuple[str, str]:
            with state.applied():
                inside = torch.ones(1).device.type
            return inside, torch.ones(1).device.type

        assert in_thread(work) == ("meta", "cpu")


def test_dispatch_modes_and_nested_settings_follow() -> None:
    counting = Counting()
    with ExitStack() as stack:
        for mode in (torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Doubled(), counting):
            stack.enter_context(mode)
        state = ThreadState.capture()
        here = facts()

        def work() -> tuple[Any, ...]:
            with state.applied():
                return facts()

        before = counting.count
        assert in_thread(work) == here
        assert counting.count > before


def test_a_mode_that_a_block_leaves_on_ends_with_the_step() -> None:
    state = ThreadState.capture()

    def work() -> bool:
        with state.applied():
            torch.set_grad_enabled(False)
        return torch.is_grad_enabled()

    assert in_thread(work) is True


def test_without_torch_there_is_nothing_to_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "torch")
    with ThreadState.capture().applied():
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_current_cuda_device_and_stream_follow() -> None:
    torch.cuda.init()  # type: ignore[no-untyped-call]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        state = ThreadState.capture()

        def work() -> tuple[Any, Any]:
            with state.applied():
                inside = torch.cuda.current_stream()
            return inside, torch.cuda.current_stream()

        inside, after = in_thread(work)
    assert inside == stream
    assert after == torch.cuda.default_stream()
