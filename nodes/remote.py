"""Remote Graph and Endpoint Info: calls of deployments, and the status of endpoints."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.ports import CATEGORY
from yggdrasill.nodes.sockets import category, port_inputs, port_outputs, values_in_order
from yggdrasill.server_ext.comfy.port_checks import MAX_PORTS

__all__ = ["REMOTE_NODE", "EndpointInfo", "RemoteGraphNode"]

REMOTE_NODE = "YggdrasillRemoteGraph"
AUTO = "auto"
FALLBACKS = (AUTO, "fail", "local")


class RemoteGraphNode(io.ComfyNode):
    """Calls a deployment. The editor names the sockets after the contract, which is stored in the node."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id=REMOTE_NODE,
            display_name="Remote Graph",
            category=CATEGORY,
            description="Runs a graph on an endpoint: another ComfyUI or a headless server. The result is the same as that of a local run.",
            search_aliases=["yggdrasill", "remote", "endpoint", "distributed"],
            is_input_list=True,
            inputs=[
                io.String.Input("graph", default="", tooltip="The graph id of the deployment."),
                io.String.Input(
                    "endpoint",
                    default="auto",
                    tooltip="The name of an endpoint. auto: the endpoint on which the registry places the graph.",
                ),
                io.String.Input(
                    "contract",
                    default="",
                    multiline=True,
                    tooltip="The contract of the graph as JSON, written by the editor.",
                    socketless=True,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFF_FFFF_FFFF_FFFF,
                    optional=True,
                    tooltip="The seed for graphs of blocks that use random numbers.",
                ),
                io.Combo.Input(
                    "fallback",
                    options=list(FALLBACKS),
                    default=AUTO,
                    optional=True,
                    tooltip="If no endpoint accepts the call: fail, or run the same workflow on this server (local). auto: the registry's setting.",
                    socketless=True,
                ),
                port_inputs(MAX_PORTS),
            ],
            outputs=port_outputs(MAX_PORTS),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, graph: Any = None, endpoint: Any = None, contract: Any = None, ports: Any = None) -> bool | str:
        """Validate the constant inputs. Errors appear on the node before anything runs."""
        from yggdrasill.server_ext.comfy.remote_call import check_settings

        return check_settings(graph, endpoint, contract) or True

    @classmethod
    async def fingerprint_inputs(cls, graph: list[str] | None = None, endpoint: list[str] | None = None, **others: Any) -> str | float:
        """Return the hash of the deployment, by which ComfyUI decides whether a cached result is still valid."""
        from yggdrasill.server_ext.comfy.contract_fingerprint import fingerprint

        # a linked graph or endpoint is unknown until its node has run
        return await fingerprint(graph[0], endpoint[0]) if graph and endpoint else float("nan")

    @classmethod
    async def execute(
        cls,
        graph: list[str],
        endpoint: list[str],
        contract: list[str],
        seed: list[int] | None = None,
        fallback: list[str] | None = None,
        ports: dict[str, list[Any]] | None = None,
    ) -> Any:
        """Run the call and return the outputs in the order of the contract. An output without a value blocks the nodes that need it."""
        from yggdrasill.server_ext.comfy.remote_call import RemoteCall

        call = RemoteCall(
            graph=graph[0],
            endpoint=endpoint[0],
            contract=contract[0],
            seed=seed[0] if seed else 0,
            ports=ports or {},
            node_id=str(cls.hidden.unique_id),
            fallback=fallback[0] if fallback else AUTO,
        ).start()
        outputs = await call.result()
        shown = {"yggdrasill": [{"ran_here": call.ran_here}]} if call.ran_here else None
        return io.NodeOutput(*values_in_order(outputs, MAX_PORTS), ui=shown)


class EndpointInfo(io.ComfyNode):
    """Queries the status of one endpoint or of all."""

    @classmethod
    def define_schema(cls) -> Any:
        """Return the node's schema."""
        return io.Schema(
            node_id="YggdrasillEndpointInfo",
            display_name="Endpoint Info",
            category=category("Endpoints"),
            description="Shows whether an endpoint responds, its queue, versions and devices, and its graphs. Queries on every run.",
            search_aliases=["yggdrasill", "ping", "health", "server status", "capabilities"],
            is_output_node=True,
            inputs=[io.String.Input("endpoint", default="", tooltip="The name of an endpoint in endpoints.yaml. Blank: all endpoints.")],
            outputs=[
                io.Boolean.Output(display_name="ready", tooltip="True if all queried endpoints responded."),
                io.String.Output(display_name="info", tooltip="The status of the endpoints as YAML."),
                io.String.Output(display_name="graphs", tooltip="Their graphs, one 'endpoint/graph' per line."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, endpoint: Any = None) -> bool | str:
        """Check that the endpoint exists."""
        from yggdrasill.server_ext.comfy.levels.endpoint_info import unknown_endpoint

        return unknown_endpoint(endpoint) or True

    @classmethod
    def fingerprint_inputs(cls, endpoint: Any = None) -> float:
        """Return NaN, so that the node always runs."""
        return float("nan")  # a new object on each call: ComfyUI compares by identity first

    @classmethod
    async def execute(cls, endpoint: str) -> Any:
        """Return the status of the endpoints."""
        from yggdrasill.server_ext.comfy.levels.endpoint_info import query_endpoints
        from yggdrasill.server_ext.comfy.levels.node_work import NodeWork

        def query(work: NodeWork[Any]) -> tuple[bool, str, str]:
            with work.context.host.release_slot():
                status = query_endpoints(endpoint)
            work.messages.show_text("all respond" if status[0] else "not all respond")
            return status

        return io.NodeOutput(*await NodeWork(str(cls.hidden.unique_id), query).result())
