"""Plan, program and scheduler: the one loop under graphs, pipelines and stages. It knows none of them."""

from yggdrasill.executor.context import CancelToken, Host, RunContext, current_run, enter_run
from yggdrasill.executor.loop import run
from yggdrasill.executor.plan import Plan, make_plan

__all__ = ["CancelToken", "Host", "Plan", "RunContext", "current_run", "enter_run", "make_plan", "run"]
