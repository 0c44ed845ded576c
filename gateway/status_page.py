"""The status page of a gateway at ``/``. Its files contain no data: the page requests jobs and events with the token that its reader enters."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

__all__ = ["CONTENT_SECURITY_POLICY", "add_routes"]

FOLDER = Path(__file__).with_name("page")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_INDEX = "index.html"


@dataclass(frozen=True)
class _File:
    """A file of the page with its media type and its ETag."""

    body: bytes
    media_type: str
    tag: str


def add_routes(router: web.UrlDispatcher) -> None:
    """Add ``GET /`` and ``GET /page/NAME``, which need no token."""
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in _TYPES:
            body = path.read_bytes()
            file = _File(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')
            router.add_get("/" if path.name == _INDEX else f"/page/{path.name}", _handler(file))


def _handler(file: _File) -> Callable[[web.Request], Awaitable[web.Response]]:
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": file.tag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def send(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == file.tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, content_type=file.media_type, charset="utf-8", headers=headers)

    return send
