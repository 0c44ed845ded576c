"""What ComfyUI gets from the pack: its nodes, and the endpoint that is attached while it loads."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import ComfyExtension

from yggdrasill.nodes.endpoints import EndpointInfo
from yggdrasill.nodes.graphs import AddBlock, Connect, PipelineNode, RunGraph
from yggdrasill.nodes.loading import LoadGraph, LoadPipeline, LoadStage, WorldNode
from yggdrasill.nodes.placed import PlacedPartNode
from yggdrasill.nodes.plumbing import GraphResult, GraphValue
from yggdrasill.nodes.ports import GraphInput, GraphOutput
from yggdrasill.nodes.remote import RemoteGraphNode
from yggdrasill.nodes.saving import SaveConfig
from yggdrasill.nodes.stages import RunStage, StageNode, WorldFromStages
from yggdrasill.nodes.states import ReadState, StateNode
from yggdrasill.nodes.worlds import LoadWorld, RunWorld, SaveWorld

__all__ = ["YggdrasillExtension"]


class YggdrasillExtension(ComfyExtension):
    """The extension: loading it starts the endpoint; a failure there leaves the nodes and one line in the log."""

    async def on_load(self) -> None:
        """Attach the endpoint to the server that is about to start."""
        from yggdrasill.server_ext.comfy.attach import attach

        attach()

    async def get_node_list(self) -> list[type[Any]]:
        """The node classes."""
        return [
            GraphInput,
            GraphOutput,
            RemoteGraphNode,
            GraphValue,
            GraphResult,
            PlacedPartNode,
            LoadGraph,
            AddBlock,
            Connect,
            RunGraph,
            LoadPipeline,
            PipelineNode,
            LoadStage,
            WorldNode,
            SaveConfig,
            StageNode,
            RunStage,
            WorldFromStages,
            StateNode,
            ReadState,
            RunWorld,
            SaveWorld,
            LoadWorld,
            EndpointInfo,
        ]
