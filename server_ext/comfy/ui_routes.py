"""The table of the editor's own routes, for pages of this server alone. What each one does stands in ``editor/``.

Nothing here answers with an endpoint's token. Of its url host and port are told, for a person must know which machine it is.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from yggdrasill.server_ext.auth import Guard
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.editor import calling, runs
from yggdrasill.server_ext.comfy.editor.composing import Composing
from yggdrasill.server_ext.comfy.editor.endpoints import Endpoints
from yggdrasill.server_ext.comfy.editor.fetching import Fetching
from yggdrasill.server_ext.comfy.editor.jobs import Jobs
from yggdrasill.server_ext.comfy.editor.owner_settings import OwnerSettings
from yggdrasill.server_ext.comfy.editor.placement import Placing
from yggdrasill.server_ext.comfy.editor.preflight import Preflight
from yggdrasill.server_ext.comfy.editor.registry_edit import RegistryEdit
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard
from yggdrasill.server_ext.comfy.editor.serving import Serving
from yggdrasill.server_ext.service import Service

__all__ = ["UI_PATH", "add_ui_routes"]

UI_PATH = "/yggdrasill/ui"


def add_ui_routes(router: web.UrlDispatcher, service: Service, guard: Guard, token: str, own_url: str | None) -> None:
    """Add the editor's routes to ComfyUI's router; ``token`` and ``own_url`` are for this server's pairing line."""
    route_guard = RouteGuard(service, guard)
    folder = Path(host_api.user_directory()) / "yggdrasill"
    edit = RegistryEdit(folder / "endpoints.yaml")
    endpoints = Endpoints(edit, route_guard, token, own_url)
    settings = OwnerSettings(folder / "settings.yaml", route_guard)
    placing, jobs, serving = Placing(edit, route_guard), Jobs(service, route_guard), Serving(service, route_guard)
    composing = Composing(route_guard)
    for path, handler in {
        "/endpoints": endpoints.names,
        "/status": endpoints.status,
        "/endpoint": endpoints.one,
        "/graphs": calling.graphs,
        "/contract": calling.contract,
        "/placements": placing.placements,
        "/jobs": jobs.jobs,
        "/job": jobs.job,
        "/run": runs.run,
        "/settings": settings.settings,
        "/timeline": runs.timeline,
    }.items():
        router.add_get(UI_PATH + path, route_guard.guarded(handler))
    for path, handler in {
        "/endpoints": endpoints.add,
        "/pair": endpoints.pair,
        "/pairing": endpoints.pairing,
        "/remove": endpoints.remove,
        "/place": placing.place,
        "/cancel": jobs.cancel,
        "/settings": settings.change,
        "/fetch": Fetching(route_guard).fetch,
        "/preflight": Preflight(route_guard).preflight,
        "/serve": serving.serve,
        "/ports": composing.ports,
    }.items():
        router.add_post(UI_PATH + path, route_guard.guarded(handler))
