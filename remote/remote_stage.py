"""A stage behind an endpoint: state in, new state out. Its condition is asked here, so a skipped stage costs no call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import EndpointUnreachable, ProtocolMismatch, QueueFull
from yggdrasill.executor.context import enter_run
from yggdrasill.executor.hooks import Callbacks, as_emit
from yggdrasill.remote.proxy import refuse_training
from yggdrasill.remote.remote_graph import RemoteGraph
from yggdrasill.stage.conditions import Condition
from yggdrasill.stage.stage import Stage
from yggdrasill.stage.state import State

__all__ = ["RemoteStage"]


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
                found: Stage = self._here(error)
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
                after = self._stage_here(error, before, action, {**asked, "device": device, "seed": context.seed})
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
                return await asyncio.to_thread(self._stage_here, error, before, action, {**asked, "seed": context.seed})

    def _stage_here(self, error: EndpointUnreachable | QueueFull, state: State, action: Any, options: Mapping[str, Any]) -> State:
        given = {name: item for name, item in options.items() if item is not None}
        after: State = self._here(error).run(state.loaded(), action=action, **given)
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
