"""Stages: pipelines with a state outside, and the state itself."""

from yggdrasill.stage.conditions import Condition
from yggdrasill.stage.contract import PortMapping, StateContract
from yggdrasill.stage.protocol import StageLike
from yggdrasill.stage.stage import Stage
from yggdrasill.stage.state import State, is_filled

__all__ = ["Condition", "PortMapping", "Stage", "StageLike", "State", "StateContract", "is_filled"]
