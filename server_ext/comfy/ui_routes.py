"""The routes of the editor, for pages of this server alone; the handlers are in ``editor/``.

No route returns the token of an endpoint. Of an endpoint's URL, host and port are returned, because users need to know which machine it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from yggdrasill.errors import UnsupportedVersion
from yggdrasill.server_ext.auth import Guard
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.editor import contracts, last_run
from yggdrasill.server_ext.comfy.editor.contracts import ComposedPorts
from yggdrasill.server_ext.comfy.editor.endpoints import Endpoints
from yggdrasill.server_ext.comfy.editor.fetching import Fetching
from yggdrasill.server_ext.comfy.editor.jobs import Jobs
from yggdrasill.server_ext.comfy.editor.option_lists import OptionLists
from yggdrasill.server_ext.comfy.editor.owner_settings import OwnerSettings
from yggdrasill.server_ext.comfy.editor.placement_routes import PlacementRoutes
from yggdrasill.server_ext.comfy.editor.preflight import Preflight
from yggdrasill.server_ext.comfy.editor.registry_edit import RegistryEdit
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard
from yggdrasill.server_ext.comfy.editor.serving import Serving
from yggdrasill.server_ext.comfy.editor.signs import Signs
from yggdrasill.server_ext.service import Service

__all__ = ["PREFIXES", "UI_PATH", "WEB_PATH", "add_ui_routes", "add_web_files"]

UI_PATH = "/yggdrasill/ui"
WEB_PATH = "/yggdrasill/web"
PREFIXES = ("", "/api")
"""The prefixes of each route, as ComfyUI has them: proxies and the server of its frontend's developers pass on ``/api`` only."""


def add_ui_routes(
    router: web.UrlDispatcher, service: Service, guard: Guard, token: Callable[[], str], own_url: str | None, off: str | None = None
) -> None:
    """Add the editor's routes to ComfyUI's router. ``token()`` and ``own_url`` appear in this server's pairing line.

    If ``off`` is a reason why the extension of the editor cannot work, each route responds with an error that has it.
    """
    route_guard = RouteGuard(service, guard)
    if off is not None:
        for prefix in PREFIXES:
            router.add_route("*", prefix + UI_PATH + "/{rest:.*}", route_guard.guarded(_refusing(off)))
        return
    folder = Path(compat.user_directory()) / "yggdrasill"
    edit = RegistryEdit(folder / "endpoints.yaml")
    endpoints = Endpoints(edit, route_guard, token, own_url)
    settings = OwnerSettings(folder / "settings.yaml", route_guard)
    placements, jobs, serving = PlacementRoutes(route_guard), Jobs(service, route_guard), Serving(service, route_guard)
    composed = ComposedPorts(route_guard)
    for path, handler in {
        "/endpoints": endpoints.names,
        "/status": endpoints.status,
        "/endpoint": endpoints.one,
        "/uses": endpoints.uses,
        "/graphs": contracts.graphs,
        "/contract": contracts.contract,
        "/placements": placements.placements,
        "/jobs": jobs.jobs,
        "/job": jobs.job,
        "/run": last_run.run,
        "/settings": settings.settings,
        "/timeline": last_run.timeline,
    }.items():
        for prefix in PREFIXES:
            router.add_get(prefix + UI_PATH + path, route_guard.guarded(handler))
    for path, handler in {
        "/endpoints": endpoints.add,
        "/pair": endpoints.pair,
        "/pairing": endpoints.pairing,
        "/remove": endpoints.remove,
        "/place": placements.place,
        "/copied": placements.copy,
        "/signs": Signs(route_guard).signs,
        "/cancel": jobs.cancel,
        "/settings": settings.change,
        "/fetch": Fetching(route_guard).fetch,
        "/lists": OptionLists(route_guard).lists,
        "/preflight": Preflight(route_guard).preflight,
        "/serve": serving.serve,
        "/ports": composed.ports,
    }.items():
        for prefix in PREFIXES:
            router.add_post(prefix + UI_PATH + path, route_guard.guarded(handler))


def _refusing(reason: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise UnsupportedVersion(f"The extension of the editor is off in this ComfyUI: {reason}")

    return refuse


def add_web_files(router: web.UrlDispatcher) -> None:
    """Serve the files of the folder ``web`` on ComfyUI's router.

    ComfyUI loads every script under its ``WEB_DIRECTORY`` with the page, so that folder holds only the start of the extension; the page
    requests the other modules from here when it first needs them. Every path ends with ``.js``, for which ComfyUI disables caching.
    """
    for prefix in PREFIXES:
        router.add_static(prefix + WEB_PATH, Path(__file__).parents[2] / "web")
