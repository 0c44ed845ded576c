"""HTTP handlers: each parses a request, calls the service and encodes the response.

`add_routes` works on any aiohttp router, including that of a foreign application such as ComfyUI: authorization, limits and error
responses are in the handlers, not in middlewares.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from functools import partial
from typing import Any

from aiohttp import web

import yggdrasill
from yggdrasill.errors import AccessDenied, InvalidArgument, UnknownArtifact, UnknownName, UnsupportedVersion, YggdrasillError
from yggdrasill.protocol import models
from yggdrasill.protocol.states import WAITING_INPUTS
from yggdrasill.protocol.statuses import status_of
from yggdrasill.protocol.version import BASE_PATH, PROTOCOL, PROTOCOL_HEADER, REQUEST_VERSIONS, check_request_version
from yggdrasill.server_ext import bodies
from yggdrasill.server_ext.auth import Guard, check_role
from yggdrasill.server_ext.capabilities import describe_endpoint
from yggdrasill.server_ext.connections import Forwarding
from yggdrasill.server_ext.jobs.execution import error_dict
from yggdrasill.server_ext.jobs.model import Event, Job, Submission
from yggdrasill.server_ext.model_fetch import ModelRequest
from yggdrasill.server_ext.openapi import openapi_document
from yggdrasill.server_ext.principals import ADMIN, READ, RUN, Principal, private_key
from yggdrasill.server_ext.quotas import Written
from yggdrasill.server_ext.route_table import ROUTES
from yggdrasill.server_ext.service import Service
from yggdrasill.server_ext.upload_sessions import UploadSessions
from yggdrasill.values.stores.base import Writer
from yggdrasill.values.stores.threaded import ThreadedStore

__all__ = ["Endpoint", "add_routes", "last_event", "number", "request_key"]

_LOG = logging.getLogger("yggdrasill.server")
_MAX_WAIT = 60.0
_MAX_CLASSES = 100
# an error with more hashes is cleaned and encoded in a thread
_MANY_HASHES = 1000
_NO_RUN: dict[str, Any] = {"seed": None, "path": [], "pass_index": 0}
_EVENT_POLL_SECONDS = 0.5
#: A larger result does not follow the events of a submitted job; the caller requests it.
_MAX_RESULT_BYTES = 512 << 10
_CREDENTIALS = {"token", "access_token", "api_key", "authorization", "key"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request_key(name: str) -> Any:
    """Return a key for values of a request; aiohttp before 3.14 has texts only."""
    typed = getattr(web, "RequestKey", None)
    return f"yggdrasill.{name}" if typed is None else typed(name, object)


_CALLER, _PRINCIPAL, _PROTOCOL = map(request_key, ("caller", "principal", "protocol"))


def add_routes(router: web.UrlDispatcher, endpoint: Endpoint, off: str | None = None, prefix: str = "") -> None:
    """Add all routes to a router, below ``prefix``. If ``off`` is a reason why the endpoint cannot work, each responds with an error that has it."""
    base = prefix + BASE_PATH
    for route in ROUTES if off is None else ():
        handler = endpoint.guarded(getattr(endpoint, route.handler), route.role, signed=route.signed)
        if route.method == "GET":
            router.add_get(base + route.path, handler)
        else:
            router.add_route(route.method, base + route.path, handler)
    rest = endpoint.unknown_route if off is None else _refusing(off)
    router.add_route("*", base + "/{rest:.*}", endpoint.guarded(rest, READ))


def _refusing(reason: str) -> _Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise UnsupportedVersion(f"This server is not an endpoint: {reason}")

    return refuse


class Endpoint:
    """The handlers of one service and its guard."""

    def __init__(self, service: Service, guard: Guard, forwarding: Forwarding | None = None) -> None:
        self._service = service
        self._guard = guard
        self._forwarding = forwarding or Forwarding()
        self._artifacts = ThreadedStore(service.store)
        self._uploads = UploadSessions(service.store)
        self._document: dict[str, Any] | None = None

    # -- authorization and errors -------------------------------------------------------------------------------

    def guarded(self, handler: _Handler, role: str, *, signed: bool = False) -> _Handler:
        """Wrap ``handler``: check Origin, token, role and protocol first, and Host without the right token, and turn errors into error responses.

        The handler finds the `Principal` in ``request[_PRINCIPAL]``, except for a signed url, and the `Caller` in ``request[_CALLER]``.
        """

        async def guarded_handler(request: web.Request) -> web.StreamResponse:
            try:
                self._check(request, role, signed)
                return await handler(request)
            except YggdrasillError as error:
                if len(error.details.get("missing") or ()) > _MANY_HASHES:
                    return await asyncio.to_thread(self._error_response, error, status_of(error))
                return self._error_response(error, status_of(error))
            except (ConnectionError, asyncio.CancelledError, web.HTTPException):
                raise
            except Exception as error:  # noqa: BLE001 - logged and reported as status 500
                _LOG.exception("%s %s failed", request.method, request.path)
                return self._error_response(error, 500)

        return guarded_handler

    def _check(self, request: web.Request, role: str, signed: bool) -> None:
        headers = request.headers
        caller = request[_CALLER] = self._forwarding.caller(request)
        self._guard.check_origin(caller.host, headers.get("Origin"), headers.get("Sec-Fetch-Site"))
        if _CREDENTIALS & request.query.keys():
            raise AccessDenied("Tokens in urls end up in logs. Send the token as 'Authorization: Bearer TOKEN'.", reason="token")
        if signed and "sig" in request.query:
            self._service.signer.check(request.match_info["hash"], request.query.get("exp", ""), request.query["sig"])
        else:
            try:
                principal = request[_PRINCIPAL] = self._guard.authenticate(headers.get("Authorization"), caller.address)
            except AccessDenied:
                self._guard.check_host(caller.host)
                raise
            check_role(principal, role)
        given = headers.get(PROTOCOL_HEADER)
        request[_PROTOCOL] = REQUEST_VERSIONS.get(given) or check_request_version(given)

    def _error_response(self, error: Exception, status: int) -> web.Response:
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status in (429, 503) else {}
        return _json({"error": error_dict(error, self._service.redactor)}, status, headers)

    async def unknown_route(self, request: web.Request) -> web.Response:
        """Raise `UnknownName` for any other path."""
        raise UnknownName(
            f"Unknown route {request.method} {request.path[:200]}. GET {BASE_PATH}/openapi.json lists the routes.", name=request.path[:200]
        )

    # -- endpoint -----------------------------------------------------------------------------------------------

    async def health(self, request: web.Request) -> web.Response:
        """GET /health"""
        load = {"queue": self._service.queue_depth(), "memory": self._service.host.memory()}
        return _json({"status": "ok", "protocol": PROTOCOL, "version": yggdrasill.__version__, **load})

    async def capabilities(self, request: web.Request) -> web.Response:
        """GET /capabilities"""
        return _json(await asyncio.to_thread(describe_endpoint, self._service))

    async def nodes(self, request: web.Request) -> web.Response:
        """GET /nodes"""
        names = [name for name in request.query.get("classes", "").split(",") if name]
        if not 0 < len(names) <= _MAX_CLASSES:
            raise InvalidArgument(f"?classes has {len(names)} node classes; request 1 to {_MAX_CLASSES} at a time, as ?classes=A,B.")
        return _json(await asyncio.to_thread(self._service.host.node_forms, names))

    async def fingerprints(self, request: web.Request) -> web.Response:
        """POST /checkpoints/fingerprints"""
        body = await bodies.read_model_body(request, models.ModelFiles, self._service.limits.max_body_bytes)
        return _json({"fingerprints": await asyncio.to_thread(self._service.host.model_fingerprints, body.files)})

    async def openapi(self, request: web.Request) -> web.Response:
        """GET /openapi.json"""
        if self._document is None:
            self._document = openapi_document()
        return _json(self._document)

    def _record(self, request: web.Request, action: str, target: str, *, nbytes: int | None = None, job: str | None = None) -> None:
        self._service.access.audit.record(_principal(request).name, action, target, nbytes=nbytes, job=job)

    # -- graphs -------------------------------------------------------------------------------------------------

    async def graphs(self, request: web.Request) -> web.Response:
        """GET /graphs"""
        return _json({"graphs": await asyncio.to_thread(self._service.deployments.summaries)})

    async def deploy(self, request: web.Request) -> web.Response:
        """PUT /graphs/{graph_id}"""
        body = await bodies.read_model_body(request, models.GraphModel, self._service.limits.max_body_bytes)
        state, principal = None if body.state is None else body.state.model_dump(), _principal(request)
        wanted = request.match_info["graph_id"], body.kind, body.config, state, body.idle_after
        if request[_PROTOCOL] < 2:
            deployment, created = await self._service.deploy(*wanted, principal)
            if created:
                self._record(request, "deploy", deployment.graph_id)
            return _json({**deployment.summary(), "created": created}, 201 if created else 200)
        call = Submission(
            private_key(principal.name, body.key) if body.key else "", {}, {}, _NO_RUN, nbytes=_body_bytes(request),
            principal=principal.name, max_jobs=principal.max_jobs,
        )  # fmt: skip
        job = await self._service.submit_deployment(*wanted, call, principal)
        if isinstance(job, dict):
            return _json(job)
        self._record(request, "deploy", job.graph_id, job=job.job_id)
        await self._service.job_manager.wait(job, min(body.wait, _MAX_WAIT), lambda: _is_connected(request))
        created = job.output is not None and job.output["created"]
        return _json(await self._service.result(job), 202 if not job.is_final else 201 if created else 200)

    async def graph(self, request: web.Request) -> web.Response:
        """GET /graphs/{graph_id}"""
        deployment = await self._service.deployment(request.match_info["graph_id"])
        return _json({**deployment.summary(), "config": deployment.config, "idle_after": deployment.idle_after})

    async def remove(self, request: web.Request) -> web.Response:
        """DELETE /graphs/{graph_id}"""
        await self._service.remove(request.match_info["graph_id"], _principal(request))
        self._record(request, "remove", request.match_info["graph_id"])
        return web.Response(status=204, headers={PROTOCOL_HEADER: str(PROTOCOL)})

    async def contract(self, request: web.Request) -> web.Response:
        """GET /graphs/{graph_id}/contract"""
        return _json({**(await self._service.deployment(request.match_info["graph_id"])).contract, "conditional": True})

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """POST /graphs/{graph_id}/jobs"""
        body = await bodies.read_model_body(request, models.JobModel, self._service.limits.max_body_bytes)
        job = await self._service.submit(request.match_info["graph_id"], self._submission(request, body, _if_match(request)))
        return await self._send_started(request, job, body.wait)

    async def submit_workflow(self, request: web.Request) -> web.StreamResponse:
        """POST /workflows"""
        body = await bodies.read_model_body(request, models.WorkflowModel, self._service.limits.max_body_bytes)
        job = await self._service.submit_workflow(body.graph_id, body.prompt, self._submission(request, body))
        return await self._send_started(request, job, body.wait)

    def _submission(self, request: web.Request, body: models.JobModel, graph_hash: str | None = None) -> Submission:
        inputs = {"skeleton": body.inputs.skeleton, "payloads": body.inputs.payloads}
        principal = _principal(request)
        return Submission(
            private_key(principal.name, body.key), inputs, body.options, body.run.model_dump(), body.detached, body.orphan_after, body.timeout,
            _body_bytes(request), body.priority, body.deadline, principal.name, blocking=request[_PROTOCOL] < 2, max_jobs=principal.max_jobs,
            graph_hash=graph_hash,
        )  # fmt: skip

    async def _send_started(self, request: web.Request, job: Job, wait: float) -> web.StreamResponse:
        """Send the result of a submitted job. In protocol 1 the response waits until the inputs are there or are known to be missing."""
        if request[_PROTOCOL] < 2:
            await self._service.job_manager.wait_staged(job, lambda: _is_connected(request))
            if job.status == WAITING_INPUTS:
                raise UnknownArtifact(
                    f"this endpoint lacks {len(job.missing)} artifacts of the inputs; send them, then send the same call again",
                    missing=list(job.missing),
                )
        elif request.headers.get("Accept") == bodies.EVENT_STREAM:
            await self._service.job_manager.wait(job, min(wait, _MAX_WAIT), lambda: _is_connected(request))
            if job.status != WAITING_INPUTS:
                return await self._send_followed(request, job)
        return await self._send_result(request, job, wait)

    async def _send_followed(self, request: web.Request, job: Job) -> web.StreamResponse:
        """Send the row of a submitted job, its events and its result as an event stream."""

        async def result() -> bytes:
            """Return the message with the result, empty if that is too large for an event or the job has not ended."""
            message = _message("result", await self._service.result(job, request[_CALLER].url)) if job.is_final else b""
            return message if len(message) <= _MAX_RESULT_BYTES else b""

        if job.is_final:
            # a key that was cancelled before its call arrived has no row
            async with aclosing(self._service.hub.stored(job.job_id, 0)) as stored:
                messages = [event.message async for event in stored]
            return bodies.event_response(b"".join([_message("job", job.row()), *messages, await result()]))
        events = self._service.events(job.job_id, 0, _EVENT_POLL_SECONDS, _only(request))
        events = self._while_valid(_principal(request), events)
        return await bodies.send_events(request, events, 202, _message("job", job.row()), result)

    async def _send_result(self, request: web.Request, job: Job, wait: float) -> web.Response:
        await self._service.job_manager.wait(job, min(wait, _MAX_WAIT), lambda: _is_connected(request))
        return _json(await self._service.result(job, request[_CALLER].url), 200 if job.is_final else 202)

    async def fetch_model(self, request: web.Request) -> web.Response:
        """POST /models"""
        body = await bodies.read_model_body(request, models.ModelFetchModel, self._service.limits.max_body_bytes)
        wanted = ModelRequest(body.url, body.folder, body.name, body.sha256)
        principal = _principal(request)
        job = await self._service.fetch_model(wanted, private_key(principal.name, body.key), principal)
        self._record(request, "fetch_model", f"{body.folder}/{body.name}", job=job.job_id)
        return _json(job.row(), 202)

    async def jobs(self, request: web.Request) -> web.Response:
        """GET /jobs"""
        query = request.query
        limit = number(query.get("limit"), "limit", 100)
        return _json({"jobs": await self._service.jobs(query.get("graph_id"), query.get("status"), int(limit), _only(request))})

    async def job(self, request: web.Request) -> web.Response:
        """GET /jobs/{job_id}"""
        return _json((await self._service.job_manager.find(request.match_info["job_id"], _only(request))).row())

    async def job_of_key(self, request: web.Request) -> web.Response:
        """GET /jobs/keys/{key}"""
        principal = _principal(request).name
        return _json((await self._service.job_of_key(private_key(principal, request.match_info["key"]), principal)).row())

    async def output(self, request: web.Request) -> web.Response:
        """GET /jobs/{job_id}/output"""
        wait = number(request.query.get("wait"), "wait")
        return await self._send_result(request, await self._service.job_manager.find(request.match_info["job_id"], _only(request)), wait)

    async def check_inputs(self, request: web.Request) -> web.Response:
        """POST /jobs/{job_id}/inputs"""
        return _json((await self._service.check_inputs(request.match_info["job_id"], _only(request))).row())

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /jobs/{job_id}/cancel"""
        job = await self._service.cancel(request.match_info["job_id"], _only(request))
        if job.principal != _principal(request).name:
            self._record(request, "cancel", job.principal, job=job.job_id)
        return _json(job.row())

    async def cancel_key(self, request: web.Request) -> web.Response:
        """POST /jobs/keys/{key}/cancel"""
        principal = _principal(request).name
        return _json((await self._service.cancel_key(private_key(principal, request.match_info["key"]), principal)).row())

    async def job_events(self, request: web.Request) -> web.StreamResponse:
        """GET /jobs/{job_id}/events"""
        job = await self._service.job_manager.find(request.match_info["job_id"], _only(request))
        return await self._send_events(request, job.job_id)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """GET /events"""
        return await self._send_events(request, None)

    async def _send_events(self, request: web.Request, job_id: str | None) -> web.StreamResponse:
        events = self._service.events(job_id, last_event(request), _EVENT_POLL_SECONDS, _only(request))
        return await bodies.send_events(request, self._while_valid(_principal(request), events))

    async def _while_valid(self, principal: Principal, events: AsyncGenerator[Event | None, None]) -> AsyncGenerator[Event | None, None]:
        """Yield events until the token with which the stream was opened is rotated, revoked or expired."""
        async with aclosing(events) as stream:
            async for event in stream:
                if not self._guard.principals.accepts(principal):
                    return
                yield event

    # -- artifacts ----------------------------------------------------------------------------------------------

    async def artifact_folder(self, request: web.Request) -> web.Response:
        """GET /artifacts/folder"""
        # files in the folder count against no quota
        may_share = request[_CALLER].on_this_machine and _principal(request).may(RUN) and _principal(request).quota_bytes is None
        shared = self._service.shared if may_share else None
        folder, quota = (None, None) if shared is None else (await self._artifacts.run(shared.folder.resolve), shared.quota_bytes)
        return _json({"folder": None if folder is None else str(folder), "store_id": self._service.store.store_id, "quota_bytes": quota})

    async def missing(self, request: web.Request) -> web.Response:
        """POST /artifacts/missing"""
        body = await bodies.read_model_body(request, models.ArtifactHashes, self._service.limits.max_body_bytes)
        return _json({"missing": await self._artifacts.missing(body.hashes)})

    def _counted(self, request: web.Request, name: str | None = None) -> AbstractAsyncContextManager[Written]:
        """Return the context in which the body of a request is stored and counted against the quota of its principal, if it has one."""
        principal = _principal(request)
        if principal.quota_bytes is None:
            return nullcontext(_uncounted)
        return self._service.access.quotas.writing(principal, request.content_length, name)

    async def batch(self, request: web.Request) -> web.Response:
        """POST /artifacts/batch"""
        async with self._counted(request) as written:
            stored = await bodies.receive_batch(request, self._artifacts, _writer(request), written)
        self._record(request, "write_batch", f"{stored} artifacts", nbytes=request.content.total_bytes)
        return _json({"stored": stored})

    async def put_artifact(self, request: web.Request) -> web.Response:
        """PUT /artifacts/{hash}"""
        limit, name = self._service.limits.max_artifact_bytes, request.match_info["hash"]
        async with self._counted(request, name) as written:
            created = await bodies.receive_artifact(request, self._artifacts, name, limit, _writer(request))
            if created:
                written(name, request.content.total_bytes)
        if created:
            self._record(request, "write", name, nbytes=request.content.total_bytes)
        return _json({}, 201 if created else 200)

    async def get_artifact(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD /artifacts/{hash}"""
        return await bodies.send_artifact(request, self._artifacts, self._service.in_flight, request.match_info["hash"])

    async def put_piece(self, request: web.Request) -> web.Response:
        """PUT /artifacts/{hash}/uploads/{upload_id}"""
        name, upload_id = request.match_info["hash"], request.match_info["upload_id"]
        principal, total = _principal(request), bodies.content_range(request)[2]
        is_open = partial(self._uploads.is_open, principal.name, name, upload_id)
        counted: AbstractAsyncContextManager[Written] = nullcontext(_uncounted)
        if principal.quota_bytes is not None:
            counted = self._service.access.quotas.uploading(principal, total, name, upload_id, is_open)
        async with counted as written:
            offset, stored, created = await bodies.receive_piece(request, self._artifacts, self._uploads, name, upload_id, _writer(request))
            if created:
                written(name, total)
        if created:
            self._record(request, "write", name, nbytes=total)
        return _json({"offset": offset, "stored": stored}, 201 if created else 200)

    async def upload(self, request: web.Request) -> web.Response:
        """GET /artifacts/{hash}/uploads/{upload_id}"""
        name, upload_id, principal = request.match_info["hash"], request.match_info["upload_id"], _writer(request).principal
        offset, nbytes, stored = await self._artifacts.run(lambda: self._uploads.status(principal, name, upload_id))
        return _json({"offset": offset, "nbytes": nbytes, "stored": stored})

    async def drop_upload(self, request: web.Request) -> web.Response:
        """DELETE /artifacts/{hash}/uploads/{upload_id}"""
        name, upload_id, principal = request.match_info["hash"], request.match_info["upload_id"], _writer(request).principal
        await self._artifacts.run(lambda: self._uploads.drop(principal, name, upload_id))
        self._service.access.quotas.end_upload(principal, name, upload_id)
        return web.Response(status=204, headers={PROTOCOL_HEADER: str(PROTOCOL)})


def _uncounted(name: str, nbytes: int) -> None:
    """Receive what a principal without a quota stored."""


def _writer(request: web.Request) -> Writer:
    """Return the principal of a request, to be recorded with what it stores."""
    return Writer(_principal(request).name)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(
        body=body, status=status, content_type="application/json", headers={PROTOCOL_HEADER: str(PROTOCOL), **(headers or {})}
    )


def _message(kind: str, value: Any) -> bytes:
    """Return an event without a number: it is sent once, and not again to a caller that resumes a stream."""
    return f"event: {kind}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def _body_bytes(request: web.Request) -> int:
    return request.content_length or request.content.total_bytes


def _is_connected(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


def _principal(request: web.Request) -> Principal:
    principal: Principal = request[_PRINCIPAL]
    return principal


def _only(request: web.Request) -> str | None:
    """Return the principal whose jobs the caller may see and change, or None for those of all."""
    principal = _principal(request)
    return None if principal.may(ADMIN) else principal.name


def _if_match(request: web.Request) -> str | None:
    """Return the hash that the caller expects of the graph, or None."""
    given = request.headers.get("If-Match", "*").strip()
    return None if given == "*" else given.strip('"')


def last_event(request: web.Request) -> int | None:
    """Return the number in ``Last-Event-ID``, or None. Raise `InvalidArgument` for another text."""
    given = request.headers.get("Last-Event-ID")
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 18:
        raise InvalidArgument(f"Last-Event-ID must be the number of an event, got {given[:40]!r}.")
    return int(given)


def number(text: str | None, name: str, default: float = 0.0, *, least: float = 0.0, most: float = float("inf")) -> float:
    """Return a number of the query, limited to ``most``. Raise `InvalidArgument` for another text or a smaller number."""
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        raise InvalidArgument(f"{name} must be a number of at least {least:g}, got {str(text)[:40]!r}.")
    return min(value, most)
