"""The worker: answers every typed request, for the handler of the ``runpod`` SDK, the command line and our gateway alike."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill import __version__
from yggdrasill.errors import InvalidArgument, InvalidConfig, MissingFile, YggdrasillError
from yggdrasill.protocol.states import COMPLETED, IN_PROGRESS
from yggdrasill.worker import requests as typed
from yggdrasill.worker.comfy_process import ComfyService
from yggdrasill.worker.datasets import upload_training_data
from yggdrasill.worker.failures import Scrubber
from yggdrasill.worker.fetching import Fetcher
from yggdrasill.worker.files import build_archive, files_below, list_files, read_piece
from yggdrasill.worker.generate import Generator, JobContext, bucket_of, spill_bucket
from yggdrasill.worker.memory import free_memory
from yggdrasill.worker.models import install_lora, list_models, lora_facts
from yggdrasill.worker.outputs import OutputFile, ResultWriter, json_bytes
from yggdrasill.worker.processes import Process, ProcessStore
from yggdrasill.worker.progress import Report
from yggdrasill.worker.settings import Settings
from yggdrasill.worker.training import KIND, AiToolkit, Trainer, TrainingRunner
from yggdrasill.worker.training_config import check_training_config, read_training_yaml, training_config
from yggdrasill.worker.versions import Versions
from yggdrasill.worker.workspace import Workspace

__all__ = ["WorkerService"]

Request = TypeVar("Request")
_Action = Callable[[Any, JobContext], Awaitable[dict[str, Any]]]

_LOG = logging.getLogger("yggdrasill.worker")
_RUN_LIMIT = 9_500_000
_RUNSYNC_LIMIT = 19_000_000
"""Bytes of a result: RunPod accepts 10 MB for /run and 20 MB for /runsync, with the response around it."""
_MAX_PIECE = 6_000_000
_ARCHIVE_LIMIT = 1 << 36


class WorkerService:
    """A worker with the settings' folders. All methods run in one event loop.

    ``trainers`` are available to ``train`` besides ai-toolkit.
    """

    def __init__(self, settings: Settings, trainers: Mapping[str, Trainer] | None = None) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.root)
        self.scrubber = Scrubber(
            {
                "workspace": settings.root,
                "ComfyUI": settings.comfy_home,
                "models": settings.models_dir,
                "cache": settings.cache_root,
                "state": settings.state_dir,
                "package": Path(__file__).resolve().parent.parent,
                "home": Path.home(),
            },
            [word for word in (settings.s3.secret_access_key, settings.s3.access_key_id) if word],
        )
        self.versions = Versions(settings)
        self.comfy = ComfyService(settings, self.workspace, self.scrubber)
        self.fetcher = Fetcher(settings.fetch_limit, settings.private_urls)
        self.generator = Generator(settings, self.workspace, self.comfy, self.versions, self.fetcher, self.scrubber)
        owner = f"{settings.worker_id}-{uuid.uuid4().hex[:8]}"
        self.store = ProcessStore(self.workspace.processes, owner, lease_seconds=settings.lease_seconds)
        known: dict[str, Trainer] = {"ai-toolkit": AiToolkit(settings.training), **(trainers or {})}
        self.runner = TrainingRunner(self.store, self.workspace, known, settings.training, self.scrubber)
        self.started = time.time()
        #: Seconds from the start of the worker until it was ready, and of that for models and the first graph.
        self.ready_seconds: float | None = None
        self.load_seconds = 0.0
        self._jobs: dict[str, float] = {}
        self._done = 0
        self._failed = 0
        self._actions: dict[str, _Action] = {
            "generate": self._generate,
            "train": self._train,
            "train_with_yaml": self._train_with_yaml,
            "processes": self._processes,
            "process_status": self._process_status,
            "cancel": self._cancel,
            "lora": self._lora,
            "list_models": self._list_models,
            "list_files": self._list_files,
            "upload_training_data": self._upload_training_data,
            "download": self._download,
            "download_file": self._download_file,
            "bulk_download": self._bulk_download,
            "health": self._health,
        }

    @property
    def running_jobs(self) -> int:
        """The number of jobs that run."""
        return len(self._jobs)

    async def start(self) -> None:
        """Make the workspace and begin to run the training processes that wait."""
        await asyncio.to_thread(self.workspace.make)
        await asyncio.to_thread(self.store.make)
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        self.runner.start()

    async def close(self) -> None:
        """Stop the trainers and ComfyUI; another worker can continue the trainings at once."""
        await self.runner.close()
        await self.comfy.close()

    async def handle(self, job: Mapping[str, Any], report: Report | None = None) -> dict[str, Any]:
        """Answer a job ``{"id", "input"}`` and return its result; after a failure ``{"error", "code", "details"?}``.

        No exception but a cancellation leaves this method. ``report`` receives progress.
        """
        job_id = str(job.get("id") or uuid.uuid4())
        began = time.time()
        self._jobs[job_id] = began
        given = job.get("input")
        kind = "unknown"
        try:
            kind, request = typed.parse_request(given)
            submitted = job.get("submitted")
            waited = max(0.0, began - float(submitted)) if isinstance(submitted, (int, float)) and not isinstance(submitted, bool) else 0.0
            context = JobContext(job_id, self._limit(job_id), report or _ignore, waited)
            result = await self._actions[kind](request, context)
            result = await self._bounded(result, context)
            if request.refresh_worker:
                result["refresh_worker"] = True
        except asyncio.CancelledError:
            _LOG.info("job %s (%s) was cancelled", job_id, kind)
            raise
        except YggdrasillError as error:
            self._failed += 1
            _LOG.warning("job %s (%s) failed: %s", job_id, kind, self.scrubber.text(f"{type(error).__name__}: {error}"))
            return self.scrubber.failure(error)
        except Exception as error:  # noqa: BLE001 - the client gets a code, the log has the traceback
            self._failed += 1
            _LOG.exception("job %s (%s) failed", job_id, kind)
            return self.scrubber.failure(error)
        else:
            self._done += 1
            _LOG.info("job %s (%s) took %.3f s", job_id, kind, time.time() - began)
            return result
        finally:
            self._jobs.pop(job_id, None)

    def _limit(self, job_id: str) -> int:
        return self.settings.payload_limit or (_RUNSYNC_LIMIT if job_id.startswith("sync-") else _RUN_LIMIT)

    async def _bounded(self, result: dict[str, Any], job: JobContext) -> dict[str, Any]:
        """Return a result that fits, as a reference if it does not."""
        if json_bytes(result) <= job.limit:
            return result
        return await self._writer(job, spill_bucket(self.settings), None).whole(result)

    def _writer(self, job: JobContext, spill: Any, bucket: Any) -> ResultWriter:
        return ResultWriter(self.workspace, job.name, bucket=bucket, spill=spill, limit=job.limit, shared=self.settings.shared)

    # -- generation and training --------------------------------------------------------------------------------

    async def _generate(self, request: typed.Generate, job: JobContext) -> dict[str, Any]:
        return await self.generator.run(request, job)

    async def _train(self, request: typed.Train, job: JobContext) -> dict[str, Any]:
        config = training_config(request.model_dump(), self.settings.training)
        return await self._start_training(request.trainer, request.name, config, job, wait=request.wait)

    async def _train_with_yaml(self, request: typed.TrainWithYaml, job: JobContext) -> dict[str, Any]:
        given = [each for each in (request.yaml, request.yaml_config, request.config) if each is not None]
        if len(given) != 1:
            raise InvalidArgument(
                "train_with_yaml needs the configuration in 'yaml' (or in 'yaml_config' or 'config').", code="invalid_input"
            )
        config = read_training_yaml(given[0]) if isinstance(given[0], str) else given[0]
        inner = config.get("config")
        if request.name is not None and isinstance(inner, dict):
            config = {**config, "config": {**inner, "name": request.name}}
        name = str(config["config"].get("name")) if isinstance(config.get("config"), dict) else ""
        return await self._start_training(request.trainer, name, config, job, wait=request.wait)

    async def _start_training(self, trainer: str, name: str, config: Mapping[str, Any], job: JobContext, *, wait: bool) -> dict[str, Any]:
        checked = await asyncio.to_thread(check_training_config, config, self.workspace, self.settings.training)
        process = await self.runner.submit(trainer, name, checked)
        if not wait:
            return {"process_id": process.process_id, "state": process.state, "name": process.name}
        row = process
        try:
            async for row in self.runner.follow(process.process_id):
                job.report({"type": "training", "process_id": row.process_id, "state": row.state, **row.progress})
        except asyncio.CancelledError:
            await asyncio.to_thread(self.store.request_cancel, process.process_id)
            raise
        if row.state != COMPLETED:
            failure = row.error or {}
            raise InvalidConfig(
                str(failure.get("error", "The training ended.")), code=str(failure.get("code", "trainer_failed")), process_id=row.process_id
            )
        return row.summary()

    # -- processes ----------------------------------------------------------------------------------------------

    async def _processes(self, request: typed.Processes, job: JobContext) -> dict[str, Any]:
        rows = await asyncio.to_thread(lambda: self.store.newest(kind=KIND, state=request.state, limit=request.limit))
        return {"processes": [self._summary(row) for row in rows]}

    async def _process_status(self, request: typed.ProcessStatus, job: JobContext) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            row = self.store.get(request.process_id)
            found = self._summary(row)
            if request.log_bytes:
                found["log"] = self.store.tail(row.process_id, request.log_bytes)
            if request.losses:
                found["losses"] = self.store.losses(row.process_id)
            return found

        return await asyncio.to_thread(read)

    def _summary(self, row: Process) -> dict[str, Any]:
        """Return the row of a process; ``waiting`` says that no worker runs it at the moment."""
        lost = row.state == IN_PROGRESS and self.store.is_lost(row)
        return {**row.summary(), **({"waiting": "its worker was lost; the next worker continues it"} if lost else {})}

    async def _cancel(self, request: typed.Cancel, job: JobContext) -> dict[str, Any]:
        row = await asyncio.to_thread(self.store.request_cancel, request.process_id)
        return {"process_id": row.process_id, "state": row.state, "cancelling": not row.is_final}

    # -- models and files ---------------------------------------------------------------------------------------

    async def _lora(self, request: typed.Lora, job: JobContext) -> dict[str, Any]:
        action = request.action or ("list" if request.path is None and request.process_id is None else "info")
        if action == "list":
            return await asyncio.to_thread(self._list_loras)
        path = await asyncio.to_thread(self._lora_file, request)
        if action == "info":
            return await asyncio.to_thread(lora_facts, path, path.name)
        name = request.name or path.stem
        return await asyncio.to_thread(lambda: install_lora(path, self.settings.models_dir / "loras", name, replace=request.replace))

    def _list_loras(self) -> dict[str, Any]:
        rows = self.store.newest(kind=KIND, state=COMPLETED, limit=1000)
        trained = [
            {"process_id": row.process_id, "name": row.name, "path": row.output["lora"]}
            for row in rows
            if row.output and "lora" in row.output
        ]
        installed = list_models(self.settings.models_dir, self.workspace, kind="loras")["models"].get("loras", [])
        return {"loras": installed, "trained": trained}

    def _lora_file(self, request: typed.Lora) -> Path:
        if (request.path is None) == (request.process_id is None):
            raise InvalidArgument("Name the LoRA by 'path' or by 'process_id'.", code="invalid_input")
        if request.path is not None:
            return self.workspace.resolve(request.path)
        row = self.store.get(request.process_id)
        found = (row.output or {}).get("lora")
        if not isinstance(found, str):
            raise MissingFile(f"Process {row.process_id!r} ({row.state}) has made no LoRA.", code="unknown_file")
        return self.workspace.resolve(found)

    async def _list_models(self, request: typed.ListModels, job: JobContext) -> dict[str, Any]:
        found = await asyncio.to_thread(lambda: list_models(self.settings.models_dir, self.workspace, kind=request.kind))
        return {**found, "versions": await asyncio.to_thread(self.versions.available)}

    async def _list_files(self, request: typed.ListFiles, job: JobContext) -> dict[str, Any]:
        return await asyncio.to_thread(lambda: list_files(self.workspace, request.path, recursive=request.recursive, limit=request.limit))

    async def _upload_training_data(self, request: typed.UploadTrainingData, job: JobContext) -> dict[str, Any]:
        urls = [{"url": each} if isinstance(each, str) else each for each in request.urls]
        if not all(isinstance(each.get("url"), str) for each in urls):
            raise InvalidArgument("Each of 'urls' must be a URL or an object with 'url'.", code="invalid_input")
        return await upload_training_data(
            self.workspace, self.fetcher, request.dataset, request.files, urls, request.captions, replace=request.replace
        )

    async def _download(self, request: typed.Download, job: JobContext) -> dict[str, Any]:
        """Return the files of a process or a path, each by the output mode."""
        if (request.path is None) == (request.process_id is None):
            raise InvalidArgument("Name what to download by 'path' or by 'process_id'.", code="invalid_input")
        if request.process_id is not None:
            row = await asyncio.to_thread(self.store.get, request.process_id)
            folder = self.workspace.output / "training" / row.process_id
            if not folder.is_dir():
                raise MissingFile(f"Process {row.process_id!r} ({row.state}) has made no files.", code="unknown_file")
        else:
            folder = await asyncio.to_thread(self.workspace.resolve, request.path)
        paths = await asyncio.to_thread(lambda: list(files_below(folder)) if folder.is_dir() else [folder])
        if not paths:
            raise MissingFile("There are no files at this path.", code="unknown_file")
        entries = await self._deliver(paths, request, job)
        return {"files": entries, "total_size": sum(entry["size"] for entry in entries)}

    async def _deliver(self, paths: list[Path], request: typed.Delivery, job: JobContext) -> list[dict[str, Any]]:
        bucket = bucket_of(request, request.output_mode or "base64", self.settings)
        if bucket is not None:
            await bucket.check()
        files = [OutputFile(path, self.workspace.name(path), None) for path in paths]
        entries = await self._writer(job, spill_bucket(self.settings), bucket).entries(files, used=2000)
        # a path tells apart files of one name, and can be used with download_file
        return [{**entry, "path": file.name} for entry, file in zip(entries, files, strict=True)]

    async def _download_file(self, request: typed.DownloadFile, job: JobContext) -> dict[str, Any]:
        path = await asyncio.to_thread(self.workspace.resolve, request.path)
        length = min(request.length or _MAX_PIECE, self._piece(job))
        name = self.workspace.name(path)
        return await asyncio.to_thread(lambda: read_piece(path, name, offset=request.offset, length=length, expected=request.version))

    async def _bulk_download(self, request: typed.BulkDownload, job: JobContext) -> dict[str, Any]:
        archive = await asyncio.to_thread(lambda: build_archive(self.workspace, request.paths, limit=_ARCHIVE_LIMIT))
        if request.output_mode in ("gcs", "s3"):
            return {"archive": (await self._deliver([archive], request, job))[0]}
        length = min(request.chunk_size or _MAX_PIECE, self._piece(job))
        name = self.workspace.name(archive)
        piece = await asyncio.to_thread(lambda: read_piece(archive, name, offset=request.offset, length=length))
        digest = archive.stem
        if request.version not in (None, digest):
            raise InvalidArgument("The files have changed since the first piece. Begin again at offset 0.", code="file_changed")
        return {**piece, "version": digest, "media_type": "application/zip"}

    def _piece(self, job: JobContext) -> int:
        """Return the bytes that fit into a result as base64."""
        return max(1, min(_MAX_PIECE, (job.limit - 4000) * 3 // 4))

    # -- health -------------------------------------------------------------------------------------------------

    async def _health(self, request: typed.Health, job: JobContext) -> dict[str, Any]:
        rows = await asyncio.to_thread(lambda: self.store.newest(kind=KIND, limit=1000))
        states: dict[str, int] = {}
        for row in rows:
            states[row.state] = states.get(row.state, 0) + 1
        disk = await asyncio.to_thread(shutil.disk_usage, self.settings.root)
        return {
            "status": "ok",
            "version": __version__,
            "worker_id": self.settings.worker_id,
            "uptime": round(time.time() - self.started, 1),
            "jobs": {"running": len(self._jobs) - 1, "completed": self._done, "failed": self._failed},
            "comfy": {"running": self.comfy.is_running, "crashes": self.comfy.crashes},
            "processes": states,
            "trainers": {name: _is_installed(trainer) for name, trainer in self.runner.trainers.items()},
            "versions": await asyncio.to_thread(self.versions.available),
            "timing": {
                "queue": round(job.queue_seconds, 3),
                "boot": round(self.comfy.boot_seconds, 3),
                "load": round(self.load_seconds, 3),
                **({} if self.ready_seconds is None else {"ready": round(self.ready_seconds, 3)}),
            },
            "disk_free": disk.free,
            "memory_free": free_memory(),
            "workspace": {"shared": self.settings.shared},
        }


def _is_installed(trainer: Trainer) -> bool:
    try:
        trainer.check()
    except MissingFile:
        return False
    return True


def _ignore(message: dict[str, Any]) -> None:
    """Receive progress that has no receiver."""
