"""A ComfyUI workflow that goes along with every call of it, and is served nowhere before or after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, check_prompt, ports_of
from yggdrasill.remote.contract import RemoteContract, check_build
from yggdrasill.remote.preflight import check_at
from yggdrasill.remote.retry import Retry

__all__ = ["Workflow"]


class Workflow:
    """The API prompt ``prompt`` with ports, under the name that messages and job rows call it.

    Raises:
        InvalidConfig, LimitExceeded: as `yggdrasill.remote.comfy_graph.ComfyGraph`.
    """

    def __init__(self, prompt: Mapping[str, Any], graph_id: str = "workflow") -> None:
        self.prompt = check_prompt(prompt, graph_id)
        inputs, outputs = (
            [port.spec(True) for port in ports_of(self.prompt, kind, graph_id).values()] for kind in (INPUT_NODE, OUTPUT_NODE)
        )
        #: What it takes and gives: known here, so no endpoint is asked.
        self.contract = RemoteContract(graph_id, "comfy", "", inputs, outputs)

    async def check(self, client: EndpointClient, retry: Retry, *, strict_build: bool = False) -> RemoteContract:
        """The contract, if an endpoint can run the workflow as far as it says.

        Raises:
            InvalidConfig, UnknownBlockType, MissingFile, InvalidStructure, CheckpointMismatch: as `check_at`. EndpointUnreachable, AccessDenied, ProtocolMismatch; BuildMismatch
            if ``strict_build``
        """
        await check_build(client, retry, strict=strict_build)
        await check_at(self.prompt, client, retry)
        return self.contract
