"""The endpoints this ComfyUI knows: looking at them, adding, pairing and removing one. Tokens go in and never come out."""

from __future__ import annotations

import time

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

import yggdrasill
from yggdrasill.errors import InvalidArgument
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.pairing import pairing_line, read_pairing
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.editor.endpoint_queries import served_graphs
from yggdrasill.server_ext.comfy.editor.endpoint_summary import endpoint_summary, host_of, models_of
from yggdrasill.server_ext.comfy.editor.registry_edit import RegistryEdit
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.inventory import memory

__all__ = ["EndpointModel", "Endpoints", "NameModel", "PairModel"]

_FRESH = 3.0
_TIMEOUT = 1.5
_LOOPBACK = ("127.", "localhost", "[::1]")


class EndpointModel(BaseModel):
    """An endpoint to know from now on; its token goes into secrets.yaml and is never told again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100)
    url: str = Field(min_length=1, max_length=2000)
    token: str | None = Field(default=None, max_length=1000)


class PairModel(BaseModel):
    """A pairing line that was pasted; ``name`` and ``token`` go before what it says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    line: str = Field(min_length=1, max_length=4000)
    name: str | None = Field(default=None, max_length=100)
    token: str | None = Field(default=None, max_length=1000)


class NameModel(BaseModel):
    """One of the endpoints."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100)


class Endpoints:
    """The handlers. ``token`` is this server's own; ``own_url`` is how others reach it, if its owner said so."""

    def __init__(self, edit: RegistryEdit, guard: RouteGuard, token: str, own_url: str | None) -> None:
        self._edit, self._guard = edit, guard
        self._token, self._own_url = token, own_url

    async def names(self, request: web.Request) -> web.Response:
        """GET /endpoints: their names, and the graphs that the registry places somewhere."""
        registry = extension_context().registry
        placed = sorted(key for key, placement in registry.placements.items() if not placement.is_local)
        return json_answer({"endpoints": sorted(registry.endpoints), "placed": placed})

    async def status(self, request: web.Request) -> web.Response:
        """GET /status: this server and every endpoint, as `shown` tells it."""
        registry = extension_context().registry
        names = sorted(registry.endpoints)
        states = await extension_context().placement.monitor.refresh(
            names, max_age=0.0 if "fresh" in request.query else _FRESH, timeout=_TIMEOUT
        )
        found = [endpoint_summary(states[name], registry.endpoints[name].url) for name in names]
        waiting, running = host_api.queue_depth()
        here = {
            "version": yggdrasill.__version__,
            "comfy": host_api.comfy_version(),
            "problem": extension_context().problem,
            "queue": {"queued": waiting, "running": running, "slots": 1},
            "memory": memory(),
        }
        return json_answer({"here": here, "endpoints": found})

    async def one(self, request: web.Request) -> web.Response:
        """GET /endpoint?name=NAME: one endpoint asked anew, and the names of its model files."""
        endpoint = extension_context().registry.endpoint(request.query.get("name", ""))
        started = time.perf_counter()
        state = await extension_context().placement.monitor.requery(endpoint.name)
        ms = round(1000 * (time.perf_counter() - started), 1)
        return json_answer({**endpoint_summary(state, endpoint.url), "ms": ms, "files": models_of(state.facts) if state.up else {}})

    async def add(self, request: web.Request) -> web.Response:
        """POST /endpoints: write one into endpoints.yaml, once it has answered."""
        body = await self._guard.body(request, EndpointModel)
        return await self._add(body.name, body.url, body.token)

    async def pair(self, request: web.Request) -> web.Response:
        """POST /pair: the endpoint of a pairing line, once it has answered."""
        body = await self._guard.body(request, PairModel)
        told = read_pairing(body.line)
        name = (body.name or told.name or _name_for(told.url, extension_context().registry)).strip()
        return await self._add(name, told.url, body.token or told.token)

    async def _add(self, name: str, url: str, token: str | None) -> web.Response:
        served = []

        async def answers(registry: EndpointRegistry) -> None:
            served.extend(await served_graphs(registry.client(name)))

        registry = await self._edit.apply(lambda registry: registry.add(name, url, token=token or None), answers)
        return json_answer({"name": name, "endpoints": sorted(registry.endpoints), "graphs": served}, 201)

    async def remove(self, request: web.Request) -> web.Response:
        """POST /remove: take one out of endpoints.yaml, and its token out of secrets.yaml."""
        body = await self._guard.body(request, NameModel)
        registry = await self._edit.apply(lambda registry: registry.remove(body.name))
        return json_answer({"endpoints": sorted(registry.endpoints)})

    async def pairing(self, request: web.Request) -> web.Response:
        """POST /pairing: this server's own pairing line, for the person who asked for it; it holds this server's token."""
        if extension_context().problem is not None:
            raise InvalidArgument(f"this ComfyUI is no endpoint: {extension_context().problem}")
        asked = f"{request.scheme}://{request.host}"
        url = self._own_url or asked
        return json_answer({"line": pairing_line(url, self._token), "near": host_of(url).startswith(_LOOPBACK)})


def _name_for(url: str, registry: EndpointRegistry) -> str:
    """A name that is free: the host's, with a number behind it if need be."""
    base = host_of(url).rsplit(":", 1)[0].strip("[]")
    names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(name for name in names if name not in registry.endpoints)
