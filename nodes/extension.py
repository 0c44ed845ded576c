"""The ComfyUI extension: its nodes, and the endpoint that is attached on load."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import ComfyExtension

from yggdrasill.nodes.configs import LoadGraph, LoadPipeline, LoadStage, SaveConfig, WorldNode
from yggdrasill.nodes.graphs import AddBlock, Connect, PipelineNode, RunGraph
from yggdrasill.nodes.internal import GraphResult, GraphValue, PlacedPartNode
from yggdrasill.nodes.ports import GraphInput, GraphOutput
from yggdrasill.nodes.remote import EndpointInfo, RemoteGraphNode
from yggdrasill.nodes.stages import RunStage, StageNode, WorldFromStages
from yggdrasill.nodes.states import ReadState, StateNode
from yggdrasill.nodes.worlds import LoadWorld, RunWorld, SaveWorld

__all__ = ["YggdrasillExtension"]


class YggdrasillExtension(ComfyExtension):
    """The extension. Loading it attaches the endpoint; if that fails, the nodes stay available and the error is logged."""

    async def on_load(self) -> None:
        """Attach the endpoint to the server before it starts."""
        from yggdrasill.server_ext.comfy.attach import attach

        attach()

    async def get_node_list(self) -> list[type[Any]]:
        """Return the node classes."""
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
