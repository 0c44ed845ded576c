"""RunPod's dialect for clients: ``/v2/{endpoint}/run``, ``runsync``, ``status``, ``stream``, ``cancel``, ``retry``, ``purge-queue`` and ``health``.

An endpoint is a pool of workers, a graph that an endpoint of the gateway serves, whose inputs are then those of the job, or the name of an
endpoint, which then runs the ComfyUI prompt in ``input.workflow``. Without a prefix the only pool or graph is meant.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from yggdrasill.errors import AccessDenied, InvalidArgument, UnknownJob, unknown_name
from yggdrasill.gateway.http import Http, json_response, plain_output, principal_of
from yggdrasill.gateway.models import POOL, Job, check_seconds
from yggdrasill.gateway.service import Gateway, Options, only_of
from yggdrasill.protocol.states import COMPLETED, FAILED, IN_PROGRESS, IN_QUEUE
from yggdrasill.server_ext.bodies import read_json
from yggdrasill.server_ext.principals import DEPLOY, READ, RUN
from yggdrasill.server_ext.routes import number

__all__ = ["DIALECT", "PREFIXES", "RunpodDialect", "describe", "error_body"]

DIALECT = "runpod"
PREFIXES = ("/v2/{endpoint}", "/yggdrasill/serverless/{endpoint}", "")
_WAIT_MS, _LEAST_WAIT_MS, _MOST_WAIT_MS = 90_000.0, 1000.0, 300_000.0
_STREAM_SECONDS = 1.0
_TTL_MS, _LEAST_TTL_MS, _MOST_TTL_MS = 86_400_000, 10_000, 7 * 86_400_000
_TIMEOUT_MS, _LEAST_TIMEOUT_MS = 600_000, 5000
_LOW_PRIORITY = -100
_S3_NOTE = "The gateway stores no credentials. Configure the bucket at the worker."


def error_body(error: dict[str, Any], status: int) -> Any:
    """Return an error as RunPod's API does: a text; the class is in ``type``."""
    return {"error": error["message"], "type": error["type"], "status": status}


def describe(job: Job, output: Any) -> dict[str, Any]:
    """Return a job as the answer to ``status``. Delays are in milliseconds."""
    found: dict[str, Any] = {"id": job.job_id, "status": job.status}
    began = job.started if job.started is not None else job.finished
    if began is not None:
        found["delayTime"] = max(0, round(1000 * (began - job.created)))
    if job.started is not None and job.finished is not None:
        found["executionTime"] = max(0, round(1000 * (job.finished - job.started)))
    if job.place is not None:
        found["workerId"] = job.place
    if job.retries:
        found["retries"] = job.retries
    if job.status == IN_PROGRESS and job.progress is not None:
        found["output"] = job.progress.get("output", job.progress)
    if output is not None:
        found["output"] = _shown(job, output)
    if job.error is not None:
        # a worker's error is a text that clients show; one of the gateway has its code in front
        found["error"] = job.error["message"] if job.kind == POOL else json.dumps(job.error)
    return found


def _shown(job: Job, output: Any) -> Any:
    """Return the output of a job: what a worker returned, or the outputs of a graph, or the files of a ComfyUI."""
    if "output" in output:
        return output["output"]
    files = [{**file, "path": f"/v1/jobs/{job.job_id}/files/{index}"} for index, file in enumerate(output.get("files") or ())]
    if output.get("wire") is not None:
        plain = plain_output(output["wire"], lambda name: f"/v1/jobs/{job.job_id}/artifacts/{name}")
        return {**plain, "files": files} if files and isinstance(plain, dict) else plain
    return {"files": files, "texts": output.get("texts") or {}}


