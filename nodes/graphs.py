"""Add Block, Connect, Pipeline and Run Graph: build and run graphs on the canvas."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.configs import selected_choice
from yggdrasill.nodes.sockets import (
    GRAPH,
    PIPELINE,
    category,
    inputs_of,
    linked_parts,
    names_input,
    part_inputs,
    port_inputs,
    port_outputs,
    preview_of,
    seed_input,
    values_in_order,
)
from yggdrasill.server_ext.comfy.port_checks import MAX_PORTS

__all__ = ["AddBlock", "Connect", "PipelineNode", "RunGraph"]

_CONNECTIONS = (
    "One connection per line. 'a.out -> b.in' links an output to an input; 'name -> a.in' exposes an input under that name, "
    "'a.out -> name' an output. # starts a comment."
)
_EXPOSE = "Expose unconnected inputs and outputs as ports of the graph."


class AddBlock(io.ComfyNode):
    """Adds a block to a graph."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        from yggdrasill.server_ext.comfy.levels.blocks import block_settings

        options = [io.DynamicCombo.Option(name, inputs_of(settings)) for name, settings in block_settings().items()]
        return io.Schema(
            node_id="YggdrasillAddBlock",
            display_name="Add Block",
            category=category("Graph"),
            description="Adds a block to a graph, or starts a new graph with it.",
            search_aliases=["yggdrasill", "block", "new graph", "graph builder"],
            inputs=[
                GRAPH.Input("graph", optional=True, tooltip="The graph to extend. Unconnected: a new graph."),
                io.DynamicCombo.Input("block", options=options, tooltip="The block type. Its settings appear below."),
                io.String.Input("name", default="", tooltip="The node id of the block, used in connections. Blank: its type and a number."),
                io.String.Input(
                    "graph_id", default="graph", tooltip="The id of a new graph, by which the registry places it.", advanced=True
                ),
                io.Boolean.Input(
                    "auto_connect",
                    default=True,
                    tooltip="Connect blocks by their roles, such as backbone and solver.",
                    advanced=True,
                ),
                io.String.Input(
                    "defaults",
                    default="",
                    multiline=True,
                    tooltip="Default values of unconnected inputs, as YAML.",
                    optional=True,
                    advanced=True,
                ),
                io.Boolean.Input(
                    "trainable", default=True, tooltip="Whether training updates the weights of the block.", optional=True, advanced=True
                ),
            ],
            outputs=[
                GRAPH.Output(display_name="graph", tooltip="The graph with the block."),
                io.String.Output(display_name="name", tooltip="The node id of the block."),
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
        """Return the config of the new graph."""
        from yggdrasill.server_ext.comfy.levels.blocks import chosen_block
        from yggdrasill.server_ext.comfy.levels.graph_composing import add_block

        block_type, settings = chosen_block(block, selected_choice(cls, "block"), defaults)
        return io.NodeOutput(*add_block(graph, graph_id, name, block_type, settings, auto_connect=auto_connect, trainable=trainable))


class Connect(io.ComfyNode):
    """Connects the blocks of a graph."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillConnect",
            display_name="Connect (Yggdrasill)",
            category=category("Graph"),
            description="Connects the blocks of a graph, and names the graph's inputs and outputs.",
            search_aliases=["yggdrasill", "edge", "wire", "expose", "link blocks"],
            inputs=[
                GRAPH.Input("graph", tooltip="The graph whose blocks are connected."),
                io.String.Input(
                    "connections", default="", multiline=True, tooltip=_CONNECTIONS, placeholder="image -> a.image\na.resized -> b.below"
                ),
                io.Boolean.Input("open_rest", default=True, tooltip=_EXPOSE),
            ],
            outputs=[GRAPH.Output(display_name="graph", tooltip="The connected graph.")],
        )

    @classmethod
    def execute(cls, graph: dict[str, Any], connections: str, open_rest: bool) -> Any:
        """Return the new config."""
        from yggdrasill.server_ext.comfy.levels.graph_composing import connect

        return io.NodeOutput(connect(graph, connections, open_rest=open_rest))


class PipelineNode(io.ComfyNode):
    """Composes graphs into a pipeline."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        part = io.MultiType.Input(
            "graph", [GRAPH, PIPELINE], optional=True, tooltip="A graph of the pipeline, or a pipeline used as a graph."
        )
        return io.Schema(
            node_id="YggdrasillPipeline",
            display_name="Pipeline (Yggdrasill)",
            category=category("Pipeline"),
            description="Composes graphs into a pipeline. Without connections, inputs are matched to outputs of earlier graphs by name or type.",
            search_aliases=["yggdrasill", "compose graphs", "chain graphs", "graph of graphs"],
            inputs=[
                part_inputs("graphs", part, "g", "The graphs, in order."),
                io.String.Input(
                    "pipeline_id", default="pipeline", tooltip="The id of the pipeline, by which the registry places the whole pipeline."
                ),
                io.String.Input("connections", default="", multiline=True, tooltip=_CONNECTIONS + " Blank: match by name, then by type."),
                names_input("graphs"),
                io.Boolean.Input("open_rest", default=True, tooltip=_EXPOSE, advanced=True),
            ],
            outputs=[PIPELINE.Output(display_name="pipeline", tooltip="The pipeline's config.")],
        )

    @classmethod
    def execute(cls, graphs: dict[str, Any], pipeline_id: str, connections: str, names: str, open_rest: bool) -> Any:
        """Return the config of the pipeline."""
        from yggdrasill.server_ext.comfy.levels.graph_composing import make_pipeline

        return io.NodeOutput(make_pipeline(pipeline_id, linked_parts(graphs), names, connections, open_rest=open_rest))


class RunGraph(io.ComfyNode):
    """Runs a graph or pipeline. Its ports become the node's sockets."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillRunGraph",
            display_name="Run Graph",
            category=category("Graph"),
            description="Runs a graph or pipeline, each part where endpoints.yaml places it. The result does not depend on the placement.",
            search_aliases=["yggdrasill", "run pipeline", "execute graph"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("graph", [GRAPH, PIPELINE], tooltip="The graph or pipeline to run."),
                seed_input(),
                io.Int.Input(
                    "loop_steps", default=0, min=0, max=100_000, tooltip="Iterations of cycles. 0: the graph's setting.", advanced=True
                ),
                io.Boolean.Input("preview", default=True, tooltip="Show image outputs on the node."),
                port_inputs(MAX_PORTS, "The inputs of the graph, in order."),
            ],
            outputs=port_outputs(MAX_PORTS),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(
        cls, graph: dict[str, Any], seed: int, loop_steps: int, preview: bool = True, ports: dict[str, Any] | None = None
    ) -> Any:
        """Return the outputs in the order of the graph. An output without a value blocks the nodes that need it."""
        from yggdrasill.remote.comfy_ports import port_values
        from yggdrasill.server_ext.comfy.levels.graph_ports import pictures_of
        from yggdrasill.server_ext.comfy.levels.graph_run import run_graph
        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork

        work = NodeWork(str(cls.hidden.unique_id), lambda node_work: run_graph(node_work, graph, ports or {}, seed, loop_steps), seed=seed)
        outputs = {index: port_values(value) for index, value in (await work.result()).items()}
        images = [image for values in outputs.values() for image in pictures_of(values)] if preview else []
        return io.NodeOutput(*values_in_order(outputs, MAX_PORTS), ui=preview_of(images, cls))
