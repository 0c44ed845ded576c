"""One job at one endpoint: the call of a graph or of a ComfyUI prompt, its events, and its output as the gateway stores it.

Everything here runs on the loop thread. The call at the endpoint has the key of the job's attempt, so repeating it, also by another gateway
after a crash, finds the job there instead of starting another.

A request is ``{"inputs" or "wire", "options", "seed"}`` for a graph, with ``"prompt"`` in addition for a prompt with ports, and
``{"prompt", "extra_data", "images"}`` for one without; see `yggdrasill.gateway.files` for assets. An output is ``{"wire", "files", "texts", "timing"}``; a file is
``{"node", "filename", "subfolder", "type", "endpoint"}``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from yggdrasill.errors import BlockFailed, Cancelled, EndpointUnreachable, InvalidArgument, YggdrasillError
from yggdrasill.gateway.endpoints import Fleet
from yggdrasill.gateway.files import Files
from yggdrasill.gateway.models import PROMPT, WORKFLOW, Job
from yggdrasill.gateway.steps import wire_of_step
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.remote.calls import Call, execute_remote_call
from yggdrasill.remote.comfy_server import ComfyServer, saved_files
from yggdrasill.remote.downloads import RemoteHandle
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.values.wire import references

__all__ = ["Report", "execute", "pack_plain", "prompt_id_of"]

#: Receives kind and data of an event, on the loop thread.
Report = Callable[[str, dict[str, Any]], None]

_ORPHAN_AFTER = 600.0
"""Seconds for which an endpoint continues the call of a gateway that was killed; the gateway resumes it when it is back."""
_POLICY = RetryPolicy(first=2.0, later=10.0)
_MAX_TEXT = 64 << 10
_PREVIEW_SECONDS = 0.5
_MAX_PREVIEW = 512 << 10
_artifacts = ArtifactClient()


def pack_plain(value: Any) -> dict[str, Any]:
    """Return a JSON value in wire form. It has no artifacts, because JSON has no bytes."""
    with _artifacts.pack(value) as packed:
        return packed.wire


def prompt_id_of(call_key: str) -> str:
    """Return the id that a prompt has in the queue of a ComfyUI: a UUID, the same for each repetition of the call."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"yggdrasill:{call_key}"))


async def execute(
    fleet: Fleet, job: Job, request: Mapping[str, Any], needed: Mapping[str, Any], report: Report, files: Files
) -> dict[str, Any]:
    """Run a job at the endpoint that it was taken for, and return its output. Cancelling this cancels the call.

    Raises:
        EndpointUnreachable: the endpoint is lost; ``details["reached"]`` is True if the call may have begun.
        QueueFull: the endpoint did not accept the call.
        YggdrasillError: the call failed.
    """
    if not request.get("collect"):
        return await _execute(fleet, job, request, needed, report, files)
    collector = files.collector(fleet.server(str(job.place)), job, request["prompt"])

    def seen(kind: str, data: dict[str, Any]) -> None:
        if kind == "comfy":
            collector.see(data)
        report(kind, data)

    failed = False
    try:
        output = await _execute(fleet, job, request, needed, seen, files)
        return {**output, **await collector.finish(output.get("outputs") or {})}
    except YggdrasillError:
        failed = True
        raise
    finally:
        await collector.close(failed=failed)


