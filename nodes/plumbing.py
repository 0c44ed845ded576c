"""What Graph Input and Graph Output become while a job runs; only the endpoint writes them into prompts."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.ports import CATEGORY
from yggdrasill.server_ext.comfy.binding import RESULT_NODE, VALUE_NODE

__all__ = ["GraphResult", "GraphValue"]


class GraphValue(io.ComfyNode):
    """The value of a job's input, named by the hash of its content, so that equal values are equal to ComfyUI's cache."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
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
        """Give the values of the port."""
        from yggdrasill.remote.comfy_ports import port_values
        from yggdrasill.server_ext.comfy.execution_blockers import as_blockers
        from yggdrasill.server_ext.comfy.extension_context import extension_context

        return io.NodeOutput(as_blockers(port_values(extension_context().runner.job_inputs.take(hash))))


class GraphResult(io.ComfyNode):
    """Where a job's output arrives. It has no outputs, so that running it each time leaves nothing in ComfyUI's cache but its key."""

    #: See `yggdrasill.server_ext.comfy.execution_blockers`.
    takes_blocked = True

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
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
        """Hand the values of the port to the run that waits for them.

        Raises:
            CannotTravel: a value that cannot leave this process, named by port and type.
        """
        from yggdrasill.server_ext.comfy.extension_context import extension_context
        from yggdrasill.server_ext.comfy.port_checks import check_port

        waiting = extension_context().runner.run_of(run[0])
        if waiting is not None:
            check_port(port[0], type[0], value)
            waiting.deliver(port[0], value)
        return io.NodeOutput()
