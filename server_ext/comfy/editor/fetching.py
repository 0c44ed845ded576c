"""Route that makes an endpoint fetch a missing model file from a source that its owner allows."""

from __future__ import annotations

import uuid

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.server_ext.comfy.editor.endpoint_queries import query_endpoint
from yggdrasill.server_ext.comfy.editor.jobs import job_summary
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context

__all__ = ["FetchModel", "Fetching"]


class FetchModel(BaseModel):
    """A model file, and the endpoint that fetches it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    endpoint: str = Field(min_length=1, max_length=100)
    url: str = Field(min_length=1, max_length=2000)
    folder: str = Field(min_length=1, max_length=100)
    name: str = Field(min_length=1, max_length=250)
    sha256: str | None = Field(default=None, max_length=64)


class Fetching:
    """The handler."""

    def __init__(self, guard: RouteGuard) -> None:
        self._guard = guard

    async def fetch(self, request: web.Request) -> web.Response:
        """Answer POST /fetch: start the fetch, and return the endpoint's job."""
        body = await self._guard.body(request, FetchModel)
        client = extension_context().registry.client(body.endpoint)
        file = {"key": uuid.uuid4().hex, **body.model_dump(exclude={"endpoint"})}
        return json_answer(job_summary(await query_endpoint(client, client.fetch_model(file))), 202)
