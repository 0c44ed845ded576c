"""The HTTP side that all dialects of the gateway share: authorization, errors, bodies, and results as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import mimetypes
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import quote

from aiohttp import web

from yggdrasill.errors import (
    AccessDenied,
    EndpointUnreachable,
    QueueFull,
    StorageFailed,
    UnknownArtifact,
    YggdrasillError,
)
from yggdrasill.gateway.endpoints import Fleet, on_loop_thread
from yggdrasill.protocol.statuses import status_of
from yggdrasill.remote.comfy_server import SavedFile
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.server_ext import bodies
from yggdrasill.server_ext.auth import Guard, check_role
from yggdrasill.server_ext.connections import Caller, Forwarding
from yggdrasill.server_ext.jobs.execution import error_dict
from yggdrasill.server_ext.logs import Redactor
from yggdrasill.server_ext.principals import Principal
from yggdrasill.server_ext.routes import request_key

__all__ = [
    "Dialect",
    "Handler",
    "Http",
    "bearer",
    "caller_of",
    "error_status",
    "file_headers",
    "json_response",
    "plain_output",
    "principal_of",
    "send_artifact",
    "send_file",
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorBody = Callable[[dict[str, Any], int], Any]
ErrorStatus = Callable[[YggdrasillError], int]

_LOG = logging.getLogger("yggdrasill.gateway")
_PRINCIPAL, _CALLER = map(request_key, ("gateway.principal", "gateway.caller"))
_RETRY_AFTER = "1"
_CREDENTIALS = {"token", "access_token", "api_key", "authorization", "key"}
#: Types of files that a browser shows and that contain no scripts.
_SHOWN = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif", "text/plain"})


class Dialect(Protocol):
    """The routes of one kind of client."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes to the gateway's application."""
        ...


def principal_of(request: web.Request) -> Principal:
    """Return the caller of a guarded request."""
    found: Principal = request[_PRINCIPAL]
    return found


def caller_of(request: web.Request) -> Caller:
    """Return the address of the caller, and the URL that it used."""
    found: Caller = request[_CALLER]
    return found


def bearer(request: web.Request) -> str | None:
    """Return the header ``Authorization``; one without a scheme, as RunPod's workers send it, counts as a bearer token."""
    given = request.headers.get("Authorization")
    return f"Bearer {given}" if given is not None and " " not in given.strip() else given


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON response."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _bare_error(error: dict[str, Any], status: int) -> Any:
    return {"error": error}


def error_status(error: YggdrasillError) -> int:
    """Return the HTTP status for an error."""
    if isinstance(error, StorageFailed) and error.details.get("reason") == "store":
        return 503
    if isinstance(error, QueueFull):
        return 429
    return 503 if isinstance(error, EndpointUnreachable) else status_of(error)


