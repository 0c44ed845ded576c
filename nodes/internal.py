"""Nodes that users never see: the partition and the endpoint write them into prompts."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.ports import CATEGORY
from yggdrasill.nodes.sockets import port_inputs, port_outputs, values_in_order
from yggdrasill.remote.partition.parts import MOST_PORTS, PLACED_NODE
from yggdrasill.server_ext.comfy.binding import RESULT_NODE, VALUE_NODE

__all__ = ["GraphResult", "GraphValue", "PlacedPartNode"]


class PlacedPartNode(io.ComfyNode):
    """Runs a part of a workflow on an endpoint. Its messages carry the ids of the nodes in the plan."""

    #: See `yggdrasill.server_ext.comfy.execution_blockers`.
    takes_blocked = True
    #: ComfyUI reports the cached outputs of such classes again. Those of inner nodes of other classes are removed from the message.
    HAS_INTERMEDIATE_OUTPUT = True

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id=PLACED_NODE,
            display_name="Placed part",
            category=CATEGORY,
            description="Runs a part of a workflow on another server.",
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
        """Return NaN for a plan that must always run again: the cache of the endpoint decides which nodes have changed."""
        from yggdrasill.server_ext.comfy.placement.placed_call import plan_asks_again

        # a new NaN on each call: math.nan would be equal to itself by identity
        return float("nan") if plan_asks_again(plan) else ""

    @classmethod
    async def execute(cls, part: list[str], plan: list[str], ports: dict[str, list[Any]] | None = None) -> Any:
        """Run the call and return the outputs in the order of the plan. An output without a value blocks the nodes that need it."""
        from yggdrasill.server_ext.comfy.placement.placed_call import placed_call

        call = placed_call(plan[0], ports or {}, str(cls.hidden.unique_id)).start()
        outputs = await call.result()
        return io.NodeOutput(*values_in_order(outputs, len(call.plan.outputs)), ui=call.shown)


class GraphValue(io.ComfyNode):
    """The value of a job's input, identified by the hash of its content, so that ComfyUI's cache recognizes equal values."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id=VALUE_NODE,
            display_name="Value of a job's input",
            category=CATEGORY,
            is_dev_only=True,
            inputs=[io.String.Input("hash")],
            outputs=[io.AnyType.Output(display_name="value", is_output_list=True)],
        )

    @classmethod
    def execute(cls, hash: str) -> Any:  # noqa: A002 - the socket's name
        """Return the values of the port."""
        from yggdrasill.remote.comfy_ports import port_values
        from yggdrasill.server_ext.comfy.execution_blockers import as_blockers
        from yggdrasill.server_ext.comfy.extension_context import extension_context

        return io.NodeOutput(as_blockers(port_values(extension_context().runner.job_inputs.take(hash))))


class GraphResult(io.ComfyNode):
    """Receives an output of a job. It has no outputs of its own, so ComfyUI caches only its key."""

    #: See `yggdrasill.server_ext.comfy.execution_blockers`.
    takes_blocked = True

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id=RESULT_NODE,
            display_name="Result of a job",
            category=CATEGORY,
            is_dev_only=True,
            is_input_list=True,
            is_output_node=True,
            inputs=[io.AnyType.Input("value"), io.String.Input("port"), io.String.Input("type"), io.String.Input("run")],
        )

    @classmethod
    def execute(cls, value: list[Any], port: list[str], type: list[str], run: list[str]) -> Any:  # noqa: A002 - the socket's name
        """Deliver the values of the port to the run that waits for them.

        Raises:
            CannotTravel: a value is not transferable; the message names port and type.
        """
        from yggdrasill.server_ext.comfy.extension_context import extension_context
        from yggdrasill.server_ext.comfy.port_checks import sendable_values

        waiting = extension_context().runner.run_of(run[0])
        if waiting is not None:
            waiting.deliver(port[0], sendable_values(port[0], type[0], value))
        return io.NodeOutput()
