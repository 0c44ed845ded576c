"""Routes for placements in endpoints.yaml. The workflow itself is never changed."""

from __future__ import annotations

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.server_ext.comfy.editor.registry_edit import RegistryEdit
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context

__all__ = ["PlaceModel", "PlacementRoutes"]


class PlaceModel(BaseModel):
    """The placement of a part: the name of an endpoint or ``local``; None removes the entry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str = Field(min_length=1, max_length=300)
    place: str | None = Field(max_length=100)


class PlacementRoutes:
    """The handlers."""

    def __init__(self, edit: RegistryEdit, guard: RouteGuard) -> None:
        self._edit, self._guard = edit, guard

    async def placements(self, request: web.Request) -> web.Response:
        """Answer GET /placements: ``{endpoints, graphs, default}`` of the registry."""
        return json_answer(_placements(extension_context().registry))

    async def place(self, request: web.Request) -> web.Response:
        """Answer POST /place: change one entry of the section ``graphs``; the answer is that of GET /placements."""
        body = await self._guard.body(request, PlaceModel)

        def change(registry: EndpointRegistry) -> None:
            if body.place is None:
                registry.placements.pop(body.key, None)
            else:
                registry.place_key(body.key, body.place)

        return json_answer(_placements(await self._edit.apply(change)))


def _placements(registry: EndpointRegistry) -> dict[str, object]:
    document = registry.to_dict()
    return {"endpoints": sorted(registry.endpoints), "graphs": document["graphs"], "default": document["default"]}
