"""The routes of the editor's own extension: what may be called from here, and serving the open workflow. For same-origin pages alone.

They ask for no token: whoever can open the editor may do what the editor does, and no other page may. Nothing here answers with a
credential; urls of endpoints are not told either, their names are enough.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.errors import AccessDenied, DuplicateName, EndpointUnreachable, InvalidArgument, YggdrasillError, choices
from yggdrasill.remote.bridge import bridge
from yggdrasill.remote.client import EndpointClient
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.auth import Guard
from yggdrasill.server_ext.bodies import read_model_body
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.current import around
from yggdrasill.server_ext.comfy.levels.composed import PortsModel, composed_contract
from yggdrasill.server_ext.comfy.remote_call import AUTO
from yggdrasill.server_ext.service import Service
from yggdrasill.server_ext.statuses import status_of
from yggdrasill.server_ext.tasks import error_dict

__all__ = ["UI_HEADER", "UI_PATH", "EditorRoutes", "EndpointModel", "ServeModel", "add_ui_routes"]

UI_PATH = "/yggdrasill/ui"
UI_HEADER = "X-Yggdrasill-Editor"
"""Every request of the editor has it: a page of another origin cannot send it without being asked first, and is then refused."""
_LOG = logging.getLogger("yggdrasill.comfy")
_PATIENCE = 10.0
_CALLABLE = ("graph", "pipeline", "comfy")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Answer = TypeVar("_Answer")


class ServeModel(BaseModel):
    """A workflow in ComfyUI's API format, to be served under a name; ``replace`` allows that another one had it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph_id: str = Field(min_length=1, max_length=200)
    prompt: dict[str, Any]
    replace: bool = False


