"""A relay between a caller and one endpoint that counts the bytes it forwards."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["CountingProxy"]

CHUNK_BYTES = 1 << 18


class CountingProxy:
    """Listens on a free port immediately; set its target before the first connection."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._target = ("127.0.0.1", 0)
        self._lock = threading.Lock()
        self._passed = 0
        self._open: list[socket.socket] = []

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[CountingProxy]:
        """Open a proxy whose connections end with the block."""
        proxy = cls()
        threading.Thread(target=proxy._accept, daemon=True).start()
        try:
            yield proxy
        finally:
            for connection in [proxy._server, *proxy._open]:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    @property
    def url(self) -> str:
        """The port of the proxy."""
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def connect(self, port: int) -> None:
        """Relay to this port."""
        self._target = ("127.0.0.1", port)

    def passed(self) -> int:
        """Return the bytes forwarded since the last call, in both directions together."""
        with self._lock:
            count, self._passed = self._passed, 0
        return count

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                with self._lock:
                    self._passed += len(chunk)
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
