"""Routes for current and recent jobs: those that this server runs, and those at the endpoints in its registry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.errors import YggdrasillError, error_from_dict
from yggdrasill.protocol.states import COMPLETED, FINAL
from yggdrasill.remote.client import EndpointClient
from yggdrasill.server_ext.comfy.editor.endpoint_queries import query_endpoint
from yggdrasill.server_ext.comfy.editor.route_guard import RouteGuard, json_answer
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.url_redaction import public_message
from yggdrasill.server_ext.service import Service

__all__ = ["CancelModel", "Jobs", "job_summary"]

_TIMEOUT = 3.0
_MAX_ROWS = 50
_MAX_FINISHED = 3
_SUMMARY_FIELDS = ("job_id", "graph_id", "status", "created", "started", "finished", "progress")


class CancelModel(BaseModel):
    """A job. ``endpoint`` is None for a job on this server."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job_id: str = Field(min_length=1, max_length=100)
    endpoint: str | None = Field(default=None, max_length=100)


class Jobs:
    """The handlers, over the service of this server."""

    def __init__(self, service: Service, guard: RouteGuard) -> None:
        self._service, self._guard = service, guard

    async def jobs(self, request: web.Request) -> web.Response:
        """Answer GET /jobs: for this server (None) and each endpoint the unfinished and the last few finished jobs, or the error of the query.

        Endpoints that are known to be down are left out.
        """
        registry, monitor = extension_context().registry, extension_context().placement.monitor
        names = [name for name in sorted(registry.endpoints) if monitor.state(name).up is not False]
        places = await asyncio.gather(self._local_jobs(), *(_remote_jobs(registry.client(name)) for name in names))
        return json_answer({"places": places})

    async def job(self, request: web.Request) -> web.Response:
        """Answer GET /job?job_id=ID&endpoint=NAME: one job at an endpoint."""
        client = extension_context().registry.client(request.query.get("endpoint", ""))
        return json_answer(job_summary(await query_endpoint(client, client.job(request.query.get("job_id", "")))))

    async def cancel(self, request: web.Request) -> web.Response:
        """Answer POST /cancel: cancel a job."""
        body = await self._guard.body(request, CancelModel)
        if body.endpoint is None:
            return json_answer(job_summary((await self._service.cancel(body.job_id)).row()))
        client = extension_context().registry.client(body.endpoint)
        return json_answer(job_summary(await query_endpoint(client, client.cancel(body.job_id))))

    async def _local_jobs(self) -> dict[str, Any]:
        return {"endpoint": None, "jobs": _select(await self._service.jobs(limit=_MAX_ROWS)), "problem": None}


async def _remote_jobs(client: EndpointClient) -> dict[str, Any]:
    try:
        rows = await query_endpoint(client, client.jobs(limit=_MAX_ROWS), _TIMEOUT)
    except YggdrasillError as error:
        return {"endpoint": client.name, "jobs": [], "problem": error.message}
    return {"endpoint": client.name, "jobs": _select(rows), "problem": None}


def _select(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the jobs that the editor lists. Successful deployments are left out: the calls of their graphs are what a user started."""
    selected, finished = [], 0
    for row in rows:
        if row.get("kind") == "deploy" and row["status"] == COMPLETED:
            continue
        finished += row["status"] in FINAL
        if row["status"] not in FINAL or finished <= _MAX_FINISHED:
            selected.append(job_summary(row))
    return selected


def job_summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job that the editor shows."""
    error = row.get("error")
    return {**{name: row.get(name) for name in _SUMMARY_FIELDS}, "error": _error_text(error) if isinstance(error, Mapping) else None}


def _error_text(document: Mapping[str, Any]) -> str:
    error = error_from_dict(document)
    return public_message(error) if "endpoint" in error.details else error.message
