"""Graph Input and Graph Output: they mark the named ports of a workflow that is served as a graph."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE

__all__ = ["CATEGORY", "GraphInput", "GraphOutput"]

CATEGORY = "Yggdrasill"


class GraphInput(io.ComfyNode):
    """A named input. In the editor, and where a caller gives no value, it is its default."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id=INPUT_NODE,
            display_name="Graph Input",
            category=CATEGORY,
            description="An input of this workflow when it is served as a graph. Whoever calls it gives the value; here it is the default.",
            search_aliases=["yggdrasill", "port", "endpoint input"],
            is_input_list=True,
            inputs=[
                io.String.Input("name", default="input", tooltip="The name callers use; two inputs of one name get the same value."),
                io.String.Input("type", default="*", tooltip="ComfyUI's type, such as IMAGE or LATENT; * is any."),
                io.AnyType.Input("default", optional=True, tooltip="The value here in the editor, and for callers that give none."),
            ],
            outputs=[io.AnyType.Output(display_name="value", tooltip="The caller's value, or the default.", is_output_list=True)],
        )

    @classmethod
    def execute(cls, name: list[str], type: list[str], default: list[Any] | None = None) -> Any:  # noqa: A002 - the socket's name
        """Give the default, or stop what depends on it with a message."""
        if default is None:
            return io.NodeOutput(block_execution=f"Graph Input {name[0]!r} has no default, so it needs a caller that gives a value")
        return io.NodeOutput(default)


class GraphOutput(io.ComfyNode):
    """A named output. In the editor it takes its value and does nothing with it."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id=OUTPUT_NODE,
            display_name="Graph Output",
            category=CATEGORY,
            description="An output of this workflow when it is served as a graph: its value goes to whoever called it.",
            search_aliases=["yggdrasill", "port", "endpoint output"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.AnyType.Input("value", tooltip="What callers get."),
                io.String.Input("name", default="output", tooltip="The name callers use."),
                io.String.Input("type", default="*", tooltip="ComfyUI's type, such as IMAGE or LATENT; * is any."),
            ],
        )

    @classmethod
    def execute(cls, value: list[Any], name: list[str], type: list[str]) -> Any:  # noqa: A002 - the socket's name
        """Nothing: what is served replaces this node."""
        return io.NodeOutput()
