"""Route that serves the open workflow on this server."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.errors import DuplicateName, InvalidArgument
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.service import Service

__all__ = ["ServeModel", "Serving"]


class ServeModel(BaseModel):
    """A workflow in ComfyUI's API format, and the name to serve it under. ``replace`` allows replacing another graph of that name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph_id: str = Field(min_length=1, max_length=200)
    prompt: dict[str, Any]
    replace: bool = False


class Serving:
    """The handler, over the service of this server."""

    def __init__(self, service: Service, guard: RouteGuard) -> None:
        self._service = service
        self._guard = guard

    async def serve(self, request: web.Request) -> web.Response:
        """Answer POST /serve: deploy the open workflow on this server."""
        body = await self._guard.body(request, ServeModel)
        config = {"kind": "comfy", "graph_id": body.graph_id, "prompt": body.prompt}
        await asyncio.to_thread(self._check_free, body, config)
        deployment, created = await self._service.deploy(body.graph_id, "comfy", config, None)
        ports = {side: [port["name"] for port in deployment.contract[side]] for side in ("inputs", "outputs")}
        return json_answer({**deployment.summary(), "created": created, "url": self._service.signer.peer_url, **ports})

    def _check_free(self, body: ServeModel, config: dict[str, Any]) -> None:
        """Raise an error unless the workflow has outputs, and its name is free or may be replaced."""
        from yggdrasill.remote.comfy_graph import ComfyGraph
        from yggdrasill.server_ext.deployment import deployment_hash

        graph = ComfyGraph.from_config(config)
        if not graph.outputs:
            raise InvalidArgument(
                "The workflow has no Graph Output node, so callers would receive nothing. Link one to each value that callers should receive."
            )
        served = {entry["graph_id"]: entry["hash"] for entry in self._service.deployments.summaries()}
        if body.graph_id in served and not body.replace and served[body.graph_id] != deployment_hash("comfy", config):
            raise DuplicateName(
                f"Another graph is already served as {body.graph_id!r}. Choose another name, or replace it.", graph_id=body.graph_id
            )
