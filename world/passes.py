"""The passes of a world's run, as a value that the world commits.

A `WorldRun` holds the stages, the storage and the state, content and last state so far; it never refers to a world. The
world takes ``content`` and ``last_state`` over when passes are complete, so a failed pass changes neither. What the
stateful blocks remember lives in the blocks, so `WorldRun.advance` restores it on failure.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.executor.context import RunContext, enter_run
from yggdrasill.executor.hooks import Emit
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.graph import Graph
from yggdrasill.pipeline.dag import Dag
from yggdrasill.stage.contract import StageLike
from yggdrasill.stage.state import State
from yggdrasill.values.handles import load_handles
from yggdrasill.world.storage import BlockMemory, WorldStorage

__all__ = ["WorldRun", "restore_blocks", "snapshot_blocks"]


@dataclass
class WorldRun:
    """One run of a world. ``state`` is where the next pass starts, ``content`` and ``last_state`` are what the world holds."""

    world_id: str
    #: The stages by id, in the order of the ring.
    stages: Mapping[str, StageLike]
    #: The stages with the role "environment": they receive the action, and their updates are snapshots.
    environments: frozenset[str]
    storage: WorldStorage | None
    state: State
    content: Any
    last_state: State | None
    #: The actions of the next passes that reach Environment.
    actions: deque[Any] = field(default_factory=deque)
    #: The index of the stage at which the next pass starts; only a resumed pass starts behind the first one.
    first: int = 0
    #: Block memory of the state that is resumed, restored before the first pass.
    resumed_memory: BlockMemory = field(default_factory=dict)
    emit: Emit | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Walk order and conditions without calling stages or storage; ``content`` and ``last_state`` stay.
    dry_run: bool = False

    def advance(self, passes: int) -> None:
        """Run ``passes`` full passes. If one fails, the stateful blocks remember what they did before the first of them."""
        before = snapshot_blocks(self.stages)
        try:
            if self.resumed_memory:
                restore_blocks(self.stages, self.resumed_memory)
                self.resumed_memory = {}
            for _ in range(passes):
                self._run_pass()
        except BaseException:
            restore_blocks(self.stages, before)
            raise

    def _run_pass(self) -> None:
        ids = list(self.stages)[self.first :]
        action = self.actions.popleft() if self.actions and not self.environments.isdisjoint(ids) else None
        state = self.state
        with enter_run(seed=state.seed, pass_index=state.passes) as context:
            for stage_id in ids:
                state = self._run_stage(stage_id, state, action, context)
        self.state, self.first = state.replace(passes=state.passes + 1), 0
        if not self.dry_run:
            # What a world keeps must not depend on another endpoint.
            self.state = _loaded(self.state)
            if self.storage is not None:
                self.storage.save_last(self.world_id, self.state, memory=snapshot_blocks(self.stages))
            self.content, self.last_state = self.state.content, self.state

    def _run_stage(self, stage_id: str, before: State, action: Any, context: RunContext) -> State:
        stage, is_environment = self.stages[stage_id], stage_id in self.environments
        # The stage's run is nested in this context, under this node.
        context.node = stage_id
        context.check_cancelled()
        if not stage.should_run(before):
            self._report(stage_id, "skipped", state_before=before)
            return before
        self._report(stage_id, "before", state_before=before)
        if self.dry_run:
            after = stage.preview(before)
        else:
            after = stage.run(before, action=action if is_environment else None, **self.options)
            after = after.replace(passes=before.passes, seed=before.seed)
            if is_environment and before.is_complete and self.storage is not None:
                self._save_update(self.storage, stage_id, before, after)
        self._report(stage_id, "after", state_before=before, state_after=after)
        return after

    def _save_update(self, storage: WorldStorage, stage_id: str, before: State, after: State) -> None:
        """Save the full state with the updated content, and the state that Development opened."""
        full = _loaded(before.replace(content=after.content))
        memory = snapshot_blocks(self.stages)
        path = storage.save_update(self.world_id, full, full.passes, following=_loaded(after), memory=memory)
        self._report(stage_id, "snapshot", path=path, state_before=full)

    def _report(self, stage_id: str, phase: str, **facts: Any) -> None:
        if self.emit is not None:
            self.emit(stage_id, phase, **facts)


def snapshot_blocks(stages: Mapping[str, StageLike]) -> BlockMemory:
    """Return copies of the states of all stateful blocks in this process, by path; a shared block appears once.

    A stateful block behind an endpoint keeps its memory there.
    """
    return {path: copy.deepcopy(block.state_dict()) for path, block in _stateful(stages)}


def restore_blocks(stages: Mapping[str, StageLike], memory: BlockMemory) -> None:
    """Load what `snapshot_blocks` returned; a block without an entry keeps its state.

    Storage written by older versions has keys joined with "/", which are read as well.
    """
    for path, block in _stateful(stages):
        state = memory.get(path, memory.get("/".join(path)))
        if state is not None:
            block.load_state_dict(copy.deepcopy(state), strict=True)


def _stateful(stages: Mapping[str, StageLike]) -> Iterator[tuple[tuple[str, ...], AbstractBaseBlock]]:
    seen: set[int] = set()
    for stage_id, stage in stages.items():
        for path, runnable in stage.walk() if isinstance(stage, Dag) else ():
            if isinstance(runnable, Graph):
                for node_id, node in runnable.nodes.items():
                    if node.block.stateful and id(node.block) not in seen:
                        seen.add(id(node.block))
                        yield (stage_id, *path, node_id), node.block


def _loaded(state: State) -> State:
    """The state with values in place of handles."""
    blocks, fields, content = load_handles(dict(state.blocks)), load_handles(dict(state.fields)), load_handles(state.content)
    return State(blocks, fields, content=content, passes=state.passes, seed=state.seed)
