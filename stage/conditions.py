"""When a stage, or one pipeline of it, runs: presets, lists of required blocks, or a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, RunError, YggdrasillError, format_options, unknown_message
from yggdrasill.stage.contract import StateKey, state_key
from yggdrasill.stage.state import BLOCKS, State

__all__ = ["PRESETS", "Condition", "ConditionLike"]

ConditionLike = str | Iterable[Any] | Callable[[State], bool] | None

#: name -> (blocks that must be filled, blocks that must not be).
PRESETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "philosopher": ((1, 2, 3), (4,)),
    "author": ((1, 2, 3, 4), (5,)),
    "world_update": (BLOCKS, ()),
}


class Condition:
    """A test of a state.

    A preset names it; a list asks for those blocks to be filled and the stage's own output blocks to be empty (those it
    also asks for excepted); a callable decides by itself and cannot be saved.

    Raises:
        InvalidArgument: an unknown preset, or something that is none of the three.
    """

    def __init__(self, given: ConditionLike) -> None:
        self.given = given
        self._call = given if callable(given) else None
        self.required: tuple[StateKey, ...] = ()
        self._empty: tuple[StateKey, ...] | None = None
        if isinstance(given, str):
            if given not in PRESETS:
                hint = "A condition can also be a list of blocks or a callable."
                raise InvalidArgument(unknown_message("execution condition", given, PRESETS, hint))
            self.required, self._empty = PRESETS[given]
        elif self._call is None:
            if not isinstance(given, Iterable):
                raise InvalidArgument(
                    f"an execution condition is a preset ({format_options(PRESETS)}), a list of blocks, or a callable, got {given!r}"
                )
            self.required = tuple(state_key(key) for key in given)

    def holds(self, state: State, output_blocks: Iterable[StateKey]) -> bool:
        """Whether it holds for ``state``.

        Raises:
            RunError: a callable raised.
        """
        if self._call is not None:
            try:
                return bool(self._call(state.loaded()))
            except YggdrasillError:
                raise
            except Exception as error:
                raise RunError(f"the condition {self.given!r} raised {type(error).__name__}: {error}") from error
        empty = self._empty if self._empty is not None else tuple(key for key in output_blocks if key not in self.required)
        return state.filled(*self.required) and not any(state.filled(key) for key in empty)

    def to_config(self) -> str | list[StateKey]:
        """A preset's name or the list of blocks.

        Raises:
            InvalidConfig: a callable has no JSON form.
        """
        if self._call is not None:
            raise InvalidConfig(
                f"the condition {self.given!r} is a function, which a config cannot hold; use a preset ({format_options(PRESETS)}) or a list of blocks"
            )
        return self.given if isinstance(self.given, str) else list(self.required)
