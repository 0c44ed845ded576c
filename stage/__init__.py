"""Stages: acyclic containers of pipelines that read and write a state, and the state itself."""

from yggdrasill.stage.conditions import Condition
from yggdrasill.stage.contract import PortMapping, StageLike, StateContract
from yggdrasill.stage.stage import Stage
from yggdrasill.stage.state import State, is_filled

__all__ = ["Condition", "PortMapping", "Stage", "StageLike", "State", "StateContract", "is_filled"]
