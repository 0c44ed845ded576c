"""Access control and error responses of the editor's routes.

They need no token: everyone who can open the editor may use them, but no page of another origin may.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel

from yggdrasill.errors import AccessDenied, YggdrasillError
from yggdrasill.protocol.statuses import status_of
from yggdrasill.server_ext.auth import Guard
from yggdrasill.server_ext.bodies import read_model_body
from yggdrasill.server_ext.jobs.execution import error_dict
from yggdrasill.server_ext.service import Service

__all__ = ["UI_HEADER", "RouteGuard", "json_answer"]

UI_HEADER = "X-Yggdrasill-Editor"
"""A header of every request of the editor. A page of another origin cannot send it without a preflight request, which is refused."""
_LOG = logging.getLogger("yggdrasill.comfy")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Body = TypeVar("_Body", bound=BaseModel)


class RouteGuard:
    """Guards handlers of one service."""

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service = service
        self._guard = guard

    def guarded(self, handler: _Handler) -> _Handler:
        """Return ``handler`` restricted to pages of this server, with its errors turned into JSON responses."""

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                self._check(request)
                return await handler(request)
            except YggdrasillError as error:
                return self._failure(error, status_of(error))
            except (ConnectionError, asyncio.CancelledError, web.HTTPException):
                raise
            except Exception as error:  # noqa: BLE001 - the client gets a response, and the log the error
                _LOG.error("%s %s failed: %s: %s", request.method, request.path, type(error).__name__, error)
                return self._failure(error, 500)

        return answer

    async def body(self, request: web.Request, model: type[_Body]) -> _Body:
        """Return the JSON body, validated as ``model``."""
        return await read_model_body(request, model, self._service.limits.max_body_bytes)

    def _check(self, request: web.Request) -> None:
        headers = request.headers
        self._guard.check_source(headers.get("Host"), headers.get("Origin"), headers.get("Sec-Fetch-Site"))
        if UI_HEADER not in headers:
            raise AccessDenied(
                "This route is reserved for the editor of this ComfyUI. Programs use /yggdrasill/v1 with a token.", reason="origin"
            )

    def _failure(self, error: Exception, status: int) -> web.Response:
        return json_answer({"error": error_dict(error, self._service.redactor)}, status)


def json_answer(value: Any, status: int = 200) -> web.Response:
    """Return a JSON response that is not cached."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(body=text, status=status, content_type="application/json", headers={"Cache-Control": "no-store"})
