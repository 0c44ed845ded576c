"""Running a world: the passes around the ring, and what a failure leaves behind.

A pass changes the world when it is over, not before: content, last state and what stateful blocks remember are those of
the last full pass whenever somebody looks, so a state given again after a failure runs as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.executor.context import RunContext, enter_child, enter_run
from yggdrasill.executor.hooks import Emit
from yggdrasill.stage.state import State
from yggdrasill.values.handles import load_handles
from yggdrasill.world.memory import restore_blocks, snapshot_blocks

if TYPE_CHECKING:
    from yggdrasill.world.world import World

__all__ = ["ResumePoint", "WorldRun", "rollback_on_error"]


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins: a state, the place in the cycle where the first pass goes on, and what blocks remembered there."""

    state: State
    place: int = 0
    memory: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def rollback_on_error(world: World) -> Iterator[None]:
    """Undo what several passes changed in the world if one of them fails."""
    content, last_state, memory = world.content, world.last_state, snapshot_blocks(world)
    try:
        yield
    except BaseException:
        world.content, world.last_state = content, last_state
        restore_blocks(world, memory)
        raise


class WorldRun:
    """One run of a world."""

    def __init__(self, world: World, emit: Emit | None, options: Mapping[str, Any], dry_run: bool) -> None:
        self._world = world
        self._tell: Callable[..., None] = emit or _silent
        self._options = options
        self._dry_run = dry_run

    def run(self, start: ResumePoint, actions: Sequence[Any], num_steps: int) -> Iterator[State]:
        """The state after each pass; closing the iterator frees the world for the next run.

        Raises:
            InvalidArgument: the world is running already.
        """
        world = self._world
        if not world._running.acquire(blocking=False):
            raise InvalidArgument(
                f"world {world.world_id!r} is running already; wait for that run, or build another world for a second one"
            )
        try:
            restore_blocks(world, start.memory)
            state, stages = start.state, world.cycle[start.place :]
            for number in range(num_steps):
                with rollback_on_error(world):
                    state = self._pass(state, stages, actions[number] if number < len(actions) else None)
                stages = world.cycle
                yield state
        finally:
            world._running.release()

    def _pass(self, state: State, stages: Sequence[str], action: Any) -> State:
        with enter_run(seed=state.seed, pass_index=state.passes) as context:
            for stage_id in stages:
                state = self._step(stage_id, state, action, context)
        state = state.replace(passes=state.passes + 1)
        if self._dry_run:
            return state
        state = _loaded(state)
        world = self._world
        if world.storage is not None:
            world.storage.save_last(world.world_id, state, memory=snapshot_blocks(world))
        world.content, world.last_state = state.content, state
        return state

    def _step(self, stage_id: str, before: State, action: Any, context: RunContext) -> State:
        context.check_cancelled()
        stage = self._world.stages[stage_id]
        if not stage.should_run(before):
            self._tell(stage_id, "skipped", state_before=before)
            return before
        self._tell(stage_id, "before", state_before=before)
        is_environment = self._world.role_of(stage_id) == "environment"
        if self._dry_run:
            after: State = stage.preview(before)
        else:
            with enter_child(context, stage_id):
                after = stage.run(before, action=action if is_environment else None, **self._options)
            after = after.replace(passes=before.passes, seed=before.seed)
            if is_environment and before.is_complete:
                self._snapshot(stage_id, before.replace(content=after.content), after)
        self._tell(stage_id, "after", state_before=before, state_after=after)
        return after

    def _snapshot(self, stage_id: str, full: State, after: State) -> None:
        """After World update: the full state is saved with the new content, and how the pass goes on."""
        world = self._world
        if world.storage is not None:
            full, following = _loaded(full), _loaded(after)
            path = world.storage.save_update(world.world_id, full, full.passes, following=following, memory=snapshot_blocks(world))
            self._tell(stage_id, "snapshot", path=path, state_before=full)


def _loaded(state: State) -> State:
    """The state with values in place of handles: what a world keeps must not depend on another endpoint."""
    blocks, fields, content = load_handles(dict(state.blocks)), load_handles(dict(state.fields)), load_handles(state.content)
    return State(blocks, fields, content=content, passes=state.passes, seed=state.seed)


def _silent(*args: Any, **facts: Any) -> None:
    """No hooks."""
