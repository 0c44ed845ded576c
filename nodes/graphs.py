"""Add Block, Connect, Pipeline and Run Graph: graphs put together on the canvas, and run."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.loading import chosen
from yggdrasill.nodes.sockets import linked_parts, names_input, part_inputs, port_inputs, port_outputs, values_in_order
from yggdrasill.nodes.types import GRAPH, PIPELINE, category, seed_input
from yggdrasill.nodes.widgets import inputs_of
from yggdrasill.server_ext.comfy.port_checks import MAX_PORTS

__all__ = ["AddBlock", "Connect", "PipelineNode", "RunGraph"]

_LINES = (
    "One connection in a line. 'a.out -> b.in' links an output to an input; 'name -> a.in' makes an input of the whole, "
    "'a.out -> name' an output. # begins a remark."
)
_OPEN = "Make inputs that nothing feeds, and outputs that nothing takes, those of the whole."


class AddBlock(io.ComfyNode):
    """A graph with one more block."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        from yggdrasill.server_ext.comfy.levels.blocks import block_settings

        options = [io.DynamicCombo.Option(name, inputs_of(settings)) for name, settings in block_settings().items()]
        return io.Schema(
            node_id="YggdrasillAddBlock",
            display_name="Add Block",
            category=category("Graph"),
            description="Adds a block to a graph, or begins a new graph with it.",
            search_aliases=["yggdrasill", "block", "new graph", "graph builder"],
            inputs=[
                GRAPH.Input("graph", optional=True, tooltip="The graph to add to; without one a new graph begins."),
                io.DynamicCombo.Input("block", options=options, tooltip="The type of the block; its settings follow."),
                io.String.Input("name", default="", tooltip="What the block is called in connections; blank is its type with a number."),
                io.String.Input(
                    "graph_id", default="graph", tooltip="The id of a new graph; the registry places graphs by it.", advanced=True
                ),
                io.Boolean.Input(
                    "auto_connect",
                    default=True,
                    tooltip="Link blocks with roles, such as backbone and solver, as their roles say.",
                    advanced=True,
                ),
                io.String.Input(
                    "defaults",
                    default="",
                    multiline=True,
                    tooltip="Values for inputs that nothing feeds, as YAML.",
                    optional=True,
                    advanced=True,
                ),
                io.Boolean.Input(
                    "trainable", default=True, tooltip="Whether training may change its weights.", optional=True, advanced=True
                ),
            ],
            outputs=[
                GRAPH.Output(display_name="graph", tooltip="The graph with the block."),
                io.String.Output(display_name="name", tooltip="What the block is called."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        name: str,
        graph_id: str,
        auto_connect: bool,
        block: dict[str, Any] | None = None,
        graph: dict[str, Any] | None = None,
        defaults: str = "",
        trainable: bool = True,
    ) -> Any:
        """Give the new graph's config."""
        from yggdrasill.server_ext.comfy.levels.blocks import chosen_block
        from yggdrasill.server_ext.comfy.levels.graph_composing import add_block

        block_type, settings = chosen_block(block, chosen(cls, "block"), defaults)
        return io.NodeOutput(*add_block(graph, graph_id, name, block_type, settings, auto_connect=auto_connect, trainable=trainable))


class Connect(io.ComfyNode):
    """A graph or pipeline with more connections."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillConnect",
            display_name="Connect",
            category=category("Graph"),
            description="Links the blocks of a graph, and names the graph's own inputs and outputs.",
            search_aliases=["yggdrasill", "edge", "wire", "expose", "link blocks"],
            inputs=[
                GRAPH.Input("graph", tooltip="The graph whose blocks are linked."),
                io.String.Input(
                    "connections", default="", multiline=True, tooltip=_LINES, placeholder="image -> a.image\na.resized -> b.below"
                ),
                io.Boolean.Input("open_rest", default=True, tooltip=_OPEN),
            ],
            outputs=[GRAPH.Output(display_name="graph", tooltip="The linked graph.")],
        )

    @classmethod
    def execute(cls, graph: dict[str, Any], connections: str, open_rest: bool) -> Any:
        """Give the new config."""
        from yggdrasill.server_ext.comfy.levels.graph_composing import connect

        return io.NodeOutput(connect(graph, connections, open_rest=open_rest))


class PipelineNode(io.ComfyNode):
    """Graphs put together."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        part = io.MultiType.Input("graph", [GRAPH, PIPELINE], optional=True, tooltip="A graph of the pipeline, or a pipeline used as one.")
        return io.Schema(
            node_id="YggdrasillPipeline",
            display_name="Pipeline",
            category=category("Pipeline"),
            description="Links graphs into a pipeline. Without connections each graph takes what those before it give, by name or type.",
            search_aliases=["yggdrasill", "compose graphs", "chain graphs", "graph of graphs"],
            inputs=[
                part_inputs("graphs", part, "g", "The graphs, in their order."),
                io.String.Input("pipeline_id", default="pipeline", tooltip="The id of the pipeline; the registry places it whole by it."),
                io.String.Input("connections", default="", multiline=True, tooltip=_LINES + " Blank: by name, else by type."),
                names_input("graphs"),
                io.Boolean.Input("open_rest", default=True, tooltip=_OPEN, advanced=True),
            ],
            outputs=[PIPELINE.Output(display_name="pipeline", tooltip="The pipeline's config.")],
        )

    @classmethod
    def execute(cls, graphs: dict[str, Any], pipeline_id: str, connections: str, names: str, open_rest: bool) -> Any:
        """Give the pipeline's config."""
        from yggdrasill.server_ext.comfy.levels.graph_composing import make_pipeline

        return io.NodeOutput(make_pipeline(pipeline_id, linked_parts(graphs), names, connections, open_rest=open_rest))


class RunGraph(io.ComfyNode):
    """Runs a graph or pipeline; its ports are the node's sockets."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillRunGraph",
            display_name="Run Graph",
            category=category("Graph"),
            description="Runs a graph or pipeline, each part where endpoints.yaml places it. The result is the same wherever that is.",
            search_aliases=["yggdrasill", "run pipeline", "execute graph"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("graph", [GRAPH, PIPELINE], tooltip="The graph or pipeline that runs."),
                seed_input(),
                io.Int.Input(
                    "loop_steps", default=0, min=0, max=100_000, tooltip="How often cycles run; 0 is as the graph says.", advanced=True
                ),
                io.Boolean.Input("preview", default=True, tooltip="Show pictures among the outputs on the node."),
                port_inputs(MAX_PORTS, "The graph's inputs, in their order."),
            ],
            outputs=port_outputs(MAX_PORTS),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(
        cls, graph: dict[str, Any], seed: int, loop_steps: int, preview: bool = True, ports: dict[str, Any] | None = None
    ) -> Any:
        """Give the outputs in the graph's order; one without value blocks what depends on it."""
        from yggdrasill.nodes.pictures import preview_of
        from yggdrasill.remote.comfy_ports import port_values
        from yggdrasill.server_ext.comfy.levels.graph_ports import pictures_of
        from yggdrasill.server_ext.comfy.levels.graph_run import run_graph
        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork

        work = NodeWork(str(cls.hidden.unique_id), lambda own: run_graph(own, graph, ports or {}, seed, loop_steps), seed=seed)
        outputs = {index: port_values(value) for index, value in (await work.result()).items()}
        pictures = [picture for values in outputs.values() for picture in pictures_of(values)] if preview else []
        return io.NodeOutput(*values_in_order(outputs, MAX_PORTS), ui=preview_of(pictures, cls))
