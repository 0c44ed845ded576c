"""The settings of a worker, all from environment variables. `docs/serverless.md` lists them."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yggdrasill.errors import InvalidArgument, format_options
from yggdrasill.remote.public_hosts import allows_private
from yggdrasill.remote.serverless.common_stores import STORE_VARIABLE, check_store
from yggdrasill.version_specs.places import VOLUMES, cache_root, comfy_home, on_this_machine, volume
from yggdrasill.version_specs.store import version_folders

__all__ = ["OUTPUT_MODES", "GcsSettings", "S3Settings", "Settings", "TrainingSettings"]

OUTPUT_MODES = ("gcs", "s3", "base64")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})
_JOBS = ("extension",)
_TRAINERS = ("sd_trainer", "ui_trainer", "diffusion_trainer")
_MODELS = (
    "black-forest-labs/FLUX*", "stabilityai/*", "stable-diffusion-v1-5/*", "runwayml/stable-diffusion*", "Wan-AI/*", "Qwen/Qwen-Image*",
    "Tongyi-MAI/Z-Image*", "HiDream-ai/*", "ostris/*", "Lightricks/LTX-Video*", "Lodestones/Chroma*", "lodestones/Chroma*",
)  # fmt: skip


@dataclass(frozen=True)
class GcsSettings:
    """How files are written to Google Cloud Storage."""

    bucket: str | None = None
    prefix: str = "comfy/outputs"
    retries: int = 3
    retry_base_sleep: float = 0.5
    public: bool = False
    signed_url_ttl: int = 0
    validate: bool = True
    project: str | None = None


@dataclass(frozen=True)
class S3Settings:
    """How files are written to an S3 store. The secret is kept out of the representation."""

    endpoint_url: str | None = None
    bucket: str | None = None
    prefix: str = "comfy/outputs"
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    url_ttl: int = 7 * 86400


@dataclass(frozen=True)
class TrainingSettings:
    """Where ai-toolkit is installed, and which jobs, trainers and models a client's configuration may name."""

    toolkit: Path = Path("/workspace/ai-toolkit")
    python: Path | None = None
    jobs: tuple[str, ...] = _JOBS
    trainers: tuple[str, ...] = _TRAINERS
    models: tuple[str, ...] = _MODELS
    slots: int = 1
    attempts: int = 3
    max_steps: int = 100_000


@dataclass(frozen=True)
class Settings:
    """The settings of one worker. ``state_dir`` is on the machine's own disk, all other folders may be on a shared volume."""

    root: Path
    comfy_home: Path
    models_dir: Path
    versions: tuple[Path, ...]
    cache_root: Path
    state_dir: Path
    graphs_dir: Path
    worker_id: str
    comfy_python: Path | None = None
    version_id: str | None = None
    output_mode: str = "gcs"
    verbose: bool = False
    concurrency: int = 1
    job_memory: int = 2 << 30
    start_seconds: float = 600.0
    lease_seconds: float = 30.0
    payload_limit: int | None = None
    shared: bool = False
    refresh: bool = False
    previews: bool = True
    comfy_args: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    private_urls: bool = False
    fetch_limit: int = 2 << 30
    host_python: Path | None = None
    host_plugins: tuple[str, ...] = ()
    artifact_store: str | None = None
    gcs: GcsSettings = GcsSettings()
    s3: S3Settings = S3Settings()
    training: TrainingSettings = TrainingSettings()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings that the environment variables describe.

        Raises:
            InvalidArgument: a value that is not of the variable's type.
        """
        read = _Reader(environment)
        root = read.path("WORKSPACE_ROOT") or volume() or Path.home() / ".yggdrasill" / "worker"
        home = comfy_home(environment)
        mode = read.text("OUTPUT_MODE") or "gcs"
        if mode not in OUTPUT_MODES:
            raise InvalidArgument(f"Unknown OUTPUT_MODE {mode!r}. Available: {format_options(OUTPUT_MODES)}.")
        pod = re.sub(r"[^A-Za-z0-9_-]", "-", read.text("RUNPOD_POD_ID") or f"{socket.gethostname()}-{os.getpid()}")[:80]
        on_volume = any(root.is_relative_to(each) for each in VOLUMES if os.path.ismount(each))
        return cls(
            root=root,
            comfy_home=home,
            models_dir=read.path("MODELS_DIR") or home / "models",
            versions=(root / "versions", *version_folders(environment)),
            cache_root=cache_root(environment),
            state_dir=read.path("WORKER_STATE_DIR") or Path(tempfile.gettempdir()) / f"yggdrasill-worker-{pod}",
            graphs_dir=read.path("GRAPHS_DIR") or root / "graphs",
            worker_id=pod,
            comfy_python=read.path("COMFYUI_PYTHON"),
            version_id=read.text("VERSION_ID"),
            output_mode=mode,
            verbose=read.flag("VERBOSE", default=False),
            concurrency=read.number("WORKER_CONCURRENCY", 1, least=1),
            job_memory=read.number("WORKER_JOB_MEMORY", 2 << 30, least=1),
            start_seconds=read.real("COMFY_START_SECONDS", 600.0),
            lease_seconds=read.real("PROCESS_LEASE_SECONDS", 30.0),
            payload_limit=read.number("PAYLOAD_LIMIT", 0, least=0) or None,
            shared=read.flag("WORKSPACE_SHARED", default=on_volume),
            refresh=read.flag("REFRESH_WORKER", default=False),
            previews=read.flag("WORKER_PREVIEWS", default=True),
            comfy_args=tuple((read.text("COMFY_ARGS") or "").split()),
            preload=tuple(read.words("PRELOAD_MODELS")),
            private_urls=allows_private(environment),
            fetch_limit=read.number("FETCH_LIMIT", 2 << 30, least=1),
            host_python=read.path("HOST_PYTHON"),
            host_plugins=tuple(read.words("HOST_PLUGINS")),
            artifact_store=_artifact_store(read),
            gcs=_gcs(read),
            s3=_s3(read),
            training=_training(read),
        )


class _Reader:
    """Environment variables by type; an empty value counts as absent."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str) -> str | None:
        return self._environment.get(name, "").strip() or None

    def path(self, name: str) -> Path | None:
        text = self.text(name)
        return None if text is None else on_this_machine(text)

    def words(self, name: str, separator: str = ",") -> list[str]:
        return [word.strip() for word in (self.text(name) or "").split(separator) if word.strip()]

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.text(name)
        if text is None:
            return default
        if text.lower() not in _TRUE | _FALSE:
            raise InvalidArgument(f"The environment variable {name} must be 'true' or 'false', got another text.")
        return text.lower() in _TRUE

    def real(self, name: str, default: float, *, least: float = 0.0) -> float:
        text = self.text(name)
        try:
            number = default if text is None else float(text)
        except ValueError:
            number = float("nan")
        if not least <= number < float("inf"):
            raise InvalidArgument(f"The environment variable {name} must be a number of at least {least:g}.")
        return number

    def number(self, name: str, default: int, *, least: int = 0) -> int:
        value = self.real(name, default, least=least)
        if value != int(value):
            raise InvalidArgument(f"The environment variable {name} must be a whole number of at least {least}.")
        return int(value)


