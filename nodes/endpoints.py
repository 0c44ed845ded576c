"""Endpoint Info: how the endpoints of endpoints.yaml are."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.types import category

__all__ = ["EndpointInfo"]


class EndpointInfo(io.ComfyNode):
    """Asks an endpoint, or all of them."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id="YggdrasillEndpointInfo",
            display_name="Endpoint Info",
            category=category("Endpoints"),
            description="Whether an endpoint answers, its queue, versions and devices, and the graphs it serves. It asks each time.",
            search_aliases=["yggdrasill", "ping", "health", "server status", "capabilities"],
            is_output_node=True,
            inputs=[io.String.Input("endpoint", default="", tooltip="An endpoint's name in endpoints.yaml; blank asks all.")],
            outputs=[
                io.Boolean.Output(display_name="ready", tooltip="Whether all that were asked answered."),
                io.String.Output(display_name="info", tooltip="What they said, as YAML."),
                io.String.Output(display_name="graphs", tooltip="The graphs they serve, 'endpoint/graph' in a line."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, endpoint: Any = None) -> bool | str:
        """Whether there is such an endpoint."""
        from yggdrasill.server_ext.comfy.levels.endpoint_info import unknown_endpoint

        return unknown_endpoint(endpoint) or True

    @classmethod
    def fingerprint_inputs(cls, endpoint: Any = None) -> float:
        """Never the same: an endpoint may have come or gone."""
        return float("nan")  # a new object each time: ComfyUI compares by identity first

    @classmethod
    async def execute(cls, endpoint: str) -> Any:
        """Give what the endpoints say."""
        from yggdrasill.server_ext.comfy.levels.endpoint_info import query_endpoints
        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork

        def ask(work: NodeWork[Any]) -> tuple[bool, str, str]:
            found = query_endpoints(endpoint)
            work.messages.show_text("all answer" if found[0] else "not all answer")
            return found

        return io.NodeOutput(*await NodeWork(str(cls.hidden.unique_id), ask).result())
