"""The request ``generate``: a workflow on this worker's ComfyUI, or a graph that is deployed on it, and the files of the result."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yggdrasill.errors import BlockFailed, Cancelled, InvalidArgument, InvalidStructure, UnknownGraph
from yggdrasill.values.files import write_file
from yggdrasill.worker.buckets import Bucket, GcsBucket, S3Bucket
from yggdrasill.worker.comfy_process import ComfyService, RunningComfy
from yggdrasill.worker.datasets import decode_base64
from yggdrasill.worker.failures import Scrubber
from yggdrasill.worker.fetching import Fetcher
from yggdrasill.worker.outputs import OutputFile, ResultWriter, collect, json_bytes
from yggdrasill.worker.progress import ProgressReport, Report
from yggdrasill.worker.prompts import prompt_of
from yggdrasill.worker.requests import Delivery, Generate
from yggdrasill.worker.service_host import graph_config, graph_files
from yggdrasill.worker.settings import Settings
from yggdrasill.worker.versions import ReadyVersion, Versions
from yggdrasill.worker.workspace import Workspace, plain_name

__all__ = ["Generator", "JobContext", "bucket_of", "spill_bucket"]

_MAX_VALUE = 64 << 10


@dataclass(frozen=True)
class JobContext:
    """The job of a request: its id, the bytes that its result may have, where progress goes, and the seconds that it waited in queues."""

    job_id: str
    limit: int
    report: Report
    queue_seconds: float = 0.0

    @property
    def name(self) -> str:
        """The id as a part of file names."""
        return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in self.job_id)[:80] or "job"


@dataclass
class _Timing:
    """Seconds: in queues, until ComfyUI ran, for fetching and verifying models, for the workflow, and for delivering the files."""

    queue: float = 0.0
    boot: float = 0.0
    load: float = 0.0
    run: float = 0.0
    deliver: float = 0.0

    def facts(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in vars(self).items()}


def bucket_of(request: Delivery, mode: str, settings: Settings) -> Bucket | None:
    """Return the bucket of an output mode, None for base64. Raise `InvalidArgument` if none is named."""
    if mode == "gcs":
        return GcsBucket(settings.gcs, request.gcs_bucket, request.gcs_prefix)
    return S3Bucket(settings.s3, request.s3_bucket, request.s3_prefix) if mode == "s3" else None


def spill_bucket(settings: Settings) -> Bucket | None:
    """Return the bucket of the settings for results that are too large, if there is one."""
    if settings.gcs.bucket:
        return GcsBucket(settings.gcs)
    return S3Bucket(settings.s3) if settings.s3.endpoint_url and settings.s3.access_key_id and _names_bucket(settings) else None


def _names_bucket(settings: Settings) -> bool:
    try:
        S3Bucket(settings.s3)
    except InvalidArgument:
        return False
    return True


class Generator:
    """Runs ``generate`` requests, several at a time; ComfyUI runs their prompts one after the other."""

    def __init__(
        self, settings: Settings, workspace: Workspace, comfy: ComfyService, versions: Versions, fetcher: Fetcher, scrubber: Scrubber
    ) -> None:
        self._settings, self._workspace, self._comfy = settings, workspace, comfy
        self._versions, self._fetcher, self._scrubber = versions, fetcher, scrubber
        self._inputs = _InputFiles()

    async def run(self, request: Generate, job: JobContext) -> dict[str, Any]:
        """Run a request and return its result. Cancelling the coroutine interrupts the workflow.

        Raises:
            InvalidArgument, UnknownVersion, VersionIncomplete, InvalidStructure (ComfyUI refuses the workflow), BlockFailed (a node failed),
            RunError (ComfyUI ended), StorageFailed, PayloadTooLarge
        """
        if request.comfy_org_api_key:
            self._scrubber.learn([request.comfy_org_api_key])
        compatible = request.is_worker_comfyui
        version_id = request.version_id or self._settings.version_id
        if version_id is None and not compatible and request.graph_id is None:
            raise InvalidArgument(
                f"The input has no 'version_id'. Available: {', '.join(map(repr, self._versions.available())) or 'none'}.",
                code="version_required",
            )
        spec = None if version_id is None else await asyncio.to_thread(self._versions.load, version_id)
        mode = self._mode(request, None if spec is None else spec.x.output_mode, compatible)
        bucket = bucket_of(request, mode, self._settings)
        if bucket is not None:
            await bucket.check()
        timing = _Timing(queue=job.queue_seconds)
        writer = ResultWriter(
            self._workspace, job.name, bucket=bucket, spill=spill_bucket(self._settings), limit=job.limit, shared=self._settings.shared
        )
        if request.graph_id is not None:
            ready = await self._versions.prepare(spec, request.models_dir, _ignore)
            return await self._run_graph(request, job, ready, writer, timing)
        prompt = await prompt_of(request, spec, self._fetcher)
        previews = self._settings.previews if request.previews is None else request.previews
        progress = ProgressReport(job.report, prompt, previews=previews)
        began = time.monotonic()
        ready = await self._versions.prepare(spec, request.models_dir, progress.on_fetch)
        timing.load = time.monotonic() - began
        files, missing, log = await self._run_prompt(request, prompt, job, ready, progress, timing, skip_temporary=compatible)
        if compatible:
            return await self._compatible(writer, files, missing)
        return await self._result(writer, files, missing, request, timing, log=log)

    def _mode(self, request: Generate, of_version: str | None, compatible: bool) -> str:
        if compatible:
            return "s3" if self._settings.s3.endpoint_url else "base64"
        return request.output_mode or of_version or self._settings.output_mode

    # -- a prompt -----------------------------------------------------------------------------------------------

    async def _run_prompt(
        self,
        request: Generate,
        prompt: dict[str, Any],
        job: JobContext,
        ready: ReadyVersion,
        progress: ProgressReport,
        timing: _Timing,
        *,
        skip_temporary: bool,
    ) -> tuple[list[OutputFile], list[str], str]:
        images = {
            plain_name(image.name, "image name"): decode_base64(image.image, f"'image' of {image.name[:60]!r}") for image in request.images
        }
        extra: dict[str, Any] = {"api_key_comfy_org": request.comfy_org_api_key} if request.comfy_org_api_key else {}
        extra |= {"preview_method": "auto"} if self._settings.previews and request.previews is not False else {}
        began = time.monotonic()
        async with self._comfy.use(ready.profile) as running:
            timing.boot = time.monotonic() - began
            async with self._inputs.placed(running.input_folder, images):
                began = time.monotonic()
                outputs = await self._comfy.guard(running, self._queue(running, prompt, extra, progress, ready))
                timing.run = time.monotonic() - began
            log = self._comfy.log_tail() if self._is_verbose(request) else ""
        folders = {"output": self._comfy.output_folder, "temp": self._comfy.temp_folder, "input": running.input_folder}
        files, missing = await asyncio.to_thread(collect, outputs, folders, self._workspace.output / "text", job.name)
        return [file for file in files if not (skip_temporary and file.temporary)], missing, log

    async def _queue(
        self, running: RunningComfy, prompt: Mapping[str, Any], extra: Mapping[str, Any], progress: ProgressReport, ready: ReadyVersion
    ) -> dict[str, Any]:
        """Run a prompt. If ComfyUI refuses it, the version is verified again, because a model may have been removed."""
        for last in (False, True):
            try:
                return await running.server.run(prompt, extra, progress.on_message, progress.on_preview)
            except Cancelled as error:
                raise Cancelled("The workflow was interrupted or removed from the queue of ComfyUI.", code="cancelled") from error
            except BlockFailed as error:
                raise BlockFailed(error.message, code="node_failed", node=error.details.get("node")) from error
            except InvalidStructure:
                if last or not self._versions.forget(ready.spec):
                    raise
                await self._versions.prepare(ready.spec, str(ready.profile.models_dir), progress.on_fetch)
        raise AssertionError("unreachable")

    def _is_verbose(self, request: Generate) -> bool:
        return self._settings.verbose if request.verbose is None else request.verbose

    async def _result(
        self,
        writer: ResultWriter,
        files: Sequence[OutputFile],
        missing: Sequence[str],
        request: Generate,
        timing: _Timing,
        *,
        log: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        began = time.monotonic()
        rest: dict[str, Any] = {"log": log} if log else {}
        rest |= {"outputs": dict(values)} if values is not None else {}
        rest |= {"errors": [f"The output {name!r} does not exist." for name in missing]} if missing else {}
        rest |= {"version_id": request.version_id} if request.version_id else {}
        entries = await writer.entries(files, used=json_bytes(rest) + 2000)
        timing.deliver = time.monotonic() - began
        first = next((entry for entry in entries if "text" not in entry), entries[0] if entries else None)
        result: dict[str, Any] = {}
        if first is None:
            result["status"] = "success_no_files"
        else:
            result = {name: first[name] for name in ("gcs_url", "s3_url", "url", "path", "size") if name in first}
            if "base64" in first:  # the content is not sent twice
                result["base64"] = first.pop("base64")
        return {**result, "files": entries, "timing": timing.facts(), **rest}

    async def _compatible(self, writer: ResultWriter, files: Sequence[OutputFile], missing: Sequence[str]) -> dict[str, Any]:
        """Return the result in the form of worker-comfyui."""
        entries = await writer.entries(files)
        images = [
            {"filename": entry["filename"], "type": "base64", "data": entry["base64"]}
            if "base64" in entry
            else {"filename": entry["filename"], "type": "s3_url", "data": entry.get("url") or entry.get("gcs_url") or entry.get("path")}
            for entry in entries
        ]
        errors = {"errors": [f"The output {name!r} does not exist." for name in missing]} if missing else {}
        return {"images": images, **errors} if images else {"status": "success_no_images", "images": [], **errors}

    # -- a deployed graph ---------------------------------------------------------------------------------------

    async def _run_graph(
        self, request: Generate, job: JobContext, ready: ReadyVersion, writer: ResultWriter, timing: _Timing
    ) -> dict[str, Any]:
        from yggdrasill.cli.outputs import save_values
        from yggdrasill.remote.client import EndpointClient
        from yggdrasill.remote.loop_thread import loop_thread
        from yggdrasill.remote.remote_graph import RemoteGraph
        from yggdrasill.server_ext.auth import load_or_create_secret

        graph_id = plain_name(request.graph_id, "graph id")
        if request.workflow is not None or request.workflow_url is not None:
            raise InvalidArgument("The input has 'graph_id' and a workflow. Give one of them.", code="workflow_ambiguous")
        inputs = {**(request.inputs or {}), **(request.model_extra or {}), **({} if request.prompt is None else {"prompt": request.prompt})}
        seed = inputs.pop("seed", None)
        began = time.monotonic()
        async with self._comfy.use(ready.profile) as running:
            timing.boot = time.monotonic() - began
            token = await asyncio.to_thread(load_or_create_secret, self._comfy.data_dir / "token")
            client = EndpointClient(running.process.url, token=token, name="ComfyUI")
            began = time.monotonic()
            config = await asyncio.to_thread(graph_config, self._settings.graphs_dir, graph_id)
            # this process computes nothing, so that its torch build need not be that of ComfyUI
            client.facts = await self._comfy.guard(running, loop_thread().run_async(client.capabilities()))
            while config is not None and "hash" not in await self._comfy.guard(
                running, loop_thread().run_async(client.deploy(graph_id, config))
            ):
                pass
            timing.load = time.monotonic() - began
            graph = RemoteGraph(endpoint=client, graph_id=graph_id)
            began = time.monotonic()
            try:
                outputs = await self._comfy.guard(running, graph.run_async(inputs, seed=seed if isinstance(seed, int) else None))
            except UnknownGraph:
                names = [entry["graph_id"] for entry in await loop_thread().run_async(client.graphs())]
                listing = ", ".join(sorted({*names, *graph_files(self._settings.graphs_dir)})) or "none"
                raise UnknownGraph(f"Unknown graph {graph_id!r}. Available: {listing}.") from None
            timing.run = time.monotonic() - began
        folder = self._workspace.output / "graphs" / job.name
        written = await asyncio.to_thread(save_values, outputs, folder)
        files = [OutputFile(path, f"graphs/{job.name}/{path.name}", None) for paths in written.values() for path in paths]
        return await self._result(writer, files, [], request, timing, values=_plain(outputs))


class _InputFiles:
    """Files that workflows load by name. Two jobs with the same name and different content run one after the other."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[str, int]] = {}
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def placed(self, folder: Path, images: Mapping[str, bytes]) -> AsyncIterator[None]:
        """Write files into ComfyUI's input folder and keep them as they are while the block runs."""
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in images.items()}
        if not digests:
            yield
            return
        async with self._changed:
            await self._changed.wait_for(lambda: all(self._used.get(name, (digest, 0))[0] == digest for name, digest in digests.items()))
            for name, digest in digests.items():
                self._used[name] = (digest, self._used.get(name, (digest, 0))[1] + 1)
        try:
            for name, data in images.items():
                await asyncio.to_thread(write_file, folder / name, data)
            yield
        finally:
            async with self._changed:
                for name, digest in digests.items():
                    count = self._used[name][1] - 1
                    if count:
                        self._used[name] = (digest, count)
                    else:
                        del self._used[name]
                self._changed.notify_all()


def _plain(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs that are small JSON values; the others are files only."""
    found = {}
    for name, value in outputs.items():
        try:
            if len(json.dumps(value, allow_nan=False)) <= _MAX_VALUE:
                found[name] = value
        except (TypeError, ValueError, RecursionError):
            continue
    return found


def _ignore(done: int, total: int, what: str) -> None:
    """Receive progress that is not reported."""
