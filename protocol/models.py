"""The JSON bodies of requests and responses as pydantic models, used for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from yggdrasill.foundation.kinds import kinds

__all__ = [
    "ArtifactFolder",
    "ArtifactHashes",
    "BatchStored",
    "Capabilities",
    "Contract",
    "DeployedModel",
    "Deploying",
    "ErrorBody",
    "ErrorModel",
    "Fingerprints",
    "GraphDetails",
    "GraphList",
    "GraphModel",
    "GraphSummary",
    "HealthModel",
    "JobList",
    "JobModel",
    "JobRow",
    "JobStarted",
    "MemoryModel",
    "MissingArtifacts",
    "ModelFetchModel",
    "ModelFiles",
    "NodeForms",
    "PieceStored",
    "QueueModel",
    "RunModel",
    "UploadState",
    "WireModel",
    "WorkflowModel",
]

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Status = Literal["WAITING_INPUTS", "STAGING", "IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]


class _Body(BaseModel):
    """A request body. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class _Answer(BaseModel):
    """A response body, for the OpenAPI document."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class WireModel(_Body):
    """A value in wire form: its skeleton, and its payloads inline or as references to artifacts."""

    skeleton: Any
    payloads: list[dict[str, Any]]


def _served_kinds(schema: dict[str, Any]) -> None:
    """Name in the document the kinds that `Deployments.put` accepts."""
    schema["enum"] = [kind.name for kind in kinds() if kind.servable]


class GraphModel(_Body):
    """A config to deploy, with the state of blocks that have no checkpoint. Removed after ``idle_after`` seconds without a call.

    It becomes a job, with ``key`` if one is given. ``wait`` is how many seconds the response may take.
    """

    kind: str = Field(min_length=1, max_length=100, json_schema_extra=_served_kinds)
    config: dict[str, Any]
    state: WireModel | None = None
    idle_after: float | None = Field(default=None, gt=0, le=366 * 86400, allow_inf_nan=False)
    key: str | None = Field(default=None, min_length=1, max_length=200)
    wait: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class RunModel(_Body):
    """The caller's run context, which determines random numbers: seed, node path and pass."""

    seed: int | None = None
    path: list[Annotated[str, Field(max_length=500)]] = Field(default_factory=list, max_length=64)
    pass_index: int = Field(default=0, ge=0)


class JobModel(_Body):
    """A call of a deployment. A repeated ``key`` returns the same job. ``wait`` is how many seconds the response may take.

    Jobs with a higher ``priority`` start first. ``deadline`` is how many seconds from now the job must have finished.
    """

    key: str = Field(min_length=1, max_length=200)
    inputs: WireModel
    options: dict[str, Any] = Field(default_factory=dict)
    run: RunModel = Field(default_factory=RunModel)
    detached: bool = False
    orphan_after: float = Field(default=30.0, gt=0, le=86400, allow_inf_nan=False)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    priority: int = Field(default=0, ge=-1000, le=1000)
    deadline: float | None = Field(default=None, gt=0, le=366 * 86400, allow_inf_nan=False)
    wait: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class WorkflowModel(JobModel):
    """A call of a ComfyUI API prompt whose ports are Graph Input and Graph Output nodes. ``graph_id`` is its name in messages."""

    prompt: dict[str, Any]
    graph_id: str = Field(default="workflow", min_length=1, max_length=200)


class ModelFetchModel(_Body):
    """A model file to download to the endpoint. A repeated ``key`` returns the same job."""

    key: str = Field(min_length=1, max_length=200)
    url: str = Field(min_length=1, max_length=2000)
    folder: str = Field(min_length=1, max_length=100)
    name: str = Field(min_length=1, max_length=250)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None


class ArtifactHashes(_Body):
    """Hashes of artifacts."""

    hashes: list[Hash] = Field(max_length=100_000)


class ModelFiles(_Body):
    """Names of model files, as in prompts."""

    files: list[Annotated[str, Field(max_length=1000)]] = Field(max_length=256)