class Http:
    """Wraps the handlers of dialects. ``guard`` knows the callers, ``redactor`` removes secrets from errors."""

    def __init__(self, guard: Guard, forwarding: Forwarding, redactor: Redactor) -> None:
        self._guard, self._forwarding, self._redactor = guard, forwarding, redactor

    def guarded(
        self,
        handler: Handler,
        role: str,
        *,
        error_body: ErrorBody = _bare_error,
        status_of: ErrorStatus = error_status,
        credential: Callable[[web.Request], str | None] = bearer,
    ) -> Handler:
        """Return ``handler`` with the checks of Origin, token and role before it, and its errors as responses.

        ``error_body(error, status)`` returns the body of an error in a dialect, from ``{"type", "message", "details"}``, and ``status_of`` its
        status. ``credential`` returns the header with the token.
        """

        async def guarded_handler(request: web.Request) -> web.StreamResponse:
            try:
                self._check(request, role, credential(request))
                return await handler(request)
            except YggdrasillError as error:
                return self._error(error, status_of(error), error_body)
            except (ConnectionError, asyncio.CancelledError, web.HTTPException):
                raise
            except Exception as error:  # noqa: BLE001 - logged and reported as status 500
                _LOG.exception("%s %s failed", request.method, request.path)
                return self._error(error, 500, error_body)

        return guarded_handler

    def _check(self, request: web.Request, role: str, authorization: str | None) -> None:
        caller = request[_CALLER] = self._forwarding.caller(request)
        self._guard.check_origin(caller.host, request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site"))
        if _CREDENTIALS & request.query.keys():
            raise AccessDenied("Tokens in urls end up in logs. Send the token as 'Authorization: Bearer TOKEN'.", reason="token")
        try:
            principal = request[_PRINCIPAL] = self._guard.authenticate(authorization, caller.address)
        except AccessDenied:
            self._guard.check_host(caller.host)
            raise
        check_role(principal, role)

    def redact(self, value: Any) -> Any:
        """Return a JSON value without secrets."""
        return self._redactor.value(value)

    def _error(self, error: Exception, status: int, error_body: ErrorBody) -> web.Response:
        headers = {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if status in (429, 502, 503):
            given = error.details.get("retry_after") if isinstance(error, YggdrasillError) else None
            headers["Retry-After"] = str(max(1, round(float(given)))) if given else _RETRY_AFTER
        known = error if isinstance(error, YggdrasillError) else StorageFailed("The gateway failed. Its log has the reason.")
        found = error_dict(known, self._redactor)
        if not isinstance(error, YggdrasillError):
            found["type"] = "GatewayFailed"
        return json_response(error_body(found, status), status, headers)

    async def send_events(
        self, request: web.Request, events: AsyncGenerator[bodies.Message | None, None], first: bytes = b": listening\n\n"
    ) -> web.StreamResponse:
        """Send events until they end, the client disconnects, or its token expires or is revoked."""
        return await bodies.send_events(request, self._while_valid(principal_of(request), events), first=first)

    async def _while_valid(
        self, principal: Principal, events: AsyncGenerator[bodies.Message | None, None]
    ) -> AsyncGenerator[bodies.Message | None, None]:
        async with aclosing(events) as stream:
            async for event in stream:
                if not self._guard.principals.accepts(principal):
                    return
                yield event


# -- results --------------------------------------------------------------------------------------------------------------


def plain_output(wire: Any, url_of: Callable[[str], str]) -> Any:
    """Return a value in wire form as JSON for people and simple clients.

    A tensor becomes ``{"dtype", "shape", "nbytes", "url"}``, or has ``"base64"`` instead of a URL if it is small. Tuples and sets become
    lists, and numbers that JSON lacks texts. The lossless form is the wire form itself.
    """
    payloads = wire.get("payloads") or []

    def described(index: Any) -> Any:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(payloads):
            return index
        entry = payloads[index]
        facts = {name: entry.get(name) for name in ("dtype", "shape", "nbytes")}
        return {**facts, "base64": entry["inline"]} if "inline" in entry else {**facts, "url": url_of(str(entry.get("artifact")))}

    def converted(node: Any) -> Any:
        if isinstance(node, list):
            return [converted(item) for item in node]
        if not isinstance(node, dict):
            return node
        tag = next(iter(node)) if len(node) == 1 else ""
        if tag[:1] != "$" or tag[1:2] == "$":
            return {key.removeprefix("$"): converted(item) for key, item in node.items()}
        body = node[tag]
        if tag in ("$tensor", "$array", "$bytes", "$bytearray"):
            return {"base64": body} if isinstance(body, str) else described(body)
        if tag in ("$tuple", "$set", "$frozenset"):
            return converted(body)
        if tag == "$int":
            return int(body, 16)
        return {"type": body[0], "value": converted(body[2])} if tag == "$ext" else {tag[1:]: converted(body)}

    try:
        return converted(wire.get("skeleton"))
    except RecursionError:
        return None


async def send_artifact(request: web.Request, fleet: Fleet, name: str, origins: list[str]) -> web.StreamResponse:
    """Send an artifact from the first of its endpoints that has it. Raise `UnknownArtifact`, `EndpointUnreachable`."""
    problem: YggdrasillError | None = None
    for origin in origins:
        if origin not in fleet.registry.endpoints:
            continue
        try:
            return await _relay(request, fleet.client(origin), name)
        except (UnknownArtifact, EndpointUnreachable) as error:
            problem = error
    raise problem or UnknownArtifact(f"No endpoint of this job has artifact {name[:80]!r} any more. Run the job again.", hash=name[:80])


async def _relay(request: web.Request, client: Any, name: str) -> web.StreamResponse:
    """Stream an artifact from an endpoint. A few chunks are read ahead; the endpoint waits while the client is slow."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(8)
    opened: asyncio.Future[Any] = loop.create_future()

    def begin(length: str | None) -> None:
        if not opened.done():
            opened.set_result(length)

    async def read() -> None:
        async with client.get_artifact(name) as response:
            loop.call_soon_threadsafe(begin, response.headers.get("Content-Length"))
            async for chunk in response.chunks():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop))
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(chunks.put(None), loop))

    pending = loop_thread().start(read())
    reading: asyncio.Future[Any] = asyncio.wrap_future(pending.future)
    try:
        await asyncio.wait({reading, opened}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            await reading
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", "ETag": f'"{name}"'})
        length = await opened
        if length is not None:
            response.headers["Content-Length"] = length
        await response.prepare(request)
        while True:
            getting: asyncio.Future[Any] = asyncio.ensure_future(chunks.get())
            await asyncio.wait({getting, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done() and chunks.empty():
                getting.cancel()
                await reading
                break
            chunk = await getting
            if chunk is None:
                break
            await response.write(chunk)
        await response.write_eof()
        return response
    finally:
        if not reading.done():
            pending.cancel()
            reading.add_done_callback(lambda future: future.cancelled() or future.exception())


async def send_file(request: web.Request, fleet: Fleet, file: Mapping[str, Any]) -> web.Response:
    """Send a file that a ComfyUI saved. Raise `UnknownEndpoint`, `EndpointUnreachable`, `EndpointFailed`."""
    saved = SavedFile(str(file["node"]), str(file["filename"]), str(file["subfolder"]), str(file["type"]))
    data = await on_loop_thread(fleet.server(str(file["endpoint"])).fetch(saved))
    name = saved.filename.rpartition("/")[2]
    return web.Response(body=data, headers=file_headers(name, mimetypes.guess_type(name)[0] or ""))


def file_headers(name: str, content_type: str) -> dict[str, str]:
    """Return the headers of a file. A browser shows pictures, sound, video and text, and stores what could contain scripts."""
    shown = content_type in _SHOWN or content_type.startswith(("audio/", "video/"))
    return {
        "Content-Type": content_type if shown else "application/octet-stream",
        "Content-Disposition": f"{'inline' if shown else 'attachment'}; filename*=UTF-8''{quote(name)}",
        "X-Content-Type-Options": "nosniff",
    }
