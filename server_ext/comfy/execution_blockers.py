"""Conversion between ComfyUI's `ExecutionBlocker` on local links and `Blocked`, its form on the way to another endpoint.

ComfyUI does not execute a node that receives a blocker in any input. A node that represents several other nodes must execute all the same,
because only some of those may need the blocked input: its class sets ``takes_blocked`` and receives `Blocked` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from yggdrasill.remote.comfy_ports import Blocked
from yggdrasill.server_ext.comfy import compat

__all__ = ["allow_blockers", "as_blocked", "as_blockers"]


def as_blocked(values: Iterable[Any]) -> list[Any]:
    """Return ``values`` with each `ExecutionBlocker` replaced by `Blocked`."""
    return [Blocked(value.message) if compat.is_blocker(value) else value for value in values]


def as_blockers(values: Iterable[Any]) -> list[Any]:
    """Return ``values`` with each `Blocked` replaced by an `ExecutionBlocker`."""
    return [compat.execution_blocker(value.message) if type(value) is Blocked else value for value in values]


def allow_blockers() -> None:
    """Patch ComfyUI's `get_input_data`, once per process, so that classes with ``takes_blocked`` receive blocked inputs."""
    compat.wrap_input_data(_with_blockers, "blockers")


def _with_blockers(get_input_data: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(inputs: Any, class_def: Any, *rest: Any, **named: Any) -> Any:
        found = get_input_data(inputs, class_def, *rest, **named)
        if not getattr(class_def, "takes_blocked", False):
            return found
        values, *others = found
        return ({name: as_blocked(listed) for name, listed in values.items()}, *others)

    return wrapped
