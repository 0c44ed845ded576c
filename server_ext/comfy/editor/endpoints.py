"""Routes for the endpoints in the registry: state, adding, pairing and removing. Tokens are accepted and never returned."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

import yggdrasill
from yggdrasill.errors import DuplicateName, InvalidArgument, YggdrasillError, format_options
from yggdrasill.remote.endpoint import Pairing, pairing_line, read_pairing
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.server_ext.auth import EVERY_ADDRESS, url_for_others
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.editor.endpoint_queries import served_graphs
from yggdrasill.server_ext.comfy.editor.endpoint_summary import LOOPBACK, endpoint_summary, host_of, models_of
from yggdrasill.server_ext.comfy.editor.reachability import explain_failure
from yggdrasill.server_ext.comfy.editor.registry_edit import RegistryEdit
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.inventory import memory
from yggdrasill.server_ext.comfy.placement.workflow_placements import EndpointUse, current_user

__all__ = ["EndpointModel", "Endpoints", "PairModel", "RemoveModel"]

_FRESH = 3.0
_TIMEOUT = 1.5
_MOST_NAMED = 10


class EndpointModel(BaseModel):
    """An endpoint to add. Its token is stored in secrets.yaml and never returned."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100)
    url: str = Field(min_length=1, max_length=2000)
    token: str | None = Field(default=None, max_length=1000)
    ca: str | None = Field(default=None, max_length=1000)
    replace: bool = False


class PairModel(BaseModel):
    """A pairing line or an address; ``name`` and ``token`` override those in the line.

    ``ca`` is the file of a certificate authority on this machine. ``replace`` allows replacing the address and token of an endpoint.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    line: str = Field(min_length=1, max_length=4000)
    name: str | None = Field(default=None, max_length=100)
    token: str | None = Field(default=None, max_length=1000)
    ca: str | None = Field(default=None, max_length=1000)
    replace: bool = False


class RemoveModel(BaseModel):
    """The name of an endpoint; ``drop`` also removes the placements of workflows on it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100)
    drop: bool = False


