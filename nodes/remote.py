"""Remote Graph: a graph that is served somewhere else, as one node of a workflow here."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from yggdrasill.nodes.ports import CATEGORY
from yggdrasill.nodes.sockets import port_inputs, port_outputs, values_in_order
from yggdrasill.server_ext.comfy.port_checks import MAX_PORTS

__all__ = ["REMOTE_NODE", "RemoteGraphNode"]

REMOTE_NODE = "YggdrasillRemoteGraph"
AUTO = "auto"
FALLBACKS = (AUTO, "fail", "local")


class RemoteGraphNode(io.ComfyNode):
    """Calls a served graph. The editor names its sockets after the contract, which is stored in the node."""

    @classmethod
    def define_schema(cls) -> Any:
        """The node's form."""
        return io.Schema(
            node_id=REMOTE_NODE,
            display_name="Remote Graph",
            category=CATEGORY,
            description="Runs a graph that an endpoint serves: another ComfyUI, or one without it. The result is that of running it here.",
            search_aliases=["yggdrasill", "remote", "endpoint", "distributed"],
            is_input_list=True,
            inputs=[
                io.String.Input("graph", default="", tooltip="The id the graph is served under."),
                io.String.Input("endpoint", default="auto", tooltip="auto: where the registry places the graph; or an endpoint's name."),
                io.String.Input(
                    "contract", default="", multiline=True, tooltip="The graph's contract as JSON; the editor writes it.", socketless=True
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFF_FFFF_FFFF_FFFF,
                    optional=True,
                    tooltip="For graphs of blocks that draw random numbers.",
                ),
                io.Combo.Input(
                    "fallback",
                    options=list(FALLBACKS),
                    default=AUTO,
                    optional=True,
                    tooltip="If no endpoint takes the call: fail, or run the same workflow here (local). auto: what the registry says.",
                    socketless=True,
                ),
                port_inputs(MAX_PORTS),
            ],
            outputs=port_outputs(MAX_PORTS),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, graph: Any = None, endpoint: Any = None, contract: Any = None, ports: Any = None) -> bool | str:
        """Whether the constants can be what they are for; said on the node before anything runs."""
        from yggdrasill.server_ext.comfy.remote_call import check_settings

        return check_settings(graph, endpoint, contract) or True

    @classmethod
    async def fingerprint_inputs(cls, graph: list[str] | None = None, endpoint: list[str] | None = None, **others: Any) -> str | float:
        """What ComfyUI compares to know whether an earlier result still holds: the hash of what the endpoint serves now."""
        from yggdrasill.server_ext.comfy.contract_fingerprint import fingerprint

        # a graph or endpoint that comes over a link is not known before its node has run
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
        """Send the inputs, wait, and give the outputs in the contract's order; a port without value blocks what depends on it."""
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
