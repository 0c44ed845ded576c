"""The typed requests of a worker: one pydantic model per type, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yggdrasill.errors import InvalidArgument, format_options, unknown_message

__all__ = [
    "REQUESTS",
    "BulkDownload",
    "Cancel",
    "Delivery",
    "Download",
    "DownloadFile",
    "EndpointRequest",
    "Generate",
    "Health",
    "ImageInput",
    "ListFiles",
    "ListModels",
    "Lora",
    "ProcessStatus",
    "Processes",
    "Train",
    "TrainWithYaml",
    "UploadTrainingData",
    "parse_request",
]

OutputMode = Literal["gcs", "s3", "base64"]
ProcessState = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str | None = None
    refresh_worker: bool = False


class ImageInput(BaseModel):
    """A file that a workflow loads by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    image: str = Field(description="base64, or a data URI with base64")


class Delivery(_Request):
    """How files of a result are returned; the settings of the worker are the defaults."""

    output_mode: OutputMode | None = None
    gcs_bucket: str | None = None
    gcs_prefix: str | None = None
    s3_bucket: str | None = None
    s3_prefix: str | None = None


class Generate(Delivery):
    """Run a workflow, the workflow of the version with ``inputs`` (or fields such as ``prompt``), or the deployed graph ``graph_id``.

    Further fields are inputs of the version's workflow.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    version_id: str | None = None
    workflow: Any = None
    workflow_url: str | None = None
    graph_id: str | None = None
    prompt: Any = None
    inputs: dict[str, Any] | None = None
    images: list[ImageInput] = Field(default_factory=list, max_length=256)
    models_dir: str | None = None
    verbose: bool | None = None
    previews: bool | None = None
    comfy_org_api_key: str | None = None

    @property
    def is_worker_comfyui(self) -> bool:
        """Return whether the request has only fields of worker-comfyui, whose form the result then has."""
        given = self.model_fields_set | set(self.model_extra or ())
        return "workflow" in given and given <= {"workflow", "images", "comfy_org_api_key"}


class Train(_Request):
    """Train a LoRA of ``model`` on the data set ``dataset``; the other fields are those of ai-toolkit's configuration."""

    name: str
    dataset: str
    model: str
    arch: str | None = None
    steps: int = Field(default=2000, ge=1)
    lr: float | str = 1e-4
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: int | None = Field(default=None, ge=1, le=1024)
    batch_size: int = Field(default=1, ge=1, le=256)
    resolution: list[int] = Field(default_factory=lambda: [512, 768, 1024], max_length=16)
    trigger_word: str | None = Field(default=None, max_length=200)
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    save_every: int = Field(default=250, ge=1)
    sample_prompts: list[str] = Field(default_factory=list, max_length=32)
    noise_scheduler: str = Field(default="flowmatch", max_length=60)
    optimizer: str = Field(default="adamw8bit", max_length=60)
    quantize: bool = True
    seed: int = 42
    trainer: str = "ai-toolkit"
    wait: bool = False


class TrainWithYaml(_Request):
    """Train by an ai-toolkit configuration, as YAML text or as the object that it describes."""

    yaml: str | None = None
    yaml_config: str | dict[str, Any] | None = None
    config: str | dict[str, Any] | None = None
    name: str | None = None
    trainer: str = "ai-toolkit"
    wait: bool = False


class Processes(_Request):
    """List training processes, newest first."""

    state: ProcessState | None = None
    limit: int = Field(default=100, ge=1, le=1000)


class ProcessStatus(_Request):
    """Return a process with the end of its log and its loss curve."""

    process_id: str
    log_bytes: int = Field(default=4000, ge=0, le=200_000)
    losses: bool = True


class Cancel(_Request):
    """Cancel a process."""

    process_id: str


class Lora(_Request):
    """``list`` LoRA files, return what one contains (``info``), or copy one into ComfyUI's folder (``install``)."""

    action: Literal["list", "info", "install"] | None = None
    process_id: str | None = None
    path: str | None = None
    name: str | None = None
    replace: bool = False


