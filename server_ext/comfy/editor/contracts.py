"""Routes for contracts: those of the graphs that endpoints serve, and that of a graph composed on the canvas."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from yggdrasill.errors import EndpointUnreachable, InvalidArgument, format_options
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy.editor.endpoint_queries import query_endpoint, served_graphs
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.levels.composed_contract import ComposedGraphModel, composed_contract
from yggdrasill.server_ext.comfy.remote_call import AUTO

__all__ = ["ComposedPorts", "contract", "graphs"]


async def graphs(request: web.Request) -> web.Response:
    """Answer GET /graphs?endpoint=NAME: the graphs that a Remote Graph node can call at an endpoint, as ``{graph_id, kind}``."""
    registry, name = extension_context().registry, request.query.get("endpoint", AUTO)
    if name != AUTO:
        return json_answer({"graphs": await served_graphs(registry.client(name))})
    placed = [{"graph_id": key, "kind": None} for key, placement in sorted(registry.placements.items()) if not placement.is_local]
    if registry.default.is_local:
        return json_answer({"graphs": placed})
    served = await served_graphs(registry.client(registry.default.endpoints[0]))
    known = {entry["graph_id"] for entry in placed}
    return json_answer({"graphs": placed + [entry for entry in served if entry["graph_id"] not in known]})


async def contract(request: web.Request) -> web.Response:
    """Answer GET /contract?endpoint=NAME&graph=ID: the contract of a graph, from the first of its endpoints that answers."""
    registry, name, graph = extension_context().registry, request.query.get("endpoint", AUTO), request.query.get("graph", "")
    placement = _placement(registry, name, graph)
    for endpoint in placement.endpoints[:-1]:
        try:
            return json_answer(await _contract_at(registry.client(endpoint), graph))
        except EndpointUnreachable:
            continue
    return json_answer(await _contract_at(registry.client(placement.endpoints[-1]), graph))


async def _contract_at(client: EndpointClient, graph: str) -> dict[str, Any]:
    found = await query_endpoint(client, client.contract(graph))
    local_fallbacks = extension_context().local_fallbacks
    if local_fallbacks is not None:
        await asyncio.to_thread(local_fallbacks.record_hash, client.name, graph, str(found.get("hash")))
    return {"endpoint": client.name, "contract": found}


def _placement(registry: EndpointRegistry, endpoint: str, graph: str) -> Placement:
    if endpoint != AUTO:
        return Placement((registry.endpoint(endpoint).name,))
    placement = registry.placements.get(graph, registry.default)
    if placement.is_local:
        raise InvalidArgument(
            f"The registry does not place graph {graph!r}. Choose an endpoint. Available: {format_options(registry.endpoints)}."
        )
    return placement


class ComposedPorts:
    """Handler for the contract of a graph that nodes on the canvas compose."""

    def __init__(self, guard: RouteGuard) -> None:
        self._guard = guard

    async def ports(self, request: web.Request) -> web.Response:
        """Answer POST /ports: the contract, without running any node of the workflow."""
        body = await self._guard.body(request, ComposedGraphModel)
        return json_answer({"contract": await asyncio.to_thread(composed_contract, body)})