class RunpodDialect:
    """The routes of RunPod's clients for ``gateway``."""

    def __init__(self, gateway: Gateway, http: Http) -> None:
        self._gateway, self._http = gateway, http

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes below each prefix."""
        for prefix in PREFIXES:
            for methods, path, handler, role in (
                (("POST",), "/run", self.run, RUN),
                (("POST",), "/runsync", self.runsync, RUN),
                (("GET", "POST"), "/status/{job_id}", self.status, READ),
                (("GET", "POST"), "/stream/{job_id}", self.stream, READ),
                (("POST",), "/cancel/{job_id}", self.cancel, RUN),
                (("POST",), "/retry/{job_id}", self.retry, RUN),
                (("POST",), "/purge-queue", self.purge, RUN),
                (("GET",), "/health", self.health, READ),
            ):
                guarded = self._http.guarded(handler, role, error_body=error_body)
                for method in methods:
                    router.add_route(method, prefix + path, guarded)

    def _target(self, request: web.Request) -> str:
        return request.match_info.get("endpoint") or self._gateway.default_target()

    # -- submissions --------------------------------------------------------------------------------------------

    async def run(self, request: web.Request) -> web.Response:
        """POST /run"""
        limits = self._gateway.limits
        job, _ = await self._submit(request, limits.run_bytes, limits.run_retention)
        return json_response({"id": job.job_id, "status": job.status})

    async def runsync(self, request: web.Request) -> web.Response:
        """POST /runsync"""
        limits = self._gateway.limits
        wait = number(request.query.get("wait"), "wait", _WAIT_MS, most=_MOST_WAIT_MS)
        job, _ = await self._submit(request, limits.runsync_bytes, limits.runsync_retention)
        job, output = await self._gateway.wait(job.job_id, max(wait, _LEAST_WAIT_MS) / 1000)
        return json_response(describe(job, output))

    async def _submit(self, request: web.Request, limit: int, retention: float) -> tuple[Job, bool]:
        target, principal = self._target(request), principal_of(request)
        body = await read_json(request, limit)
        if not isinstance(body, Mapping) or not isinstance(body.get("input"), Mapping):
            raise InvalidArgument('The body must be a JSON object with the object "input".')
        given = body["input"]
        policy = {} if body.get("policy") is None else body["policy"]
        if not isinstance(policy, Mapping):
            raise InvalidArgument('"policy" must be an object with executionTimeout, ttl and lowPriority.')
        if body.get("s3Config"):
            raise InvalidArgument(f'"s3Config" is not accepted. {_S3_NOTE}')
        options = Options(
            DIALECT,
            principal,
            priority=_LOW_PRIORITY if policy.get("lowPriority") is True else 0,
            ttl=_milliseconds(policy, "ttl", _TTL_MS, _LEAST_TTL_MS, _MOST_TTL_MS),
            timeout=_milliseconds(policy, "executionTimeout", _TIMEOUT_MS, _LEAST_TIMEOUT_MS, _MOST_TTL_MS),
            retention=retention,
            key=request.headers.get("Idempotency-Key"),
            webhook=body.get("webhook"),
        )
        return await self._submit_to(target, given, options)

    async def _submit_to(self, target: str, given: Mapping[str, Any], options: Options) -> tuple[Job, bool]:
        gateway = self._gateway
        if target in gateway.pools:
            return await gateway.submit_to_pool(target, {"input": given}, options)
        if target in gateway.fleet.registry.endpoints:
            if not options.principal.may(DEPLOY):
                raise AccessDenied(f"A workflow that is not deployed needs the role {DEPLOY!r}.", reason="role", needed=DEPLOY)
            rest = {name: given[name] for name in ("inputs", "images", "seed", "extra_data") if name in given}
            chosen = Options(**{**vars(options), "endpoint": target})
            return await gateway.submit_prompt(_workflow(given), rest, chosen)
        if not any(target in state.graphs for state in gateway.fleet.states.values()) and target not in gateway.fleet.registry.placements:
            if await gateway.is_pool(target):
                return await gateway.submit_to_pool(target, {"input": given}, options)
            await gateway.fleet.refresh(load=0.2, graphs=0.2)
            graphs = {graph for state in gateway.fleet.states.values() for graph in state.graphs}
            if target not in graphs:
                raise unknown_name("endpoint", target, {*graphs, *gateway.pools, *gateway.fleet.registry.endpoints})
        return await gateway.submit_graph(target, {"inputs": dict(given)}, options)

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def _own(self, request: web.Request) -> tuple[Job, Any]:
        """Return the job of a request, which must be one of the endpoint in its path, and its output."""
        job, output = await self._gateway.wait(request.match_info["job_id"], 0, only_of(principal_of(request)))
        endpoint = request.match_info.get("endpoint")
        if endpoint is not None and endpoint not in (job.target, job.extra.get("endpoint")):
            raise UnknownJob(f"Unknown job {job.job_id!r} of endpoint {endpoint[:80]!r}.", name=job.job_id)
        return job, output

    async def status(self, request: web.Request) -> web.Response:
        """GET /status/{job_id}"""
        job, output = await self._own(request)
        if "wait" in request.query and not job.is_final:
            wait = number(request.query["wait"], "wait", 0.0, most=_MOST_WAIT_MS)
            job, output = await self._gateway.wait(job.job_id, wait / 1000)
        return json_response(describe(job, output))

    async def stream(self, request: web.Request) -> web.Response:
        """GET /stream/{job_id}"""
        job, _ = await self._own(request)
        job, chunks = await asyncio.wrap_future(self._gateway.store.take_stream(job.job_id))
        if not chunks and not job.is_final:
            await self._gateway.wait(job.job_id, _STREAM_SECONDS)
            job, chunks = await asyncio.wrap_future(self._gateway.store.take_stream(job.job_id))
        return json_response({"status": job.status, "stream": [{"output": chunk.data.get("output")} for chunk in chunks]})

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /cancel/{job_id}"""
        job, _ = await self._own(request)
        job = await self._gateway.cancel(job.job_id)
        return json_response({"id": job.job_id, "status": job.status})

    async def retry(self, request: web.Request) -> web.Response:
        """POST /retry/{job_id}"""
        job, _ = await self._own(request)
        job = await asyncio.wrap_future(self._gateway.store.retry(job.job_id))
        return json_response({"id": job.job_id, "status": job.status})

    async def purge(self, request: web.Request) -> web.Response:
        """POST /purge-queue"""
        found = self._gateway.store.purge(self._target(request), only_of(principal_of(request)))
        return json_response({"removed": await asyncio.wrap_future(found), "status": "completed"})

    async def health(self, request: web.Request) -> web.Response:
        """GET /health"""
        target, gateway = self._target(request), self._gateway
        counts = await asyncio.wrap_future(gateway.store.counts(target))
        if target in gateway.pools:
            seen = await asyncio.wrap_future(gateway.work.workers(target, gateway.limits.worker_seen))
            running, total = sum(count > 0 for count in seen.values()), len(seen)
        else:
            states = [state for state in gateway.fleet.states.values() if target in state.graphs or state.name == target]
            running, total = sum(state.load > 0 for state in states if state.is_up), sum(state.is_up for state in states)
        jobs = {
            "completed": counts[COMPLETED],
            "failed": counts[FAILED],
            "inProgress": counts[IN_PROGRESS],
            "inQueue": counts[IN_QUEUE],
            "retried": counts["retries"],
        }
        workers = {"idle": total - running, "running": running, "ready": total, "initializing": 0, "throttled": 0, "unhealthy": 0}
        return json_response({"jobs": jobs, "workers": workers})


def _milliseconds(policy: Mapping[str, Any], name: str, default: int, least: int, most: int) -> float:
    """Return a time of a policy in seconds. Raise `InvalidArgument` for another value."""
    value = policy.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f'"{name}" must be a number of milliseconds from {least} to {most}, got {str(value)[:40]!r}.')
    return check_seconds(value / 1000, name)


def _workflow(given: Mapping[str, Any]) -> Any:
    """Return the prompt in an input: an object or JSON text. Raise `InvalidArgument` for another value."""
    workflow = given.get("workflow", given.get("prompt"))
    if isinstance(workflow, str):
        try:
            workflow = json.loads(workflow)
        except ValueError as error:
            raise InvalidArgument(f'"workflow" is neither an object nor JSON: {error}.') from None
    if not isinstance(workflow, Mapping):
        raise InvalidArgument('The input needs "workflow": a ComfyUI prompt in the API format, as an object or JSON text.')
    return workflow
