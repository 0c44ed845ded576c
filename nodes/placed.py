"""The node that stands for a part of a workflow that runs elsewhere. Only the partition writes it into prompts."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.ports import CATEGORY
from yggdrasill.nodes.sockets import port_inputs, port_outputs, values_in_order
from yggdrasill.remote.partition.parts import MOST_PORTS, PLACED_NODE

__all__ = ["PlacedPartNode"]


class PlacedPartNode(io.ComfyNode):
    """Runs its plan at an endpoint. It is never seen in the editor: what happens in it is told under the ids of the nodes in the plan."""

    #: See `yggdrasill.server_ext.comfy.execution_blockers`.
    takes_blocked = True

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id=PLACED_NODE,
            display_name="Placed part",
            category=CATEGORY,
            description="A part of a workflow that runs on another server.",
            is_dev_only=True,
            is_input_list=True,
            inputs=[
                io.String.Input("part", socketless=True),
                io.String.Input("plan", multiline=True, socketless=True),
                port_inputs(MOST_PORTS),
            ],
            outputs=port_outputs(MOST_PORTS),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, part: Any = None, plan: Any = None, ports: Any = None) -> Any:
        """A plan that says so is always run again: the endpoint's cache decides what of it has changed."""
        from yggdrasill.server_ext.comfy.placement.placed_call import plan_asks_again

        # a NaN of its own each time: the one of the math module would be equal to itself by identity
        return float("nan") if plan_asks_again(plan) else ""

    @classmethod
    async def execute(cls, part: list[str], plan: list[str], ports: dict[str, list[Any]] | None = None) -> Any:
        """Send the inputs, wait, and give the outputs in the plan's order; a port without value blocks what depends on it."""
        from yggdrasill.server_ext.comfy.placement.placed_call import placed_call

        call = placed_call(plan[0], ports or {}, str(cls.hidden.unique_id)).start()
        outputs = await call.result()
        return io.NodeOutput(*values_in_order(outputs, len(call.plan.outputs)), ui=call.shown)
