"""The gateway's own dialect: workflows, jobs, outputs, events and checkpoints below ``/v1``.

``POST /v1/workflows`` takes ``{"graph": ID}`` for a deployed graph, or ``{"workflow": ...}``: a ComfyUI prompt in the API format, a config
``{"kind": "comfy", "prompt"}``, or a composite ``{"steps", "outputs"}``; with ``inputs``, ``options``, ``seed``, ``priority``, ``paused``,
``ttl``, ``timeout``, ``key``, ``webhook``, ``endpoint``, ``name`` and ``wait``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from yggdrasill.errors import AccessDenied, InvalidArgument, UnknownName, YggdrasillError
from yggdrasill.gateway.endpoints import on_loop_thread
from yggdrasill.gateway.http import (
    Http,
    caller_of,
    json_response,
    plain_output,
    principal_of,
    send_artifact,
    send_file,
)
from yggdrasill.gateway.models import Job, check_priority, check_seconds
from yggdrasill.gateway.service import Gateway, Options, only_of
from yggdrasill.server_ext.bodies import read_json
from yggdrasill.server_ext.principals import ADMIN, DEPLOY, READ, RUN
from yggdrasill.server_ext.routes import last_event, number
from yggdrasill.values.wire import references

__all__ = ["DIALECT", "BareDialect", "describe"]

DIALECT = "bare"
_MAX_BODY = 64 << 20
_MAX_WAIT = 60.0
_KEYS = frozenset(
    "graph workflow inputs wire options seed priority paused ttl timeout key webhook endpoint name wait extra_data images".split()
)
_REQUEST = ("inputs", "wire", "options", "seed", "extra_data", "images")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "graph": str, "workflow": dict, "inputs": dict, "wire": dict, "options": dict, "seed": int, "paused": bool, "key": str, "webhook": str,
    "endpoint": str, "name": str, "extra_data": dict, "images": list,
}  # fmt: skip
_MAX_NAME = 200


def describe(job: Job, output: Any, url: str = "") -> dict[str, Any]:
    """Return a job and its output as JSON. ``url`` is that of the gateway, for artifacts and files."""
    found = job.summary()
    if output is None:
        return {**found, "output": None}
    base = f"{url}/v1/jobs/{job.job_id}"
    files = [{**file, "url": f"{base}/files/{index}"} for index, file in enumerate(output.get("files") or ())]
    wire = output.get("wire")
    plain = None if wire is None else plain_output(wire, lambda name: f"{base}/artifacts/{name}")
    return {
        **found,
        "output": plain if wire is not None else output.get("output", output.get("outputs")),
        "wire": wire,
        "files": files,
        "texts": output.get("texts") or {},
        "timing": output.get("timing") or {},
    }


class BareDialect:
    """The routes of ``gateway``."""

    def __init__(self, gateway: Gateway, http: Http) -> None:
        self._gateway, self._http = gateway, http

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes below ``/v1``."""
        for method, path, handler, role in (
            ("POST", "/workflows", self.submit, RUN),
            ("GET", "/jobs", self.jobs, READ),
            ("GET", "/queue", self.queue, READ),
            ("GET", "/jobs/{job_id}", self.job, READ),
            ("GET", "/jobs/{job_id}/output", self.output, READ),
            ("GET", "/jobs/{job_id}/steps", self.steps, READ),
            ("GET", "/jobs/{job_id}/events", self.job_events, READ),
            ("GET", "/jobs/{job_id}/files/{index}", self.file, READ),
            ("GET", "/jobs/{job_id}/artifacts/{hash}", self.artifact, READ),
            ("POST", "/jobs/{job_id}/cancel", self.cancel, RUN),
            ("POST", "/jobs/{job_id}/retry", self.retry, RUN),
            ("POST", "/jobs/{job_id}/pause", self.pause, RUN),
            ("POST", "/jobs/{job_id}/resume", self.resume, RUN),
            ("POST", "/jobs/{job_id}/priority", self.prioritise, RUN),
            ("POST", "/jobs/{job_id}/move", self.move, RUN),
            ("GET", "/events", self.events, READ),
            ("GET", "/checkpoints", self.checkpoints, READ),
            ("GET", "/endpoints", self.endpoints, READ),
            ("GET", "/health", self.health, READ),
        ):
            router.add_route(method, f"/v1{path}", self._http.guarded(handler, role))

    # -- submissions --------------------------------------------------------------------------------------------

    async def submit(self, request: web.Request) -> web.Response:
        """POST /v1/workflows"""
        body = _checked(await read_json(request, _MAX_BODY))
        principal = principal_of(request)
        given = {name: body[name] for name in ("paused", "webhook", "endpoint") if name in body}
        options = Options(
            DIALECT,
            principal,
            priority=check_priority(body.get("priority", 0)),
            ttl=check_seconds(body.get("ttl", 86400.0), "ttl", least=1.0),
            timeout=None if body.get("timeout") is None else check_seconds(body["timeout"], "timeout", least=0.1),
            key=body.get("key") or request.headers.get("Idempotency-Key"),
            extra={"name": body["name"][:_MAX_NAME]} if body.get("name") else None,
            **given,
        )
        wait = check_seconds(body.get("wait", 0.0), "wait")
        asked = {name: body[name] for name in _REQUEST if name in body}
        if "graph" in body:
            job, created = await self._gateway.submit_graph(body["graph"], asked, options)
        else:
            if not principal.may(DEPLOY):
                raise AccessDenied(
                    f"A workflow that is not deployed needs the role {DEPLOY!r}. Ask the owner of the gateway for a token with it.",
                    reason="role", needed=DEPLOY,
                )  # fmt: skip
            job, created = await self._submit_workflow(body["workflow"], asked, options)
        if wait and not job.is_final:
            return await self._answer(request, job.job_id, wait)
        return json_response(job.summary(), 202 if created else 200)

    async def _submit_workflow(self, workflow: dict[str, Any], asked: dict[str, Any], options: Options) -> tuple[Job, bool]:
        if "steps" in workflow and not _is_node(workflow["steps"]):
            return await self._gateway.submit_composite(workflow, options)
        prompt = workflow["prompt"] if "prompt" in workflow and not _is_node(workflow["prompt"]) else workflow
        if workflow.get("extra_data") and prompt is not workflow:
            asked.setdefault("extra_data", workflow["extra_data"])
        return await self._gateway.submit_prompt(prompt, asked, options)

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def jobs(self, request: web.Request) -> web.Response:
        """GET /v1/jobs"""
        query = request.query
        found = self._gateway.store.newest(
            principal=only_of(principal_of(request)),
            statuses=[name for name in query.get("status", "").split(",") if name],
            target=query.get("target"),
            dialect=query.get("dialect"),
            before=None if "before" not in query else number(query["before"], "before", 0.0),
            last=query.get("last"),
            limit=int(number(query.get("limit"), "limit", 100, least=1)),
        )
        return json_response({"jobs": [job.summary() for job in await asyncio.wrap_future(found)]})

    async def queue(self, request: web.Request) -> web.Response:
        """GET /v1/queue"""
        limit = int(number(request.query.get("limit"), "limit", 1000, least=1, most=10_000))
        found = self._gateway.store.queue(principal=only_of(principal_of(request)), target=request.query.get("target"), limit=limit)
        return json_response({"jobs": [job.summary() for job in await asyncio.wrap_future(found)]})

    async def job(self, request: web.Request) -> web.Response:
        """GET /v1/jobs/{job_id}"""
        return json_response((await self._gateway.job(request.match_info["job_id"], only_of(principal_of(request)))).summary())

    async def steps(self, request: web.Request) -> web.Response:
        """GET /v1/jobs/{job_id}/steps"""
        job = await self._gateway.job(request.match_info["job_id"], only_of(principal_of(request)))
        found = await asyncio.wrap_future(self._gateway.store.newest(parent=job.job_id, limit=1000))
        return json_response({"steps": [step.summary() for step in found]})

    async def output(self, request: web.Request) -> web.Response:
        """GET /v1/jobs/{job_id}/output"""
        wait = number(request.query.get("wait"), "wait", 0.0, most=_MAX_WAIT)
        return await self._answer(request, request.match_info["job_id"], wait)

    async def _answer(self, request: web.Request, job_id: str, wait: float) -> web.Response:
        job, output = await self._gateway.wait(job_id, min(wait, _MAX_WAIT), only_of(principal_of(request)))
        return json_response(describe(job, output, caller_of(request).url), 200 if job.is_final else 202)

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /v1/jobs/{job_id}/cancel"""
        return json_response((await self._gateway.cancel(request.match_info["job_id"], only_of(principal_of(request)))).summary())

    async def retry(self, request: web.Request) -> web.Response:
        """POST /v1/jobs/{job_id}/retry"""
        found = self._gateway.store.retry(request.match_info["job_id"], only_of(principal_of(request)))
        return json_response((await asyncio.wrap_future(found)).summary())

    async def pause(self, request: web.Request) -> web.Response:
        """POST /v1/jobs/{job_id}/pause"""
        return await self._change(request, paused=True)

    async def resume(self, request: web.Request) -> web.Response:
        """POST /v1/jobs/{job_id}/resume"""
        return await self._change(request, paused=False)

    async def prioritise(self, request: web.Request) -> web.Response:
        """POST /v1/jobs/{job_id}/priority"""
        body = await read_json(request, 1 << 10)
        if not isinstance(body, dict) or "priority" not in body:
            raise InvalidArgument('The body must be {"priority": NUMBER}.')
        return await self._change(request, priority=check_priority(body["priority"]))

    async def _change(self, request: web.Request, **values: Any) -> web.Response:
        found = self._gateway.store.change(request.match_info["job_id"], only_of(principal_of(request)), **values)
        return json_response((await asyncio.wrap_future(found)).summary())

    async def move(self, request: web.Request) -> web.Response:
        """POST /v1/jobs/{job_id}/move"""
        body = await read_json(request, 1 << 10)
        before = body.get("before") if isinstance(body, dict) else ""
        if before is not None and not (isinstance(before, str) and before):
            raise InvalidArgument('The body must be {"before": JOB_ID}, or {} for the front of the queue.')
        principal = principal_of(request)
        if before is None and not principal.may(ADMIN):
            raise AccessDenied(
                "Moving a job before those of others needs the role 'admin'. Name one of your own jobs in 'before'.", reason="role"
            )
        found = self._gateway.store.move(request.match_info["job_id"], only_of(principal), before=before)
        return json_response((await asyncio.wrap_future(found)).summary())

    # -- events, files ------------------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/events"""
        return await self._http.send_events(
            request, self._gateway.hub.stream(last_event(request), principal=only_of(principal_of(request)))
        )

    async def job_events(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/jobs/{job_id}/events"""
        job = await self._gateway.job(request.match_info["job_id"], only_of(principal_of(request)))
        after = last_event(request) or 0
        return await self._http.send_events(request, self._gateway.hub.stream(after, job_id=job.job_id, has_ended=job.is_final))

    async def file(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/jobs/{job_id}/files/{index}"""
        _, output = await self._gateway.wait(request.match_info["job_id"], 0, only_of(principal_of(request)))
        files, index = (output or {}).get("files") or [], request.match_info["index"]
        if not index.isdigit() or int(index) >= len(files):
            raise UnknownName(f"The job has no file {index[:20]!r}. It has {len(files)} files, numbered from 0.", name=index[:20])
        return await send_file(request, self._gateway.fleet, files[int(index)])

    async def artifact(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/jobs/{job_id}/artifacts/{hash}"""
        job, output = await self._gateway.wait(request.match_info["job_id"], 0, only_of(principal_of(request)))
        name, wire = request.match_info["hash"], (output or {}).get("wire") or {"skeleton": None, "payloads": []}
        if name not in {ref.hash for ref in references(wire)}:
            raise UnknownName(f"The output of job {job.job_id} has no artifact {name[:80]!r}.", name=name[:80])
        return await send_artifact(request, self._gateway.fleet, name, output.get("endpoints") or [str(job.place)])

    # -- the gateway --------------------------------------------------------------------------------------------

    async def checkpoints(self, request: web.Request) -> web.Response:
        """GET /v1/checkpoints"""
        fleet = self._gateway.fleet
        await fleet.refresh()
        names = [state.name for state in fleet.states.values() if state.is_up and state.kind == "comfy"]
        answers = await asyncio.gather(*(on_loop_thread(fleet.client(name).capabilities()) for name in names), return_exceptions=True)
        found: dict[tuple[str, str], list[str]] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, YggdrasillError):
                fleet.lost(name, answer.message)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for folder, files in ((answer.get("comfy") or {}).get("models") or {}).items():
                    for file in files:
                        found.setdefault((str(folder), str(file)), []).append(name)
        listed = [{"folder": folder, "name": file, "endpoints": sorted(where)} for (folder, file), where in sorted(found.items())]
        return json_response({"checkpoints": listed, "endpoints": sorted(names)})

    async def endpoints(self, request: web.Request) -> web.Response:
        """GET /v1/endpoints"""
        await self._gateway.fleet.refresh()
        states = self._gateway.fleet.states.values()
        return json_response({"endpoints": [state.summary() for state in states], "pools": await self._pools()})

    async def _pools(self) -> list[dict[str, Any]]:
        seen, names = self._gateway.limits.worker_seen, self._gateway.pools
        return [{"name": name, "workers": await asyncio.wrap_future(self._gateway.work.workers(name, seen))} for name in names]

    async def health(self, request: web.Request) -> web.Response:
        """GET /v1/health"""
        counts = await asyncio.wrap_future(self._gateway.store.counts())
        states = self._gateway.fleet.states.values()
        return json_response({"status": "ok", "jobs": counts, "endpoints": {state.name: state.is_up for state in states}})


def _is_node(value: Any) -> bool:
    """Return whether a value is a node of a prompt, whose id may be any text."""
    return isinstance(value, Mapping) and "class_type" in value


def _checked(body: Any) -> dict[str, Any]:
    """Return the body of a submission. Raise `InvalidArgument` for unknown keys, wrong types, and both or neither of graph and workflow."""
    if not isinstance(body, Mapping):
        raise InvalidArgument("The body must be a JSON object.")
    unknown = sorted(set(body) - _KEYS)
    if unknown:
        raise InvalidArgument(f"Unknown keys {', '.join(map(repr, unknown[:8]))}. Available: {', '.join(map(repr, sorted(_KEYS)))}.")
    found = {name: value for name, value in body.items() if value is not None}
    for name, kind in _KINDS.items():
        if name in found and (not isinstance(found[name], kind) or (isinstance(found[name], bool) and kind is not bool)):
            raise InvalidArgument(f"{name!r} must be a {getattr(kind, '__name__', kind)}, got {type(found[name]).__name__}.")
    if ("graph" in found) == ("workflow" in found):
        raise InvalidArgument("The body needs either 'graph', the id of a deployed graph, or 'workflow'.")
    if "inputs" in found and "wire" in found:
        raise InvalidArgument("The body needs either 'inputs', as JSON, or 'wire', in wire form.")
    return found