async def _execute(
    fleet: Fleet, job: Job, request: Mapping[str, Any], needed: Mapping[str, Any], report: Report, files: Files
) -> dict[str, Any]:
    if job.kind == PROMPT:
        return await _execute_prompt(fleet.server(str(job.place)), job, request, report, files)
    client = fleet.client(str(job.place))
    prompt = await files.place(fleet.server(str(job.place)), request) if job.kind == WORKFLOW else None
    nodes = _NodeProgress(prompt, report) if prompt is not None and request.get("collect") else None
    wire, origins = _inputs(request, needed)
    value = [
        RemoteHandle(ref, fleet.client(origin), _artifacts)
        for origin, part in origins
        for ref in references(part)
        if origin in fleet.registry.endpoints
    ]
    outputs: dict[str, Any] = {}

    def watch(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "comfy" and data.get("what") == "executed" and isinstance(data.get("output"), Mapping):
            outputs[str(data.get("display") or data.get("node"))] = data["output"]
        if kind == "comfy" and nodes is not None:
            nodes.see(str(data.get("what")), data)
        if kind in ("comfy", "log"):
            report(kind, dict(data))

    def progress(place: str, done: float, total: float, text: str | None) -> None:
        report("progress", _progress(place, done, total, text) if nodes is None else nodes.step(place.rpartition("/")[2], done, total))

    call = Call(
        graph_id=job.target if job.kind != WORKFLOW else "workflow",
        wire=wire,
        value=value,
        artifact_client=_artifacts,
        run={"seed": request.get("seed"), "path": [], "pass_index": 0},
        options=dict(request.get("options") or {}),
        orphan_after=_ORPHAN_AFTER,
        retry_policy=_POLICY,
        priority=job.priority,
        progress=progress,
        prompt=prompt,
        watch=watch,
        key=str(job.call_key),
    )
    row = await execute_remote_call(client, call, spare=True)
    found = {"wire": row["output"], "timing": row.get("timing") or {}, **_shown(outputs, str(job.place))}
    return {name: item for name, item in found.items() if item}


def _inputs(request: Mapping[str, Any], needed: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Return the inputs in wire form, and the parts of them that are stored at other endpoints, with their names."""
    if isinstance(request.get("wire"), Mapping):
        return dict(request["wire"]), []
    inputs = request.get("inputs") or {}
    if not needed:
        return pack_plain(dict(inputs)), []
    wire, origins = wire_of_step(inputs, needed, pack_plain)
    return wire, list(origins)


def _progress(place: str, done: float, total: float, text: str | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"place": place, "done": done, "total": total}
    return facts if text is None else {**facts, "text": text[:500]}


def _shown(outputs: Mapping[str, Any], endpoint: str) -> dict[str, Any]:
    """Return the files and texts that output nodes of a ComfyUI made."""
    files = [
        {"node": file.node_id, "filename": file.filename, "subfolder": file.subfolder, "type": file.folder, "endpoint": endpoint}
        for file in saved_files(outputs)
    ]
    texts = {
        node: output["text"] for node, output in outputs.items() if isinstance(output, Mapping) and isinstance(output.get("text"), list)
    }
    return {"files": files, "texts": texts if len(str(texts)) <= _MAX_TEXT else {}, "outputs": dict(outputs)}


# -- prompts without ports ------------------------------------------------------------------------------------------------


class _NodeProgress:
    """The progress of a prompt: how many of its nodes have begun or were cached, and the steps of the one that runs."""

    def __init__(self, prompt: Mapping[str, Any], report: Report) -> None:
        self._prompt, self._report = prompt, report
        self._begun: set[str] = set()
        self.current = ""

    @property
    def has_begun(self) -> bool:
        """Whether a node has begun."""
        return bool(self._begun)

    def see(self, kind: str, data: Mapping[str, Any]) -> None:
        """Receive a message of ComfyUI, or of an endpoint about one."""
        if kind == "executing":
            self._begin([data.get("node")], str(data.get("node") or ""))
        elif kind in ("execution_cached", "cached"):
            self._begin(data.get("nodes") or (), self.current)

    def _begin(self, nodes: Iterable[Any], current: str) -> None:
        self._begun.update(str(node) for node in nodes if node is not None)
        self.current = current
        self._report("progress", self.facts())

    def step(self, node: str, done: float, total: float) -> dict[str, Any]:
        """Return the facts of a report of the node that runs."""
        self.current = node
        self._begun.add(node)
        return {**self.facts(), "step": done, "steps": total}

    def facts(self) -> dict[str, Any]:
        """Return the facts of a report."""
        # nodes that others create while they run have ids that the prompt lacks
        begun = len(self._begun & self._prompt.keys())
        node = self._prompt.get(self.current) or self._prompt.get(self.current.partition(".")[0]) or {}
        found = _progress(self.current, begun, len(self._prompt), None)
        return {**found, "class": node["class_type"]} if "class_type" in node else found


async def _execute_prompt(server: ComfyServer, job: Job, request: Mapping[str, Any], report: Report, files: Files) -> dict[str, Any]:
    """Queue a prompt as an editor does, in a ComfyUI with or without the extension."""
    prompt_id = prompt_id_of(str(job.call_key))
    extra = request.get("extra_data")
    credentials = files.credentials_of(job)
    if credentials is None and not await server.is_known(prompt_id):
        raise BlockFailed(
            "The credentials of this job are lost, because they are not stored and its gateway was restarted. Submit the job again.",
            code="credentials_lost",
        )
    for image in request.get("images") or ():
        await server.upload(*_image(image))
    prompt = await files.place(server, request)
    nodes = _NodeProgress(prompt, report)
    previewed = 0.0

    def on_message(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "progress" and isinstance(data.get("value"), (int, float)) and isinstance(data.get("max"), (int, float)):
            report("progress", nodes.step(str(data.get("node") or nodes.current), data["value"], data["max"]))
        nodes.see(kind, data)
        report("comfy", {"what": kind, **data})

    def on_preview(media_type: str, data: bytes) -> None:
        nonlocal previewed
        now = time.monotonic()
        if now - previewed >= _PREVIEW_SECONDS and len(data) <= _MAX_PREVIEW:
            previewed = now
            picture = base64.b64encode(data).decode("ascii")
            report("comfy", {"what": "preview", "node": nodes.current, "type": media_type.rpartition("/")[2].upper(), "image": picture})

    given = {**(extra if isinstance(extra, Mapping) else {}), **(credentials or {})}
    running = server.run(prompt, given, on_message, on_preview, prompt_id=prompt_id)
    try:
        outputs = await running
    except Cancelled as error:
        # interrupted at the ComfyUI, not by the client of the gateway
        task = asyncio.current_task()
        if task is not None and getattr(task, "cancelling", int)():
            raise
        raise BlockFailed(error.message, endpoint=server.name, code="interrupted") from None
    except EndpointUnreachable as error:
        if nodes.has_begun:
            error.details["reached"] = True
        raise
    return {name: item for name, item in _shown(outputs, str(job.place)).items() if item} or {"outputs": {}}


def _image(image: Any) -> tuple[str, bytes]:
    """Return name and bytes of an input image ``{"name", "image": base64 or data URI}``. Raise `InvalidArgument` for another form."""
    name, text = (image.get("name"), image.get("image")) if isinstance(image, Mapping) else (None, None)
    if not isinstance(name, str) or not name or "/" in name or "\\" in name or not isinstance(text, str):
        raise InvalidArgument("Each of 'images' must be {'name': FILE, 'image': base64 or a data URI}.")
    try:
        return name, base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"The image {name[:80]!r} is not base64.") from None