class EndpointModel(BaseModel):
    """An endpoint to know from now on; its token goes into secrets.yaml and is never told again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100)
    url: str = Field(min_length=1, max_length=2000)
    token: str | None = Field(default=None, max_length=1000)


def add_ui_routes(router: web.UrlDispatcher, service: Service, guard: Guard) -> None:
    """Add the editor's routes to ComfyUI's router."""
    editor = EditorRoutes(service, guard)
    router.add_get(UI_PATH + "/endpoints", editor.guarded(editor.endpoints))
    router.add_post(UI_PATH + "/endpoints", editor.guarded(editor.add_endpoint))
    router.add_get(UI_PATH + "/graphs", editor.guarded(editor.graphs))
    router.add_get(UI_PATH + "/contract", editor.guarded(editor.contract))
    router.add_post(UI_PATH + "/serve", editor.guarded(editor.serve))
    router.add_post(UI_PATH + "/ports", editor.guarded(editor.ports))


class EditorRoutes:
    """The handlers. What they know of other endpoints is what Remote Graph nodes know."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard

    def guarded(self, handler: _Handler) -> _Handler:
        """``handler`` for pages of this server alone, its errors turned into answers."""

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                self._check(request)
                return await handler(request)
            except YggdrasillError as error:
                return self._failure(error, status_of(error))
            except (ConnectionError, asyncio.CancelledError, web.HTTPException):
                raise
            except Exception as error:  # noqa: BLE001 - an answer goes out, and the log says what broke
                _LOG.error("%s %s failed: %s: %s", request.method, request.path, type(error).__name__, error)
                return self._failure(error, 500)

        return answer

    def _check(self, request: web.Request) -> None:
        headers = request.headers
        self._guard.check_source(headers.get("Host"), headers.get("Origin"), headers.get("Sec-Fetch-Site"))
        if UI_HEADER not in headers:
            raise AccessDenied("this route is for the editor of this ComfyUI; programs use /yggdrasill/v1 with a token", reason="origin")

    def _failure(self, error: Exception, status: int) -> web.Response:
        return _json({"error": error_dict(error, self._service.redactor)}, status)

    # -- what can be called -------------------------------------------------------------------------------------

    async def endpoints(self, request: web.Request) -> web.Response:
        """GET /endpoints: their names, and the graphs that the registry places somewhere."""
        registry = around().registry
        return _json({"endpoints": sorted(registry.endpoints), "placed": _placed(registry)})

    async def add_endpoint(self, request: web.Request) -> web.Response:
        """POST /endpoints: write one into endpoints.yaml, once it has answered."""
        body = await read_model_body(request, EndpointModel, self._service.limits.max_body_bytes)
        file = Path(host_api.user_directory()) / "yggdrasill" / "endpoints.yaml"
        registry = await asyncio.to_thread(lambda: EndpointRegistry.from_yaml(file) if file.exists() else EndpointRegistry())
        registry.add(body.name, body.url, token=body.token or None)
        served = await _served_at(registry.client(body.name))
        await asyncio.to_thread(registry.to_yaml, file)
        return _json({"endpoints": sorted(registry.endpoints), "graphs": served}, 201)

    async def graphs(self, request: web.Request) -> web.Response:
        """GET /graphs?endpoint=NAME: the graphs that a Remote Graph node can call there, as ``{graph_id, kind}``."""
        registry, name = around().registry, request.query.get("endpoint", AUTO)
        if name != AUTO:
            return _json({"graphs": await _served_at(registry.client(name))})
        placed = [{"graph_id": key, "kind": None} for key in _placed(registry)]
        if registry.default.is_local:
            return _json({"graphs": placed})
        served = await _served_at(registry.client(registry.default.endpoints[0]))
        known = {entry["graph_id"] for entry in placed}
        return _json({"graphs": placed + [entry for entry in served if entry["graph_id"] not in known]})

    async def contract(self, request: web.Request) -> web.Response:
        """GET /contract?endpoint=NAME&graph=ID: what the graph takes and gives now, from the first of its endpoints that answers."""
        registry, name, graph = around().registry, request.query.get("endpoint", AUTO), request.query.get("graph", "")
        placement = _placement(registry, name, graph)
        for place in placement.endpoints[:-1]:
            try:
                return _json(await self._contract_at(registry.client(place), graph))
            except EndpointUnreachable:
                continue
        return _json(await self._contract_at(registry.client(placement.endpoints[-1]), graph))

    async def _contract_at(self, client: EndpointClient, graph: str) -> dict[str, Any]:
        contract = await _ask(client, client.contract(graph))
        stand_ins = around().stand_ins
        if stand_ins is not None:
            await asyncio.to_thread(stand_ins.saw, client.name, graph, str(contract.get("hash")))
        return {"endpoint": client.name, "contract": contract}

    async def ports(self, request: web.Request) -> web.Response:
        """POST /ports: what a graph put together on the canvas takes and gives."""
        body = await read_model_body(request, PortsModel, self._service.limits.max_body_bytes)
        return _json({"contract": await asyncio.to_thread(composed_contract, body)})

    # -- serving ------------------------------------------------------------------------------------------------

    async def serve(self, request: web.Request) -> web.Response:
        """POST /serve: deploy the open workflow on this server."""
        body = await read_model_body(request, ServeModel, self._service.limits.max_body_bytes)
        config = {"kind": "comfy", "graph_id": body.graph_id, "prompt": body.prompt}
        await asyncio.to_thread(self._check_free, body, config)
        deployment, created = await self._service.deploy(body.graph_id, "comfy", config, None)
        ports = {side: [port["name"] for port in deployment.contract[side]] for side in ("inputs", "outputs")}
        return _json({**deployment.summary(), "created": created, "url": self._service.signer.peer_url, **ports})

    def _check_free(self, body: ServeModel, config: dict[str, Any]) -> None:
        """Raise unless the workflow has outputs and its name is free, or is to be replaced."""
        from yggdrasill.remote.comfy_graph import ComfyGraph
        from yggdrasill.server_ext.deployments import deployment_hash

        graph = ComfyGraph.from_config(config)
        if not graph.outputs:
            raise InvalidArgument(
                "the workflow has no Graph Output node, so a caller would get nothing; link one to each value that callers are to get"
            )
        served = {entry["graph_id"]: entry["hash"] for entry in self._service.deployments.summaries()}
        if body.graph_id in served and not body.replace and served[body.graph_id] != deployment_hash("comfy", config):
            raise DuplicateName(
                f"another graph is served as {body.graph_id!r} already; choose another name, or replace it", graph_id=body.graph_id
            )


def _placed(registry: EndpointRegistry) -> list[str]:
    return sorted(key for key, placement in registry.placements.items() if not placement.is_local)


def _placement(registry: EndpointRegistry, endpoint: str, graph: str) -> Placement:
    if endpoint != AUTO:
        return Placement((registry.endpoint(endpoint).name,))
    placement = registry.placements.get(graph, registry.default)
    if placement.is_local:
        raise InvalidArgument(f"the registry places {graph!r} nowhere; choose an endpoint: there is {choices(registry.endpoints)}")
    return placement


async def _served_at(client: EndpointClient) -> list[dict[str, Any]]:
    served = await _ask(client, client.graphs())
    return [{"graph_id": entry["graph_id"], "kind": entry["kind"]} for entry in served if entry["kind"] in _CALLABLE]


async def _ask(client: EndpointClient, question: Coroutine[Any, Any, _Answer]) -> _Answer:
    """The answer of another endpoint, if it comes while a person may wait for it."""
    try:
        return await asyncio.wait_for(bridge().run_async(question), _PATIENCE)
    except asyncio.TimeoutError:
        raise EndpointUnreachable(f"endpoint {client.name!r} did not answer within {_PATIENCE:g} s", endpoint=client.name) from None


def _json(value: Any, status: int = 200) -> web.Response:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(body=text, status=status, content_type="application/json", headers={"Cache-Control": "no-store"})
