"""What a world asks of a stage, so that a stage elsewhere can stand in the ring."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from yggdrasill.stage.state import State

__all__ = ["StageLike"]


@runtime_checkable
class StageLike(Protocol):
    """Anything that is a stage to the world: ``Stage``, or a proxy for one behind an endpoint."""

    @property
    def stage_id(self) -> str:
        """The stage's own id."""
        ...

    @property
    def role(self) -> str | None:
        """Which of the five stages it is, or None."""
        ...

    def should_run(self, state: State) -> bool:
        """Whether the execution condition holds."""
        ...

    def run(self, state: State, *, action: Any = None, **options: Any) -> State:
        """A new state; the given one is unchanged."""
        ...

    def preview(self, state: State) -> State:
        """The state as a run would leave it, with a text in place of what would be written."""
        ...

    def to_config(self) -> dict[str, Any]:
        """The structure as JSON values."""
        ...