class ErrorBody(_Answer):
    """An error: its class, a message, and details for programs."""

    type: str
    message: str
    details: dict[str, Any]


class ErrorModel(_Answer):
    """The body of every unsuccessful response."""

    error: ErrorBody


class QueueModel(_Answer):
    """The load of the endpoint."""

    queued: int
    running: int
    slots: int


class MemoryModel(_Answer):
    """Memory of a device that the endpoint computes on, in bytes."""

    device: str
    free: int
    total: int


class HealthModel(_Answer):
    """The health of the endpoint."""

    status: Literal["ok"]
    protocol: int
    version: str
    queue: QueueModel
    memory: list[MemoryModel]


class Capabilities(_Answer):
    """The capabilities of the endpoint."""

    protocol: int
    oldest_protocol: int
    version: str
    host: str
    python: str
    platform: str
    torch: dict[str, Any] | None
    devices: list[dict[str, Any]]
    block_types: list[str]
    limits: dict[str, int]
    store_id: str
    peer_url: str | None
    graphs: int
    model_sources: list[str]
    comfy: dict[str, Any] | None = None


class NodeForms(_Answer):
    """Node classes of a ComfyUI: their /object_info entries, those that may change for equal inputs, and those it lacks."""

    nodes: dict[str, dict[str, Any]]
    asks_again: list[str]
    unknown: list[str]


class Fingerprints(_Answer):
    """Fingerprints of model files by file and model folder. Missing files are omitted."""

    fingerprints: dict[str, dict[str, str]]


class GraphSummary(_Answer):
    """A deployment."""

    graph_id: str
    kind: str
    hash: str


class GraphDetails(GraphSummary):
    """A deployment with its config."""

    config: dict[str, Any]
    idle_after: float | None


class GraphList(_Answer):
    """All deployments."""

    graphs: list[GraphSummary]


class DeployedModel(GraphSummary):
    """A deployment that exists, or the output of a job that deploys a config."""

    created: bool


class Contract(GraphSummary):
    """The contract of a deployment. ``conditional``: a call may name its hash with If-Match."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    deterministic: bool
    stateful: bool
    reusable: bool
    stage: dict[str, Any] | None
    world: dict[str, Any] | None
    conditional: bool


class JobRow(_Answer):
    """A job without its output.

    ``principal`` is the name of its caller. ``missing`` are artifacts that the caller must upload; ``deadline`` is in seconds since the epoch.
    """

    job_id: str
    key: str
    graph_id: str
    kind: Literal["call", "workflow", "deploy", "model"]
    status: Status
    missing: list[Hash]
    created: float
    started: float | None
    finished: float | None
    attempts: int
    priority: int
    deadline: float | None
    principal: str
    timing: dict[str, float]
    error: ErrorBody | None
    detached: bool
    progress: dict[str, Any] | None


class JobStarted(JobRow):
    """A job, with its output when it has finished."""

    output: WireModel | DeployedModel | None = None


class Deploying(RootModel[DeployedModel | JobStarted]):
    """The deployment that exists already, or the job that deploys a config."""


class JobList(_Answer):
    """Jobs, newest first."""

    jobs: list[JobRow]


class MissingArtifacts(_Answer):
    """Hashes of the artifacts that the endpoint lacks."""

    missing: list[Hash]


class ArtifactFolder(_Answer):
    """The artifact folder and its quota in bytes. The folder is None for callers on other machines."""

    folder: str | None
    store_id: str
    quota_bytes: int | None


class PieceStored(_Answer):
    """The byte at which an upload continues, and whether the artifact is stored."""

    offset: int
    stored: bool


class UploadState(PieceStored):
    """The state of an upload session, with its size; ``nbytes`` is None for an unknown session."""

    nbytes: int | None


class BatchStored(_Answer):
    """The number of artifacts stored from a batch."""

    stored: int
