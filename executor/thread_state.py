"""Torch's per-thread settings, carried from the thread that starts a run to the threads that help it.

Covered: grad mode, inference mode, autocast (per device type: enabled, dtype; cache), the stacks of function and dispatch
modes (the default device is one of them), autograd's multithreading and view replay, and CUDA's current device and streams.
Deterministic algorithms, cuDNN flags and matmul precision belong to the process and need no carrying.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["ThreadState"]

#: The device types with an autocast state; types that this torch does not know are left out.
_AUTOCAST_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "ipu", "xla", "maia", "privateuseone")

#: Enters a setting and registers how to leave it.
_Setting = Callable[[Any, ExitStack], None]


@dataclass(frozen=True)
class ThreadState:
    """The settings of one thread; `applied` gives them to another."""

    _settings: tuple[_Setting, ...]

    @classmethod
    def capture(cls) -> ThreadState:
        """Return the settings of the calling thread; without torch in the process there are none."""
        torch: Any = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "is_inference_mode_enabled"):
            return cls(())
        return cls((*_modes(torch), *_autocast(torch), *_mode_stacks(torch), *_cuda(torch)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the settings to the calling thread for a while, and restore its own afterwards."""
        torch: Any = sys.modules.get("torch")
        with ExitStack() as stack:
            for setting in self._settings:
                setting(torch, stack)
            yield


def _modes(torch: Any) -> Iterator[_Setting]:
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    multithreading, replay = torch._C._is_multithreading_enabled(), torch._C._is_view_replay_enabled()

    def enter(torch: Any, stack: ExitStack) -> None:
        # Inference mode implies a grad mode, so it comes first.
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(torch.autograd.set_multithreading_enabled(multithreading))
        stack.enter_context(torch.autograd.grad_mode._force_original_view_tracking(replay))

    yield enter


def _autocast(torch: Any) -> Iterator[_Setting]:
    found = []
    for device in _AUTOCAST_TYPES:
        try:
            found.append((device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)))
        except RuntimeError:
            continue
    wanted, cache = [entry for entry in found if entry[1]], torch.is_autocast_cache_enabled()

    def enter(torch: Any, stack: ExitStack) -> None:
        torch.autocast_increment_nesting()
        stack.callback(_leave_autocast, torch)
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(cache)
        for device, enabled, dtype in wanted:
            stack.callback(torch.set_autocast_dtype, device, torch.get_autocast_dtype(device))
            stack.callback(torch.set_autocast_enabled, device, torch.is_autocast_enabled(device))
            torch.set_autocast_dtype(device, dtype)
            torch.set_autocast_enabled(device, enabled)

    if wanted or not cache:
        yield enter


def _leave_autocast(torch: Any) -> None:
    if torch.autocast_decrement_nesting() == 0:
        torch.clear_autocast_cache()


def _mode_stacks(torch: Any) -> Iterator[_Setting]:
    overrides, dispatch = torch.overrides, torch.utils._python_dispatch
    for module, stack in (
        (overrides, overrides._get_current_function_mode_stack()),
        (dispatch, dispatch._get_current_dispatch_mode_stack()),
    ):
        for mode in stack:
            yield _mode_setting(module, mode)


def _mode_setting(module: Any, mode: Any) -> _Setting:
    def enter(torch: Any, stack: ExitStack) -> None:
        # The mode is entered in the caller's thread already; only this thread's stack lacks it.
        module._push_mode(mode)
        stack.callback(module._pop_mode)

    return enter


def _cuda(torch: Any) -> Iterator[_Setting]:
    if not torch.cuda.is_initialized():
        return
    current = torch.cuda.current_device()
    streams = [torch.cuda.current_stream(device) for device in range(torch.cuda.device_count())]
    changed = [stream for stream in streams if stream != torch.cuda.default_stream(stream.device)]

    def enter(torch: Any, stack: ExitStack) -> None:
        for stream in changed:
            stack.enter_context(torch.cuda.stream(stream))
        stack.enter_context(torch.cuda.device(current))

    yield enter
