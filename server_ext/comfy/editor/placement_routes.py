"""Routes for the placements of workflows that users make in the editor. The workflow and endpoints.yaml are never changed."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.errors import AccessDenied
from yggdrasill.remote.partition.named_parts import PartItem
from yggdrasill.remote.partition.placement_keys import StoredPlacement
from yggdrasill.remote.placement import Placement
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.placement.workflow_placements import current_user

__all__ = ["CopyModel", "PartModel", "PlaceModel", "PlacementRoutes"]

_ID = Field(min_length=1, max_length=200)


class PartModel(BaseModel):
    """A subgraph node or a group: its id in ``graph``, which is a definition's id, or empty for the workflow itself; and its title."""

    model_config = ConfigDict(extra="forbid", strict=True)

    graph: str = Field(max_length=200)
    kind: Literal["subgraph", "group"]
    id: str = _ID
    title: str = Field(default="", max_length=300)


class PlaceModel(BaseModel):
    """The placement of parts of a workflow: as in endpoints.yaml, such as an endpoint's name or ``local``; None removes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workflow: str = _ID
    name: str = Field(default="", max_length=300)
    parts: list[PartModel] = Field(min_length=1, max_length=500)
    place: str | dict[str, Any] | None = Field()


class CopyModel(BaseModel):
    """A workflow that was saved or opened as a copy, with its own id and name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workflow: str = _ID
    copy_id: str = _ID
    name: str = Field(default="", max_length=300)


class PlacementRoutes:
    """The handlers. Where ComfyUI has several users, each has placements of their own."""

    def __init__(self, guard: RouteGuard) -> None:
        self._guard = guard

    async def placements(self, request: web.Request) -> web.Response:
        """Answer GET /placements?workflow=ID: ``{endpoints, graphs, default, stored}``.

        The first three are those of endpoints.yaml; ``stored`` says whether the workflow has placements.
        """
        registry = extension_context().registry
        document = registry.to_dict()
        stored = extension_context().workflow_placements.of_workflow(current_user.get(), request.query.get("workflow"))
        return json_answer(
            {
                "endpoints": sorted(registry.endpoints),
                "graphs": document["graphs"],
                "default": document["default"],
                "stored": bool(stored),
            }
        )

    async def place(self, request: web.Request) -> web.Response:
        """Answer POST /place: store or remove the placement of parts of one workflow; the answer is ``{"stored": bool}``."""
        body = await self._guard.body(request, PlaceModel)
        user = _user()
        placement = None
        if body.place is not None:
            placement = Placement.of(body.place, extension_context().registry.endpoints, "place").to_config()
        changes = {
            PartItem(part.graph, part.kind, part.id): None if placement is None else StoredPlacement(placement, part.title)
            for part in body.parts
        }
        stored = extension_context().workflow_placements
        await asyncio.to_thread(stored.place, user, body.workflow, body.name, changes)
        return json_answer({"stored": bool(stored.of_workflow(user, body.workflow))})

    async def copy(self, request: web.Request) -> web.Response:
        """Answer POST /copied: give a copy of a workflow the placements of the original; the answer is ``{"copied": bool}``."""
        body = await self._guard.body(request, CopyModel)
        stored = extension_context().workflow_placements
        return json_answer({"copied": await asyncio.to_thread(stored.copy, _user(), body.workflow, body.copy_id, body.name)})


def _user() -> str:
    user = current_user.get()
    if not user:
        raise AccessDenied("This ComfyUI does not know the user of this page. Choose a user in ComfyUI, then place the part again.")
    return user
