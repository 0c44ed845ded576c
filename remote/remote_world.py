"""A world behind an endpoint. Its content and its snapshots are kept there; the state comes and goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from yggdrasill.errors import InvalidArgument
from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.remote.proxy import refuse_training
from yggdrasill.remote.remote_part import RemotePart
from yggdrasill.stage.state import State

__all__ = ["RemoteWorld"]


class RemoteWorld(RemotePart):
    """The world that an endpoint serves; arguments as `RemotePart`, without a ``fallback``."""

    may_run_here: ClassVar[bool] = False

    @property
    def world_id(self) -> str:
        """The world's own id."""
        return str((self.contract.world or {}).get("world_id", self.graph_id))

    @property
    def cycle(self) -> list[str]:
        """The ids of its stages in their order."""
        return list((self.contract.world or {}).get("cycle", ()))

    def run(
        self,
        state: State | Mapping[Any, Any] | None = None,
        *,
        action: Any = None,
        training: bool = False,
        device: Any = None,
        callbacks: Callbacks = None,
        num_steps: int = 1,
        dry_run: bool = False,
        seed: int | None = None,
        iterate: bool = False,
        **options: Any,
    ) -> Any:
        """Run ``num_steps`` full passes at the endpoint and return the last state, or with ``iterate`` an iterator over the
        passes' states, one call each; errors as `World.run`, `CannotTravel`, `RemoteError`.

        Hooks see the world as one node: phases ``before`` (state_before) and ``after`` (state_before, state_after).
        """
        refuse_training(training, self)
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 0:
            raise InvalidArgument(f"num_steps must be an integer of at least 0, got {num_steps!r}")
        emit = as_emit(callbacks)
        before = None if state is None else State.of(state)
        asked = {"seed": seed, "dry_run": dry_run or None, **options}
        if iterate:
            return self._passes(before, action, num_steps, asked)
        if emit:
            emit(self.world_id, "before", state_before=before)
        after = self._steps(before, action, num_steps, asked)
        if emit:
            emit(self.world_id, "after", state_before=before, state_after=after)
        return after

    def _steps(self, state: State | None, action: Any, num_steps: int, options: Mapping[str, Any]) -> State:
        value = {"state": None if state is None else state.to_dict(), "action": action}
        with enter_run() as context:
            return State.from_dict(self._call(value, context, {**options, "num_steps": num_steps})["state"])

    def _passes(self, state: State | None, action: Any, num_steps: int, options: Mapping[str, Any]) -> Iterator[State]:
        actions = list(action) if isinstance(action, (list, tuple)) else [action]
        if len(actions) > max(num_steps, 1):
            raise InvalidArgument(f"{len(actions)} actions for {num_steps} passes; give one action, or one per pass")
        for number in range(num_steps):
            state = self._steps(state, actions[number] if number < len(actions) else None, 1, options)
            yield state
