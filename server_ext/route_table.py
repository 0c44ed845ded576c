"""The table of HTTP routes, and the OpenAPI document generated from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import yggdrasill
from yggdrasill.protocol import models
from yggdrasill.protocol.models import ErrorModel
from yggdrasill.protocol.states import STATES
from yggdrasill.protocol.version import BASE_PATH

__all__ = ["ROUTES", "Parameter", "Route", "openapi_document"]

_REFERENCES = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Parameter:
    """A parameter in the query or a header (``location``), with its JSON schema."""

    name: str
    schema: dict[str, Any]
    description: str
    location: Literal["query", "header"] = "query"
    required: bool = False


@dataclass(frozen=True)
class Route:
    """A route: method, path, handler (a method of `yggdrasill.server_ext.routes.Endpoint`), and the models of its bodies.

    ``signed`` routes accept a signed url in place of the token. ``parameters`` are those in the query and in headers. ``bytes_in`` and
    ``bytes_out`` are the media types of bodies that are not JSON.
    """

    method: str
    path: str
    handler: str
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    statuses: tuple[int, ...] = (200,)
    signed: bool = False
    parameters: tuple[Parameter, ...] = ()
    bytes_in: str | None = None
    bytes_out: str | None = None


_LAST_EVENT = Parameter(
    "Last-Event-ID",
    {"type": "integer", "minimum": 0},
    "The number of the last event that the caller has; the stream begins after it",
    "header",
)
_RANGE = Parameter("Range", {"type": "string", "examples": ["bytes=1048576-"]}, "The bytes to send", "header")
_CONTENT_RANGE = Parameter(
    "Content-Range",
    {"type": "string", "examples": ["bytes 0-1048575/7340032"]},
    "The bytes in the body, and the size of the artifact",
    "header",
    required=True,
)
_OCTETS = "application/octet-stream"
_EVENT_STREAM = "text/event-stream"

ROUTES = (
    Route("GET", "/health", "health", "Liveness and load", answer=models.HealthModel),
    Route("GET", "/capabilities", "capabilities", "Versions, torch build, devices, block types, limits", answer=models.Capabilities),
    Route(
        "GET",
        "/nodes",
        "nodes",
        "Definitions of ComfyUI node classes, ?classes=A,B",
        answer=models.NodeForms,
        parameters=(Parameter("classes", {"type": "string"}, "1 to 100 node classes, separated by commas", required=True),),
    ),
    Route(
        "POST",
        "/checkpoints/fingerprints",
        "fingerprints",
        "Fingerprints of ComfyUI model files",
        models.ModelFiles,
        models.Fingerprints,
    ),
    Route("GET", "/openapi.json", "openapi", "This document"),
    Route("GET", "/graphs", "graphs", "Deployments", answer=models.GraphList),
    Route(
        "PUT",
        "/graphs/{graph_id}",
        "deploy",
        "Start a job that deploys a config, or return the equal deployment that exists",
        models.GraphModel,
        models.Deploying,
        (200, 201, 202),
    ),
    Route("GET", "/graphs/{graph_id}", "graph", "The config of a deployment", answer=models.GraphSummary),
    Route("DELETE", "/graphs/{graph_id}", "remove", "Remove a deployment", statuses=(204,)),
    Route("GET", "/graphs/{graph_id}/contract", "contract", "Typed inputs and outputs", answer=models.Contract),
    Route(
        "POST",
        "/graphs/{graph_id}/jobs",
        "submit",
        "Start a job, or return the job with the same key",
        models.JobModel,
        models.JobStarted,
        (200, 202),
    ),
    Route(
        "POST",
        "/workflows",
        "submit_workflow",
        "Start a job that runs a ComfyUI API prompt with ports, or return the job with the same key",
        models.WorkflowModel,
        models.JobStarted,
        (200, 202),
    ),
    Route("POST", "/models", "fetch_model", "Download a model file from an allowed source", models.ModelFetchModel, models.JobRow, (202,)),
    Route(
        "GET",
        "/jobs",
        "jobs",
        "Jobs, newest first",
        answer=models.JobList,
        parameters=(
            Parameter("limit", {"type": "number", "minimum": 0, "default": 100}, "The number of jobs, 1 to 1000"),
            Parameter("status", {"type": "string", "enum": list(STATES)}, "Only jobs with this status"),
            Parameter("graph_id", {"type": "string"}, "Only jobs of this graph"),
        ),
    ),
    Route("GET", "/jobs/keys/{key}", "job_of_key", "The job with this key", answer=models.JobRow),
    Route("GET", "/jobs/{job_id}", "job", "The status of a job", answer=models.JobRow),
    Route(
        "GET",
        "/jobs/{job_id}/output",
        "output",
        "The result of a job; ?wait=SECONDS waits for it",
        answer=models.JobStarted,
        statuses=(200, 202),
        parameters=(Parameter("wait", {"type": "number", "minimum": 0, "default": 0}, "How many seconds to wait for the end, at most 60"),),
    ),
    Route(
        "POST",
        "/jobs/{job_id}/inputs",
        "check_inputs",
        "Look again for the inputs that a job waits for, after an upload",
        answer=models.JobRow,
    ),
    Route("POST", "/jobs/{job_id}/cancel", "cancel", "Stop a job at its next node", answer=models.JobRow),
    Route(
        "POST",
        "/jobs/keys/{key}/cancel",
        "cancel_key",
        "Stop the job with this key; a later call with an unused key is answered as cancelled and never runs",
        answer=models.JobRow,
    ),
    Route(
        "GET",
        "/jobs/{job_id}/events",
        "job_events",
        "Events of a job after Last-Event-ID, as a stream",
        parameters=(_LAST_EVENT,),
        bytes_out=_EVENT_STREAM,
    ),
    Route("GET", "/events", "events", "Events of all jobs, as a stream", parameters=(_LAST_EVENT,), bytes_out=_EVENT_STREAM),
    Route(
        "GET", "/artifacts/folder", "artifact_folder", "The artifact folder, for callers on the same machine", answer=models.ArtifactFolder
    ),
    Route("POST", "/artifacts/missing", "missing", "Which artifacts the endpoint lacks", models.ArtifactHashes, models.MissingArtifacts),
    Route("POST", "/artifacts/batch", "batch", "Store many small artifacts", answer=models.BatchStored, bytes_in=_OCTETS),
    Route("PUT", "/artifacts/{hash}", "put_artifact", "Store an artifact", statuses=(200, 201), bytes_in=_OCTETS),
    Route(
        "PUT",
        "/artifacts/{hash}/uploads/{upload_id}",
        "put_piece",
        "Store one piece of an artifact, of at most 64 MiB, in an upload session; upload_id is 32 hex digits that the caller chose",
        answer=models.PieceStored,
        statuses=(200, 201),
        parameters=(_CONTENT_RANGE,),
        bytes_in=_OCTETS,
    ),
    Route("GET", "/artifacts/{hash}/uploads/{upload_id}", "upload", "The byte to continue an upload at", answer=models.UploadState),
    Route("DELETE", "/artifacts/{hash}/uploads/{upload_id}", "drop_upload", "Drop an upload session and its bytes", statuses=(204,)),
    Route(
        "GET",
        "/artifacts/{hash}",
        "get_artifact",
        "The bytes of an artifact or of a range",
        statuses=(200, 206),
        signed=True,
        parameters=(_RANGE,),
        bytes_out=_OCTETS,
    ),
)


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of all routes under ``/yggdrasill/v1``."""
    used: dict[type[BaseModel], None] = dict.fromkeys(
        model for route in ROUTES for model in (route.body, route.answer) if model is not None
    )
    used[ErrorModel] = None
    _, schemas = models_json_schema([(model, "validation") for model in used], ref_template=_REFERENCES)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(BASE_PATH + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Yggdrasill endpoint", "version": yggdrasill.__version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.answer is not None:
        success["content"] = _json_content(route.answer)
    elif route.bytes_out is not None:
        success["content"] = {route.bytes_out: {}}
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", route.path)),
            *map(_parameter, route.parameters),
        ],
        "responses": {
            **{str(status): success for status in route.statuses},
            "default": {"description": "The error", "content": _json_content(ErrorModel)},
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json_content(route.body)}
    elif route.bytes_in is not None:
        operation["requestBody"] = {"required": True, "content": {route.bytes_in: {}}}
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.location,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _json_content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCES.format(model=model.__name__)}}}
