"""RunPod's dialect for workers: they take jobs, report progress and chunks of output, return results, and learn which jobs to stop.

A worker of the RunPod SDK is pointed here by its environment: ``RUNPOD_WEBHOOK_GET_JOB``, ``RUNPOD_WEBHOOK_POST_OUTPUT``,
``RUNPOD_WEBHOOK_POST_STREAM`` and ``RUNPOD_WEBHOOK_PING``; see ``docs/gateway.md``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from yggdrasill.errors import CorruptData, PayloadTooLarge
from yggdrasill.gateway.dialects.runpod import PREFIXES, error_body
from yggdrasill.gateway.http import Http, json_response
from yggdrasill.gateway.models import Job, check_name
from yggdrasill.gateway.service import Gateway
from yggdrasill.protocol.states import COMPLETED, FAILED, IN_PROGRESS
from yggdrasill.server_ext.bodies import read_json
from yggdrasill.server_ext.principals import WORK
from yggdrasill.server_ext.routes import number

__all__ = ["WorkerDialect", "environment_of_worker"]

_TAKE_SECONDS = 20.0
_STOP_SECONDS = 5.0
_STOP_POLL_SECONDS = 0.5
_MAX_BATCH = 100
_MAX_ERROR = 4000


def environment_of_worker(url: str, pool: str, worker: str, token: str) -> dict[str, str]:
    """Return the environment that makes a worker of the RunPod SDK take the jobs of a pool of the gateway at ``url``."""
    base = f"{url}/v2/{pool}"
    return {
        "RUNPOD_ENDPOINT_ID": pool,
        "RUNPOD_POD_ID": worker,
        "RUNPOD_AI_API_KEY": token,
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
    }


class WorkerDialect:
    """The routes of RunPod's workers for ``gateway``."""

    def __init__(self, gateway: Gateway, http: Http) -> None:
        self._gateway, self._http = gateway, http

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes below each prefix."""
        for prefix in PREFIXES:
            for methods, path, handler in (
                (("GET",), "/job-take/{worker}", self.take),
                (("GET",), "/job-take-batch/{worker}", self.take_batch),
                (("POST",), "/job-done/{worker}/{job_id}", self.done),
                (("POST",), "/job-stream/{worker}/{job_id}", self.stream),
                (("GET",), "/job-stop/{worker}", self.stop),
                (("GET", "POST"), "/ping/{worker}", self.ping),
            ):
                guarded = self._http.guarded(handler, WORK, error_body=error_body)
                for method in methods:
                    router.add_route(method, prefix + path, guarded)

    def _pool(self, request: web.Request) -> str:
        return request.match_info.get("endpoint") or self._gateway.default_target()

    # -- taking -------------------------------------------------------------------------------------------------

    async def take(self, request: web.Request) -> web.Response:
        """GET /job-take/{worker}"""
        found = await self._take(request, 1)
        return json_response(found[0]) if found else web.Response(status=204)

    async def take_batch(self, request: web.Request) -> web.Response:
        """GET /job-take-batch/{worker}"""
        count = int(number(request.query.get("batch_size"), "batch_size", 1, least=1, most=_MAX_BATCH))
        found = await self._take(request, count)
        return json_response(found) if found else web.Response(status=204)

    async def _take(self, request: web.Request, count: int) -> list[dict[str, Any]]:
        taken = await self._gateway.take(self._pool(request), request.match_info["worker"], count, _TAKE_SECONDS)
        if request.transport is None or request.transport.is_closing():
            # the worker has gone while it waited
            for job, _ in taken:
                await asyncio.wrap_future(self._gateway.work.give_back(job, counted=False))
            return []
        return [{"id": job.job_id, "input": asked.get("input")} for job, asked in taken]

    # -- results ------------------------------------------------------------------------------------------------

    async def done(self, request: web.Request) -> web.Response:
        """POST /job-done/{worker}/{job_id}"""
        job = await self._gateway.worker_job(request.match_info["job_id"], request.match_info["worker"])
        if job is None:
            return _ignored()
        try:
            body = await read_json(request, self._gateway.limits.result_bytes)
        except PayloadTooLarge as error:
            facts = {"code": "result_too_large", "message": f"The result of the worker is too large. {error.message}"}
            await asyncio.wrap_future(self._gateway.work.finish(job, FAILED, error=facts))
            raise
        if not isinstance(body, Mapping):
            raise CorruptData("The result must be a JSON object with 'output' or 'error'.")
        if body.get("status") == IN_PROGRESS:
            await self._progress(job, body.get("output"))
        elif body.get("error") is not None:
            error_facts = self._http.redact({"code": "worker", "message": _error_text(body["error"])})
            output = {"output": body["output"]} if "output" in body else None
            await asyncio.wrap_future(self._gateway.work.finish(job, FAILED, error=error_facts, output=output))
        else:
            await asyncio.wrap_future(self._gateway.work.finish(job, COMPLETED, output={"output": body.get("output")}))
        return json_response({})

    async def _progress(self, job: Job, output: Any) -> None:
        """Store progress. What arrives after the end does not count, because workers send it from other threads."""
        facts = self._http.redact({"output": output})
        await asyncio.wrap_future(self._gateway.work.report(job, "progress", facts, progress=facts))

    async def stream(self, request: web.Request) -> web.Response:
        """POST /job-stream/{worker}/{job_id}"""
        job = await self._gateway.worker_job(request.match_info["job_id"], request.match_info["worker"])
        if job is None:
            return _ignored()
        body = await read_json(request, self._gateway.limits.chunk_bytes)
        output = body.get("output") if isinstance(body, Mapping) else body
        await asyncio.wrap_future(self._gateway.work.report(job, "stream", self._http.redact({"output": output})))
        return json_response({})

    # -- looking after ------------------------------------------------------------------------------------------

    async def stop(self, request: web.Request) -> web.Response:
        """GET /job-stop/{worker}"""
        loop = asyncio.get_running_loop()
        end = loop.time() + _STOP_SECONDS
        while True:
            found = await asyncio.wrap_future(self._gateway.work.stopped(check_name(request.match_info["worker"], "name of a worker")))
            is_gone = request.transport is None or request.transport.is_closing()
            if found or is_gone or loop.time() >= end:
                return json_response({"jobsToStop": found})
            await asyncio.sleep(_STOP_POLL_SECONDS)

    async def ping(self, request: web.Request) -> web.Response:
        """GET /ping/{worker}"""
        named = [*request.query.getall("job_id", []), *request.query.getall("job_ids", [])]
        ids = [name for text in named for name in text.split(",") if name]
        worker = check_name(request.match_info["worker"], "name of a worker")
        check_name(self._pool(request), "name of a pool")
        await asyncio.wrap_future(self._gateway.work.seen(self._pool(request), worker, ids, self._gateway.limits.worker_lease))
        return json_response({"status": "ok"})


def _ignored() -> web.Response:
    """Accept a result that does not count. An error would make the worker send it again."""
    return json_response({"ignored": True})


def _error_text(error: Any) -> str:
    """Return the message of a worker's error; its SDK sends JSON with a traceback and host names, which stay out of rows."""
    if isinstance(error, str):
        try:
            document = json.loads(error)
        except ValueError:
            return error[:_MAX_ERROR]
        error = document if isinstance(document, dict) else error
    if isinstance(error, Mapping):
        message = error.get("error_message") or error.get("message")
        if message is not None:
            kind = str(error.get("error_type") or "")
            name = kind.removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
            return f"{name}: {message}"[:_MAX_ERROR] if name else str(message)[:_MAX_ERROR]
    return json.dumps(error)[:_MAX_ERROR]
