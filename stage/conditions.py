"""When a stage, or one pipeline of it, runs: presets, lists of required blocks, callables, and the conditions of the roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, RunError, YggdrasillError, format_options, unknown_message
from yggdrasill.stage.contract import StateKey, state_key
from yggdrasill.stage.state import BLOCKS, State

__all__ = ["PRESETS", "WORLD_UPDATE", "Condition", "ConditionLike", "canonical_condition", "canonical_guard"]

ConditionLike = str | Iterable[Any] | Callable[[State], bool] | None

#: The pipeline of Environment that applies a full state to the world's content, and the condition that guards it.
WORLD_UPDATE = "world_update"

#: name -> (blocks that must be filled, blocks that must be empty).
PRESETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "always": ((), ()),
    "philosopher": ((1, 2, 3), (4,)),
    "author": ((1, 2, 3, 4), (5,)),
    "architect": ((1,), (2,)),
    "creator": ((2,), (3,)),
    WORLD_UPDATE: (BLOCKS, ()),
}


class Condition:
    """A test of a state.

    A preset is given by name. A list requires those blocks to be filled and the output blocks of the stage, except those
    listed, to be empty. A callable decides by itself and cannot be saved.

    Raises:
        InvalidArgument: an unknown preset, or none of the three.
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
        """Return whether it holds for ``state``; ``output_blocks`` are those of the stage or pipeline.

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
        return state.filled(*self.required) and not any(state.filled(key) for key in self._must_be_empty(output_blocks))

    def equals(self, other: Condition, output_blocks: Iterable[StateKey]) -> bool:
        """Return whether both require the same blocks filled and the same blocks empty; False if one is a callable."""
        if self._call is not None or other._call is not None:
            return False
        blocks = list(output_blocks)
        same_empty = set(self._must_be_empty(blocks)) == set(other._must_be_empty(blocks))
        return set(self.required) == set(other.required) and same_empty

    @property
    def is_callable(self) -> bool:
        """Whether a callable decides."""
        return self._call is not None

    def _must_be_empty(self, output_blocks: Iterable[StateKey]) -> tuple[StateKey, ...]:
        return self._empty if self._empty is not None else tuple(key for key in output_blocks if key not in self.required)

    def to_config(self) -> str | list[StateKey]:
        """Return the preset's name or the list of blocks.

        Raises:
            InvalidConfig: a callable has no JSON form.
        """
        if self._call is not None:
            raise InvalidConfig(
                f"the condition {self.given!r} is a function, which a config cannot hold; use a preset ({format_options(PRESETS)}) or a list of blocks"
            )
        return self.given if isinstance(self.given, str) else list(self.required)


_CANONICAL = {name: Condition(name) for name in PRESETS}


def canonical_condition(role: str | None) -> Condition | None:
    """Return the execution condition that a role implies; None for Environment, which always runs, and without a role."""
    return _CANONICAL[role] if role in ("philosopher", "author", "architect", "creator") else None


def canonical_guard(role: str | None, stage_node_id: str) -> Condition | None:
    """Return the condition of a pipeline that its stage's role implies: Environment guards ``world_update``."""
    return _CANONICAL[WORLD_UPDATE] if (role, stage_node_id) == ("environment", WORLD_UPDATE) else None