class ListModels(_Request):
    """List the models by kind, and the versions."""

    kind: str | None = None


class ListFiles(_Request):
    """List files of the workspace."""

    path: str = "."
    recursive: bool = True
    limit: int = Field(default=1000, ge=1, le=10_000)


class UploadTrainingData(_Request):
    """Add files to a data set."""

    dataset: str
    files: list[dict[str, Any]] = Field(default_factory=list)
    urls: list[str | dict[str, Any]] = Field(default_factory=list)
    captions: dict[str, str] = Field(default_factory=dict)
    replace: bool = False


class DownloadFile(_Request):
    """Return a file, or a piece of it, as base64."""

    path: str
    offset: int = Field(default=0, ge=0)
    length: int | None = Field(default=None, ge=1)
    version: str | None = None


class Download(Delivery):
    """Return the results of a process, or a file or folder, in the output mode."""

    process_id: str | None = None
    path: str | None = None


class BulkDownload(Delivery):
    """Return files and folders as one zip archive: a piece of it as base64, or in a bucket."""

    paths: list[str] = Field(min_length=1, max_length=1000)
    offset: int = Field(default=0, ge=0)
    chunk_size: int | None = Field(default=None, ge=1)
    version: str | None = None


class EndpointRequest(_Request):
    """A request of the endpoint protocol; see `yggdrasill.remote.serverless.messages`. A newer version may have further fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    protocol: int
    request: dict[str, Any] | None = None
    deploy: dict[str, Any] | None = None
    graph_id: str | None = None
    call: dict[str, Any] | None = None
    artifacts: dict[str, str] | None = None
    stored: dict[str, int] | None = None
    store: dict[str, str] | None = None


class Health(_Request):
    """Return the state of the worker."""


#: The model of each type.
REQUESTS: dict[str, type[_Request]] = {
    "generate": Generate,
    "train": Train,
    "train_with_yaml": TrainWithYaml,
    "processes": Processes,
    "process_status": ProcessStatus,
    "cancel": Cancel,
    "lora": Lora,
    "list_models": ListModels,
    "list_files": ListFiles,
    "upload_training_data": UploadTrainingData,
    "download": Download,
    "download_file": DownloadFile,
    "bulk_download": BulkDownload,
    "health": Health,
    "endpoint": EndpointRequest,
}
_GENERATE_FIELDS = frozenset({"prompt", "workflow", "workflow_url", "graph_id"})


def parse_request(given: object) -> tuple[str, _Request]:
    """Return the type and the model of a job's input. ``prompt`` or a workflow without a type means ``generate``.

    Raises:
        InvalidArgument: not an object, no type (code ``missing_type``), an unknown one (``unknown_type``), or invalid fields. Values of fields
            are not repeated in the message.
    """
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise InvalidArgument("The input of a job must be a JSON object.", code="invalid_input")
    kind = given.get("type")
    if kind is None:
        if not _GENERATE_FIELDS & given.keys():
            raise InvalidArgument(f"The input has no 'type'. Available: {format_options(REQUESTS, limit=20)}.", code="missing_type")
        kind = "generate"
    if not isinstance(kind, str) or kind not in REQUESTS:
        raise InvalidArgument(unknown_message("type", str(kind)[:60], REQUESTS, limit=20), code="unknown_type")
    try:
        return kind, REQUESTS[kind].model_validate(dict(given))
    except ValidationError as error:
        mistakes = [_mistake(each["loc"], each["type"], each["msg"], REQUESTS[kind]) for each in error.errors(include_input=False)]
        raise InvalidArgument(
            f"Invalid input for {kind!r}: {' '.join(mistakes[:10])}", code="invalid_input", errors=mistakes[:50]
        ) from None


def _mistake(place: tuple[int | str, ...], kind: str, message: str, model: type[_Request]) -> str:
    where = ".".join(str(part)[:60] for part in place)
    if kind == "extra_forbidden":
        fields = model.model_fields if len(place) == 1 else ()
        return unknown_message("field", where, fields, limit=20) if fields else f"Unknown field {where!r}."
    return f"{where}: {message}."
