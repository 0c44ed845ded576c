"""Stages and worlds that run at endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, ProtocolMismatch, QueueFull
from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.remote.remote_graph import RemoteGraph
from yggdrasill.remote.remote_part import RemotePart, refuse_training
from yggdrasill.stage.conditions import Condition
from yggdrasill.stage.stage import Stage
from yggdrasill.stage.state import State

__all__ = ["RemoteStage", "RemoteWorld"]


class RemoteStage(RemoteGraph):
    """The stage that an endpoint serves; arguments as `RemotePart`."""

    @property
    def stage_id(self) -> str:
        """The stage's own id."""
        return str((self._config or {}).get("stage_id", self.graph_id))

    @property
    def role(self) -> str | None:
        """Which of the world's five stages this is, if any."""
        return self.outline().role

    def outline(self) -> Stage:
        """A stage without pipelines that has this one's id, role, contract and conditions.

        Raises:
            ProtocolMismatch: the endpoint serves something else under that id. EndpointUnreachable
        """
        if self._outline is None:
            try:
                self._outline = _outline(self.stage_id, self.contract.stage, repr(self))
            except EndpointUnreachable as error:
                found: Stage = self._fallback_or_raise(error)
                return found
        return self._outline

    _outline: Stage | None = None

    def should_run(self, state: State) -> bool:
        """Whether the execution condition holds."""
        return self.outline().should_run(state)

    def preview(self, state: State, *, marker: str = "(written by {stage})") -> State:
        """The state as a run would leave it, with a text in place of every block that would be written."""
        return self.outline().preview(state, marker=marker)

    def run(  # type: ignore[override]  # a stage takes a state where a graph takes inputs
        self,
        state: State | Mapping[Any, Any] | None = None,
        *,
        action: Any = None,
        training: bool = False,
        device: Any = None,
        callbacks: Callbacks = None,
        dry_run: bool = False,
        seed: int | None = None,
        max_workers: int | None = None,
        **options: Any,
    ) -> State:
        """Run the stage at the endpoint and return the new state; errors as `Stage.run`, `CannotTravel`, `RemoteError`.

        Hooks see the stage as one node: phases ``before`` (state_before) and ``after`` (state_before, state_after).
        """
        refuse_training(training, self)
        emit = as_emit(callbacks)
        before = State.of(state)
        asked = {"max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=before.seed if seed is None else seed) as context:
            if emit:
                emit(self.stage_id, "before", state_before=before)
            try:
                after = State.from_dict(self._call({"state": before.to_dict(), "action": action}, context, asked)["state"])
            except (EndpointUnreachable, QueueFull) as error:
                after = self._run_fallback_stage(error, before, action, {**asked, "device": device, "seed": context.seed})
            if emit:
                emit(self.stage_id, "after", state_before=before, state_after=after)
        return after

    async def run_async(  # type: ignore[override]
        self,
        state: State | Mapping[Any, Any] | None = None,
        *,
        action: Any = None,
        training: bool = False,
        dry_run: bool = False,
        seed: int | None = None,
        max_workers: int | None = None,
        **options: Any,
    ) -> State:
        """`run` for a caller with an event loop, which stays free meanwhile."""
        refuse_training(training, self)
        before = State.of(state)
        asked = {"max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=before.seed if seed is None else seed) as context:
            try:
                return State.from_dict((await self._call_async({"state": before.to_dict(), "action": action}, context, asked))["state"])
            except (EndpointUnreachable, QueueFull) as error:
                return await asyncio.to_thread(self._run_fallback_stage, error, before, action, {**asked, "seed": context.seed})

    def _run_fallback_stage(self, error: EndpointUnreachable | QueueFull, state: State, action: Any, options: Mapping[str, Any]) -> State:
        given = {name: item for name, item in options.items() if item is not None}
        after: State = self._fallback_or_raise(error).run(state.loaded(), action=action, **given)
        return after


def _outline(stage_id: str, facts: Mapping[str, Any] | None, what: str) -> Stage:
    if not isinstance(facts, Mapping):
        raise ProtocolMismatch(f"{what} is no stage; correct its id, or serve the stage there")
    stage = Stage(stage_id, role=facts.get("role"))
    contract = facts["state_contract"]
    keys = ("block", "stage_node_id", "port")
    mappings = [[{key: entry[key] for key in keys} for entry in facts[side]] for side in ("inputs", "outputs")]
    stage.set_state_contract(contract["input_blocks"], contract["output_blocks"], *mappings, carry=contract.get("carry", True))
    stage.set_execution_condition(facts.get("execution_condition"))
    stage.pipeline_conditions = {name: Condition(given) for name, given in (facts.get("pipeline_conditions") or {}).items()}
    return stage


class RemoteWorld(RemotePart):
    """The world that an endpoint serves; arguments as `RemotePart`, without a ``fallback``."""

    allows_fallback: ClassVar[bool] = False

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
