"""Graph Input and Graph Output: the named ports of a workflow that is deployed as a graph."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE

__all__ = ["CATEGORY", "GraphInput", "GraphOutput"]

CATEGORY = "Yggdrasill"


class GraphInput(io.ComfyNode):
    """A named input. It returns its default in the editor and for callers that send no value."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id=INPUT_NODE,
            display_name="Graph Input",
            category=CATEGORY,
            description="An input of this workflow when it is deployed as a graph. Callers send its value; in the editor it is the default.",
            search_aliases=["yggdrasill", "port", "endpoint input"],
            is_input_list=True,
            inputs=[
                io.String.Input("name", default="input", tooltip="The name for callers. Inputs with the same name receive the same value."),
                io.String.Input("type", default="*", tooltip="The ComfyUI type, such as IMAGE or LATENT. *: any type."),
                io.AnyType.Input("default", optional=True, tooltip="The value in the editor, and for callers that send none."),
            ],
            outputs=[io.AnyType.Output(display_name="value", tooltip="The caller's value, or the default.", is_output_list=True)],
        )

    @classmethod
    def execute(cls, name: list[str], type: list[str], default: list[Any] | None = None) -> Any:  # noqa: A002 - the socket's name
        """Return the default, or block dependent nodes with a message if there is no default."""
        if default is None:
            return io.NodeOutput(
                block_execution=f"Graph Input {name[0]!r} has no default. Connect one, or call the deployed graph with a value."
            )
        return io.NodeOutput(default)


class GraphOutput(io.ComfyNode):
    """A named output. In the editor it ignores its value."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id=OUTPUT_NODE,
            display_name="Graph Output",
            category=CATEGORY,
            description="An output of this workflow when it is deployed as a graph. Callers receive its value.",
            search_aliases=["yggdrasill", "port", "endpoint output"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.AnyType.Input("value", tooltip="The value that callers receive."),
                io.String.Input("name", default="output", tooltip="The name for callers."),
                io.String.Input("type", default="*", tooltip="The ComfyUI type, such as IMAGE or LATENT. *: any type."),
            ],
        )

    @classmethod
    def execute(cls, value: list[Any], name: list[str], type: list[str]) -> Any:  # noqa: A002 - the socket's name
        """Do nothing: in a deployed workflow another node replaces this one."""
        return io.NodeOutput()
