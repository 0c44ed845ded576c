"""Stages and worlds that run at endpoints.

A stage is sent a state and returns a new one; its condition is evaluated in this process, so a skipped stage costs no call. A world
keeps its content and snapshots at its endpoint; the state is sent and returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, ProtocolMismatch, QueueFull
from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.remote.remote_graph import RemoteGraph, RemotePart, refuse_training
from yggdrasill.stage.conditions import Condition
from yggdrasill.stage.stage import Stage
from yggdrasill.stage.state import State

__all__ = ["RemoteStage", "RemoteWorld"]


class RemoteStage(RemoteGraph):
    """A stage that an endpoint serves. Arguments as `RemotePart`."""

    @property
    def stage_id(self) -> str:
        """Return the stage's id."""
        return str((self._config or {}).get("stage_id", self.graph_id))

    @property
    def role(self) -> str | None:
        """Return the role of the stage in a world, or None."""
        return self.outline().role

    def outline(self) -> Stage:
        """Return a stage without pipelines with this stage's id, role, contract and conditions.

        Raises:
            ProtocolMismatch: the endpoint serves something else under that id.
            EndpointUnreachable
        """
        if self._outline is None:
            try:
                self._outline = _outline(self.stage_id, self.contract.stage, repr(self))
            except (EndpointUnreachable, QueueFull) as error:
                found: Stage = self._fallback_or_raise(error)
                return found
        return self._outline

    _outline: Stage | None = None

    def should_run(self, state: State) -> bool:
        """Return whether the execution condition holds."""
        return self.outline().should_run(state)

    def preview(self, state: State, *, marker: str = "(written by {stage})") -> State:
        """Return the state as after a run, with a text in place of every block that would be written."""
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
        """Run the stage at the endpoint and return the new state.

        Hooks see the stage as one node: phases ``before`` (state_before) and ``after`` (state_before, state_after).

        Raises:
            As `Stage.run`; CannotTravel, RemoteError
        """
        refuse_training(training, self)
        emit = as_emit(callbacks)
        before = State.of(state)
        call_options = {"max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=before.seed if seed is None else seed) as context:
            if emit:
                emit(self.stage_id, "before", state_before=before)
            try:
                after = State.from_dict(self._call({"state": before.to_dict(), "action": action}, context, call_options)["state"])
            except (EndpointUnreachable, QueueFull) as error:
                after = self._run_fallback_stage(error, before, action, {**call_options, "device": device, "seed": context.seed})
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
        """Run as `run` for a caller with an event loop, without blocking it."""
        refuse_training(training, self)
        before = State.of(state)
        call_options = {"max_workers": max_workers, "dry_run": dry_run or None, **options}
        with enter_run(seed=before.seed if seed is None else seed) as context:
            try:
                return State.from_dict(
                    (await self._call_async({"state": before.to_dict(), "action": action}, context, call_options))["state"]
                )
            except (EndpointUnreachable, QueueFull) as error:
                return await asyncio.to_thread(self._run_fallback_stage, error, before, action, {**call_options, "seed": context.seed})

    def _run_fallback_stage(self, error: EndpointUnreachable | QueueFull, state: State, action: Any, options: Mapping[str, Any]) -> State:
        supported = {name: item for name, item in options.items() if item is not None}
        after: State = self._fallback_or_raise(error).run(state.loaded(), action=action, **supported)
        return after


def _outline(stage_id: str, facts: Mapping[str, Any] | None, what: str) -> Stage:
    if not isinstance(facts, Mapping):
        raise ProtocolMismatch(f"{what} is not a stage; correct its id, or serve the stage at the endpoint")
    stage = Stage(stage_id, role=facts.get("role"))
    contract = facts["state_contract"]
    keys = ("block", "stage_node_id", "port")
    mappings = [[{key: entry[key] for key in keys} for entry in facts[side]] for side in ("inputs", "outputs")]
    stage.set_state_contract(contract["input_blocks"], contract["output_blocks"], *mappings, carry=contract.get("carry", True))
    stage.set_execution_condition(facts.get("execution_condition"))
    stage.pipeline_conditions = {name: Condition(condition) for name, condition in (facts.get("pipeline_conditions") or {}).items()}
    return stage


class RemoteWorld(RemotePart):
    """A world that an endpoint serves. Arguments as `RemotePart`, without ``fallback``."""

    allows_fallback: ClassVar[bool] = False

    @property
    def world_id(self) -> str:
        """Return the world's id."""
        return str((self.contract.world or {}).get("world_id", self.graph_id))

    @property
    def cycle(self) -> list[str]:
        """Return the ids of its stages in order."""
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
        """Run ``num_steps`` passes at the endpoint and return the last state, or with ``iterate`` an iterator over the passes' states.

        With ``iterate`` each pass is one call. Hooks see the world as one node: phases ``before`` (state_before) and ``after``
        (state_before, state_after).

        Raises:
            As `World.run`; CannotTravel, RemoteError
        """
        refuse_training(training, self)
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 0:
            raise InvalidArgument(f"num_steps must be an integer of at least 0, got {num_steps!r}")
        emit = as_emit(callbacks)
        before = None if state is None else State.of(state)
        call_options = {"seed": seed, "dry_run": dry_run or None, **options}
        if iterate:
            return self._passes(before, action, num_steps, call_options)
        if emit:
            emit(self.world_id, "before", state_before=before)
        after = self._steps(before, action, num_steps, call_options)
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
