"""The table of HTTP routes. `yggdrasill.server_ext.openapi` describes it for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from yggdrasill.protocol import models
from yggdrasill.protocol.states import STATES
from yggdrasill.server_ext.principals import DEPLOY, READ, RUN

__all__ = ["COMMON_ERRORS", "ROUTES", "Parameter", "Route"]


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
    """A route: method, path, handler (a method of `yggdrasill.server_ext.routes.Endpoint`), the models of its bodies, and its statuses.

    ``statuses`` are those of success; ``errors`` those of failure, in addition to `COMMON_ERRORS`. ``role`` is the one that the caller needs.
    ``signed`` routes accept a signed url in place of the token. ``parameters`` are those in the query and in headers. ``bytes_in`` and
    ``bytes_out`` are the media types of bodies that are not JSON; ``events_out`` adds an event stream, which the caller may accept.
    """

    method: str
    path: str
    handler: str
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    statuses: tuple[int, ...] = (200,)
    role: str = READ
    errors: tuple[int, ...] = ()
    signed: bool = False
    parameters: tuple[Parameter, ...] = ()
    bytes_in: str | None = None
    bytes_out: str | None = None
    events_out: bool = False


COMMON_ERRORS = (400, 401, 403, 426, 429, 500)
"""An invalid header, parameter or body; the token; a role, Host or Origin; another protocol; too many wrong tokens; a fault."""
#: Building a graph fails: an unknown block, artifacts or a torch build, a part of it, another endpoint, a file.
_BUILD = (404, 409, 422, 502, 507)
_STORED = (404, 507)
_SIGNATURE = (
    Parameter("sig", {"type": "string"}, "The signature of a signed url, in place of the token"),
    Parameter("exp", {"type": "string"}, "When the signed url expires, in seconds since the epoch"),
)
_CONDITIONS = (
    Parameter("If-None-Match", {"type": "string"}, "Answer 304 if the artifact has this ETag", "header"),
    Parameter("If-Range", {"type": "string"}, "Send the whole artifact if it does not have this ETag", "header"),
)
_LAST_EVENT = Parameter(
    "Last-Event-ID",
    {"type": "integer", "minimum": 0},
    "The number of the last event that the caller has; the stream begins after it",
    "header",
)
_IF_MATCH = Parameter("If-Match", {"type": "string"}, "The hash that the graph must have, in quotes; otherwise the answer is 409", "header")
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
        errors=(413,),
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
        DEPLOY,
        (*_BUILD, 413, 503),
    ),
    Route("GET", "/graphs/{graph_id}", "graph", "The config of a deployment", answer=models.GraphDetails, errors=_BUILD),
    Route("DELETE", "/graphs/{graph_id}", "remove", "Remove a deployment", statuses=(204,), role=DEPLOY, errors=_STORED),
    Route("GET", "/graphs/{graph_id}/contract", "contract", "Typed inputs and outputs", answer=models.Contract, errors=_BUILD),
    Route(
        "POST",
        "/graphs/{graph_id}/jobs",
        "submit",
        "Start a job, or return the job with the same key",
        models.JobModel,
        models.JobStarted,
        (200, 202),
        RUN,
        (*_BUILD, 413, 503),
        parameters=(_IF_MATCH,),
        events_out=True,
    ),
    Route(
        "POST",
        "/workflows",
        "submit_workflow",
        "Start a job that runs a ComfyUI API prompt with ports, or return the job with the same key",
        models.WorkflowModel,
        models.JobStarted,
        (200, 202),
        DEPLOY,
        (*_BUILD, 413, 503),
        events_out=True,
    ),
    Route(
        "POST",
        "/models",
        "fetch_model",
        "Download a model file from an allowed source",
        models.ModelFetchModel,
        models.JobRow,
        (202,),
        DEPLOY,
        (*_BUILD, 413, 503),
    ),
    Route(
        "GET",
        "/jobs",
        "jobs",
        "Jobs, newest first",
        answer=models.JobList,
        errors=_STORED,
        parameters=(
            Parameter("limit", {"type": "number", "minimum": 0, "default": 100}, "The number of jobs, 1 to 1000"),
            Parameter("status", {"type": "string", "enum": list(STATES)}, "Only jobs with this status"),
            Parameter("graph_id", {"type": "string"}, "Only jobs of this graph"),
        ),
    ),
    Route("GET", "/jobs/keys/{key}", "job_of_key", "The job with this key", answer=models.JobRow, errors=_STORED),
    Route("GET", "/jobs/{job_id}", "job", "The status of a job", answer=models.JobRow, errors=_STORED),
    Route(
        "GET",
        "/jobs/{job_id}/output",
        "output",
        "The result of a job; ?wait=SECONDS waits for it",
        answer=models.JobStarted,
        statuses=(200, 202),
        errors=_STORED,
        parameters=(Parameter("wait", {"type": "number", "minimum": 0, "default": 0}, "How many seconds to wait for the end, at most 60"),),
    ),
    Route(
        "POST",
        "/jobs/{job_id}/inputs",
        "check_inputs",
        "Look again for the inputs that a job waits for, after an upload",
        answer=models.JobRow,
        role=RUN,
        errors=_STORED,
    ),
    Route("POST", "/jobs/{job_id}/cancel", "cancel", "Stop a job at its next node", answer=models.JobRow, role=RUN, errors=_STORED),
    Route(
        "POST",
        "/jobs/keys/{key}/cancel",
        "cancel_key",
        "Stop the job with this key; a later call with an unused key is answered as cancelled and never runs",
        answer=models.JobRow,
        role=RUN,
        errors=_STORED,
    ),
    Route(
        "GET",
        "/jobs/{job_id}/events",
        "job_events",
        "Events of a job after Last-Event-ID, as a stream",
        errors=_STORED,
        parameters=(_LAST_EVENT,),
        bytes_out=_EVENT_STREAM,
    ),
    Route("GET", "/events", "events", "Events of all jobs, as a stream", parameters=(_LAST_EVENT,), bytes_out=_EVENT_STREAM),
    Route(
        "GET", "/artifacts/folder", "artifact_folder", "The artifact folder, for callers on the same machine", answer=models.ArtifactFolder
    ),
    Route(
        "POST",
        "/artifacts/missing",
        "missing",
        "Which artifacts the endpoint lacks",
        models.ArtifactHashes,
        models.MissingArtifacts,
        role=RUN,
        errors=(413, 507),
    ),
    Route(
        "POST",
        "/artifacts/batch",
        "batch",
        "Store many small artifacts",
        answer=models.BatchStored,
        role=RUN,
        errors=(413, 507),
        bytes_in=_OCTETS,
    ),
    Route(
        "PUT",
        "/artifacts/{hash}",
        "put_artifact",
        "Store an artifact",
        statuses=(200, 201),
        role=RUN,
        errors=(413, 507),
        bytes_in=_OCTETS,
    ),
    Route(
        "PUT",
        "/artifacts/{hash}/uploads/{upload_id}",
        "put_piece",
        "Store one piece of an artifact, of at most 64 MiB, in an upload session; upload_id is 32 hex digits that the caller chose",
        answer=models.PieceStored,
        statuses=(200, 201),
        role=RUN,
        errors=(409, 413, 507),
        parameters=(_CONTENT_RANGE,),
        bytes_in=_OCTETS,
    ),
    Route(
        "GET",
        "/artifacts/{hash}/uploads/{upload_id}",
        "upload",
        "The byte to continue an upload at",
        answer=models.UploadState,
        role=RUN,
        errors=(507,),
    ),
    Route(
        "DELETE",
        "/artifacts/{hash}/uploads/{upload_id}",
        "drop_upload",
        "Drop an upload session and its bytes",
        statuses=(204,),
        role=RUN,
        errors=(507,),
    ),
    Route(
        "GET",
        "/artifacts/{hash}",
        "get_artifact",
        "The bytes of an artifact or of a range",
        statuses=(200, 206),
        errors=(404, 416, 507),
        signed=True,
        parameters=(_RANGE, *_CONDITIONS, *_SIGNATURE),
        bytes_out=_OCTETS,
    ),
)