def _artifact_store(read: _Reader) -> str | None:
    """Return the artifact store, a folder by its path on this machine."""
    text = read.text(STORE_VARIABLE)
    if text is None or "://" in text:
        return None if text is None else check_store(text, STORE_VARIABLE)
    return check_store(str(on_this_machine(text)), STORE_VARIABLE)


def _gcs(read: _Reader) -> GcsSettings:
    return GcsSettings(
        bucket=read.text("GCS_BUCKET"),
        prefix=read.text("GCS_PREFIX") or GcsSettings.prefix,
        retries=read.number("GCS_RETRIES", 3),
        retry_base_sleep=read.real("GCS_RETRY_BASE_SLEEP", 0.5),
        public=read.flag("GCS_PUBLIC", default=False),
        signed_url_ttl=read.number("GCS_SIGNED_URL_TTL", 0),
        validate=read.flag("GCS_VALIDATE", default=True),
        project=read.text("GOOGLE_CLOUD_PROJECT") or read.text("GCS_PROJECT"),
    )


def _s3(read: _Reader) -> S3Settings:
    return S3Settings(
        endpoint_url=read.text("BUCKET_ENDPOINT_URL"),
        bucket=read.text("BUCKET_NAME"),
        prefix=read.text("BUCKET_PREFIX") or S3Settings.prefix,
        region=read.text("BUCKET_REGION") or read.text("AWS_REGION"),
        access_key_id=read.text("BUCKET_ACCESS_KEY_ID") or read.text("AWS_ACCESS_KEY_ID"),
        secret_access_key=read.text("BUCKET_SECRET_ACCESS_KEY") or read.text("AWS_SECRET_ACCESS_KEY"),
        url_ttl=read.number("BUCKET_URL_TTL", 7 * 86400, least=1),
    )


def _training(read: _Reader) -> TrainingSettings:
    return TrainingSettings(
        toolkit=read.path("AI_TOOLKIT_HOME") or on_this_machine("/workspace/ai-toolkit"),
        python=read.path("AI_TOOLKIT_PYTHON"),
        jobs=tuple(read.words("TRAIN_JOBS")) or _JOBS,
        trainers=tuple(read.words("TRAIN_TRAINERS")) or _TRAINERS,
        models=tuple(read.words("TRAIN_MODELS")) or _MODELS,
        slots=read.number("TRAIN_SLOTS", 1, least=1),
        attempts=read.number("TRAIN_ATTEMPTS", 3, least=1),
        max_steps=read.number("TRAIN_MAX_STEPS", 100_000, least=1),
    )
