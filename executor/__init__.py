"""Plan and run: the one loop under every level. It runs whatever offers a program and knows no graph."""

from yggdrasill.executor.context import CancelToken, RunContext, current_run, enter_run
from yggdrasill.executor.loop import run
from yggdrasill.executor.plan import Plan, make_plan

__all__ = ["CancelToken", "Plan", "RunContext", "current_run", "enter_run", "make_plan", "run"]
