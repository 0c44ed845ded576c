"""A small HTTP server that answers with given bodies, redirects and wrong lengths."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["small_server"]


@contextmanager
def small_server(bodies: Mapping[str, bytes | str]) -> Iterator[str]:
    """Serve ``bodies`` by path and yield the URL of the server. A text is the Location of a redirect."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path.partition("?")[0])
            self.send_response(404 if body is None else 302 if isinstance(body, str) else 200)
            if isinstance(body, str):
                self.send_header("Location", body)
            data = body if isinstance(body, bytes) else b""
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
