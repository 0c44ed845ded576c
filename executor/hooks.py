"""Hooks: callables ``hook(id, phase, **facts)``, one or several, called in the same form at every level."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from yggdrasill.errors import HookFailed, InvalidArgument, YggdrasillError

__all__ = ["Callbacks", "Emit", "as_emit"]

Hook = Callable[..., Any]
Callbacks: TypeAlias = Hook | Iterable[Hook] | None
Emit = Callable[..., None]


def as_emit(callbacks: Callbacks) -> Emit | None:
    """Return one function ``emit(id, phase, **facts)`` that calls every hook in order, or None without hooks.

    Raises:
        InvalidArgument: ``callbacks`` is neither a callable nor a list of callables.
        HookFailed: (from the returned function) a hook raised.
    """
    if callbacks is None:
        return None
    hooks = [callbacks] if callable(callbacks) else list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
    for hook in hooks:
        if not callable(hook):
            raise InvalidArgument(f"callbacks must be a callable or a list of callables, got {hook!r}")
    if not hooks:
        return None

    def emit(node_id: str, phase: str, **facts: Any) -> None:
        for hook in hooks:
            try:
                hook(node_id, phase, **facts)
            except YggdrasillError:
                raise
            except Exception as error:
                raise HookFailed(f"callback {hook!r} raised at {node_id!r}, phase {phase!r}: {type(error).__name__}: {error}") from error

    return emit