class Endpoints:
    """The handlers. ``token()`` is this server's token; ``own_url`` is the URL at which others reach it, if its owner has set one."""

    def __init__(self, edit: RegistryEdit, guard: RouteGuard, token: Callable[[], str], own_url: str | None) -> None:
        self._edit, self._guard = edit, guard
        self._token, self._own_url = token, own_url

    async def names(self, request: web.Request) -> web.Response:
        """Answer GET /endpoints: the names of the endpoints, and the graphs that the registry places on one."""
        registry = extension_context().registry
        placed = sorted(key for key, placement in registry.placements.items() if not placement.is_local)
        return json_answer({"endpoints": sorted(registry.endpoints), "placed": placed})

    async def status(self, request: web.Request) -> web.Response:
        """Answer GET /status: this server, and the `endpoint_summary` of every endpoint."""
        registry = extension_context().registry
        names = sorted(registry.endpoints)
        states = await extension_context().placement.monitor.refresh(
            names, max_age=0.0 if "fresh" in request.query else _FRESH, timeout=_TIMEOUT
        )
        found = [endpoint_summary(states[name], registry.endpoints[name].url) for name in names]
        waiting = running = 0
        with compat.shielded("the queue could not be read"):
            waiting, running = compat.queue_depth()
        this_server = {
            "version": yggdrasill.__version__,
            "comfy": compat.comfy_version(),
            "problem": extension_context().problem,
            "off": dict(extension_context().off),
            "queue": {"queued": waiting, "running": running, "slots": 1},
            "memory": memory(),
        }
        return json_answer({"here": this_server, "endpoints": found})

    async def one(self, request: web.Request) -> web.Response:
        """Answer GET /endpoint?name=NAME: one endpoint, queried again, with the names of its model files."""
        endpoint = extension_context().registry.endpoint(request.query.get("name", ""))
        started = time.perf_counter()
        state = await extension_context().placement.monitor.requery(endpoint.name)
        ms = round(1000 * (time.perf_counter() - started), 1)
        return json_answer({**endpoint_summary(state, endpoint.url), "ms": ms, "files": models_of(state.facts) if state.up else {}})

    async def add(self, request: web.Request) -> web.Response:
        """Answer POST /endpoints: add an endpoint to endpoints.yaml after it has answered."""
        body = await self._guard.body(request, EndpointModel)
        pairing = read_pairing(body.url)
        return await self._add(body.name, pairing, body)

    async def pair(self, request: web.Request) -> web.Response:
        """Answer POST /pair: add the endpoint of a pairing line after it has answered."""
        body = await self._guard.body(request, PairModel)
        pairing = read_pairing(body.line)
        name = (body.name or pairing.name or _free_name(pairing.url, extension_context().registry)).strip()
        return await self._add(name, pairing, body)

    async def _add(self, name: str, pairing: Pairing, body: EndpointModel | PairModel) -> web.Response:
        served = []
        url, token = pairing.url, body.token or pairing.token or None

        def add(registry: EndpointRegistry) -> None:
            if name in registry.endpoints and body.replace:
                registry.replace(name, url, token=token, ca=body.ca)
                return
            if name in registry.endpoints:
                raise DuplicateName(
                    f"There is already an endpoint {name!r}, at {host_of(registry.endpoints[name].url)}. Choose another name, or replace it.",
                    name=name,
                )
            registry.add(name, url, token=token, ca=body.ca)

        async def check_answers(registry: EndpointRegistry) -> None:
            try:
                served.extend(await served_graphs(registry.client(name)))
            except YggdrasillError as error:
                raise await explain_failure(error, url.rstrip("/"), has_token=token is not None) from error

        registry = await self._edit.apply(add, check_answers)
        return json_answer({"name": name, "endpoints": sorted(registry.endpoints), "graphs": served}, 201)

    async def remove(self, request: web.Request) -> web.Response:
        """Answer POST /remove: remove an endpoint from endpoints.yaml, and its token from secrets.yaml.

        Raises:
            InvalidArgument: workflows place parts on it, and the request does not drop these placements; or endpoints.yaml does.
        """
        body = await self._guard.body(request, RemoveModel)
        stored = extension_context().workflow_placements

        async def check_unused(registry: EndpointRegistry) -> None:
            uses = await asyncio.to_thread(stored.uses, body.name)
            if uses and not body.drop:
                raise InvalidArgument(f"endpoint {body.name!r} still runs {_described(uses)}; place those on other endpoints first")

        registry = await self._edit.apply(lambda registry: registry.remove(body.name), check_unused)
        await asyncio.to_thread(stored.drop, body.name)
        return json_answer({"endpoints": sorted(registry.endpoints)})

    async def uses(self, request: web.Request) -> web.Response:
        """Answer GET /uses?name=NAME: ``{"workflows": [{name, parts}], "others": count}``, the workflows with parts on an endpoint.

        ``others`` counts those of other users.
        """
        found = await asyncio.to_thread(extension_context().workflow_placements.uses, request.query.get("name", ""))
        user = current_user.get()
        mine = [{"name": use.name, "parts": list(use.parts)} for use in found if use.user == user]
        return json_answer({"workflows": mine, "others": len(found) - len(mine)})

    async def pairing(self, request: web.Request) -> web.Response:
        """Answer POST /pairing: this server's pairing line, which contains its token."""
        if extension_context().problem is not None:
            raise InvalidArgument(f"This ComfyUI is not an endpoint: {extension_context().problem}")
        url = self._own_url
        if url is None:
            url = await asyncio.to_thread(_url_for_others, request.scheme, request.host)
        return json_answer({"line": pairing_line(url, self._token()), "near": host_of(url).startswith(LOOPBACK)})


def _url_for_others(scheme: str, host: str) -> str:
    """Return the URL at which other machines reach this server, whose page was loaded from ``host``; a local one if it accepts no others."""
    if not host.startswith(LOOPBACK):
        return f"{scheme}://{host}"
    addresses, port, _ = compat.own_addresses()
    for address in addresses:
        if address in EVERY_ADDRESS:
            return url_for_others(f"{scheme}://{host}", address)
        shown = f"[{address}]" if ":" in address else address
        if not shown.startswith(LOOPBACK):
            return f"{scheme}://{shown}:{port}"
    return f"{scheme}://{host}"


def _described(uses: list[EndpointUse]) -> str:
    """Return the parts of the user's workflows by name, and the number of workflows of other users."""
    mine = [use for use in uses if use.user == current_user.get()]
    found = [f"{format_options(use.parts, limit=5)} of workflow {use.name!r}" for use in mine[:_MOST_NAMED]]
    rest = len(uses) - len(found)
    return "; ".join([*found, f"parts of {rest} other workflow{'' if rest == 1 else 's'}"] if rest else found)


def _free_name(url: str, registry: EndpointRegistry) -> str:
    """Return an unused name for an endpoint: its host, with a number if necessary."""
    base = host_of(url).rsplit(":", 1)[0].strip("[]")
    names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(name for name in names if name not in registry.endpoints)
