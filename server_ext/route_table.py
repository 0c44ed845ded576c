"""The table of the HTTP routes: what is asked how, who answers, and what goes in and out. The OpenAPI document is made from it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from yggdrasill.remote.client import BASE_PATH
from yggdrasill.server_ext import models

__all__ = ["BASE_PATH", "ROUTES", "Route"]


@dataclass(frozen=True)
class Route:
    """One line of the table: what is asked how, which method of `yggdrasill.server_ext.routes.Endpoint` answers, and what goes in and out."""

    method: str
    path: str
    handler: str
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    statuses: tuple[int, ...] = (200,)
    signed: bool = False
    query: tuple[str, ...] = ()


ROUTES = (
    Route("GET", "/health", "health", "Alive, and how busy", answer=models.HealthModel),
    Route("GET", "/capabilities", "capabilities", "Versions, torch build, devices, block types, limits", answer=models.Capabilities),
    Route("GET", "/nodes", "nodes", "Forms of a ComfyUI's node classes, ?classes=A,B", answer=models.NodeForms, query=("classes",)),
    Route(
        "POST",
        "/checkpoints/fingerprints",
        "fingerprints",
        "What tells the content of a ComfyUI's model files",
        models.ModelFiles,
        models.Fingerprints,
    ),
    Route("GET", "/openapi.json", "openapi", "This document"),
    Route("GET", "/graphs", "graphs", "What is served", answer=models.GraphList),
    Route("PUT", "/graphs/{graph_id}", "deploy", "Serve a config", models.GraphModel, models.DeployedModel, (200, 201)),
    Route("GET", "/graphs/{graph_id}", "graph", "A served config", answer=models.GraphSummary),
    Route("DELETE", "/graphs/{graph_id}", "remove", "Serve it no longer", statuses=(204,)),
    Route("GET", "/graphs/{graph_id}/contract", "contract", "Typed inputs and outputs", answer=models.Contract),
    Route(
        "POST",
        "/graphs/{graph_id}/jobs",
        "submit",
        "Start a job, or find the one of the same key",
        models.JobModel,
        models.JobStarted,
        (200, 202),
    ),
    Route(
        "POST",
        "/workflows",
        "submit_workflow",
        "Start a job of a ComfyUI API prompt with ports, or find the one of the same key",
        models.WorkflowModel,
        models.JobStarted,
        (200, 202),
    ),
    Route(
        "POST", "/models", "fetch_model", "Bring a model file here from an allowed source", models.ModelFetchModel, models.JobRow, (202,)
    ),
    Route("GET", "/jobs", "jobs", "Jobs, newest first", answer=models.JobList),
    Route("GET", "/jobs/{job_id}", "job", "A job's state", answer=models.JobRow),
    Route(
        "GET",
        "/jobs/{job_id}/output",
        "output",
        "A job's result, waiting for it if asked to",
        answer=models.JobStarted,
        statuses=(200, 202),
    ),
    Route("POST", "/jobs/{job_id}/cancel", "cancel", "Stop a job at its next node", answer=models.JobRow),
    Route("GET", "/jobs/{job_id}/events", "job_events", "A job's events as they happen, from after Last-Event-ID"),
    Route("GET", "/events", "events", "All events as they happen"),
    Route("GET", "/artifacts/folder", "artifact_folder", "Where artifacts lie, for a caller on this machine", answer=models.ArtifactFolder),
    Route("POST", "/artifacts/missing", "missing", "Which artifacts the endpoint lacks", models.ArtifactHashes, models.MissingArtifacts),
    Route("POST", "/artifacts/batch", "batch", "Store many small artifacts", answer=models.BatchStored),
    Route("PUT", "/artifacts/{hash}", "put_artifact", "Store an artifact", statuses=(200, 201)),
    Route("GET", "/artifacts/{hash}", "get_artifact", "An artifact's bytes, or a range of them", signed=True),
)
