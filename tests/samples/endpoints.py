"""Headless endpoints as processes that are started, killed and restarted, and a proxy that counts bytes and cuts connections."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from samples.prefork import Forked, can_fork, start_forked
from yggdrasill.remote import Endpoint, EndpointClient, EndpointRegistry

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TOKEN", "Cutter", "EndpointProcess", "ServedProcess", "cutter", "free_port", "registry_of"]

TESTS = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
#: No secret: the endpoints of the tests listen on this machine only and hold nothing.
TOKEN = "token-of-the-tests"


class ServedProcess:
    """A process of a package that serves with ``settings`` (JSON) and prints its url, started in its data folder ``data_dir``."""

    package: ClassVar[str] = "yggdrasill.server_ext"

    def __init__(self, name: str, data_dir: Path, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.name = name
        self.data_dir = data_dir
        self.settings: dict[str, Any] = {"port": 0, "data_dir": str(data_dir), **settings}
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | Forked | None = None
        self.url = ""

    def begin(self) -> None:
        """Start the process without waiting, so that several can start in parallel."""
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **self._environment}
        environment.pop("YGGDRASILL_URL", None)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._log = (self.data_dir / "stderr.log").open("a", encoding="utf-8")
        settings = json.dumps(self.settings)
        if can_fork():
            self._process = start_forked(self.package, settings, environment, self.data_dir, self._log)
            return
        command = [sys.executable, "-m", self.package, settings]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment, cwd=self.data_dir)

    def ready(self) -> Self:
        """Wait until it responds to requests."""
        assert self._process is not None
        assert self._process.stdout is not None
        timer = threading.Timer(START_SECONDS, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise AssertionError(f"{self.name} did not start: {self.log()[-3000:]}")
        listening = json.loads(line)
        self.url = listening["url"]
        self.settings["port"] = int(self.url.rsplit(":", 1)[1])
        return self

    def start(self) -> Self:
        """Start the process and wait until it is ready."""
        self.begin()
        return self.ready()

    def log(self) -> str:
        """Return its standard error."""
        return (self.data_dir / "stderr.log").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Kill the process."""
        self._end(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def stop(self) -> None:
        """Stop the process as a user does."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Pause the process: it keeps its connections and does not respond."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the process."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid


class EndpointProcess(ServedProcess):
    """A headless endpoint with the sample blocks; ``settings`` are those of `yggdrasill.server_ext.server.Settings`.

    By default the artifact folder is not shared, so that tensors cross a socket as between machines.
    """

    def __init__(self, name: str, data_dir: Path, **settings: Any) -> None:
        self.token = str(settings.pop("token", TOKEN))
        given = {"plugins": ["samples.plugin"], "share_folder": False, **settings}
        super().__init__(name, data_dir, given, {"YGGDRASILL_TOKEN": self.token})

    def endpoint(self, url: str | None = None) -> Endpoint:
        """Return it as a registry entry, optionally with another url."""
        return Endpoint(self.name, url or self.url, secret=self.token)

    def client(self, url: str | None = None) -> EndpointClient:
        """Return a client for it."""
        return self.endpoint(url).client()


_PORTS = range(20_000, 32_000)
_ports = itertools.count(os.getpid() * 97)


def free_port() -> int:
    """Return a free port for a server that starts later, or starts again.

    It is below the range of which the system takes the ports of connections, and each process of tests begins at another one, so that
    nothing else takes it in between.
    """
    for number in itertools.islice(_ports, len(_PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", _PORTS[number % len(_PORTS)])) as server:
            return int(server.getsockname()[1])
    raise OSError(errno.EADDRINUSE, f"All ports of {_PORTS} are in use")


def registry_of(*endpoints: EndpointProcess | Endpoint, **options: Any) -> EndpointRegistry:
    """Return a registry of these endpoints."""
    named = {item.name: item.endpoint() if isinstance(item, EndpointProcess) else item for item in endpoints}
    return EndpointRegistry(named, **options)


class Cutter:
    """A TCP proxy to ``port`` that counts the bytes in both directions and cuts each connection after ``cut_after`` more bytes.

    ``cuts`` is the number of remaining cuts.
    """

    def __init__(self, port: int) -> None:
        self.to_server = 0
        self.to_client = 0
        self.cuts = 0
        self.cut_after = 0
        self._passed = 0
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self, times: int, after: int) -> None:
        """Cut the next ``times`` connections, each after ``after`` bytes."""
        with self._lock:
            self.cuts, self.cut_after, self._passed = times, after, 0

    def sever(self) -> None:
        """Cut all connections."""
        self._cut_all()

    def close(self) -> None:
        """Close the proxy and all connections."""
        self._closing = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._server.getsockname()[1]), 1).close()
        self._thread.join(5)
        self._server.close()
        self._cut_all()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            if self._closing:
                client.close()
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._port), 5)
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._open |= {client, server}
        with client, server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            with contextlib.suppress(OSError, ValueError):
                while self._step(client, server, selector):
                    pass
        with self._lock:
            self._open -= {client, server}

    def _step(self, client: socket.socket, server: socket.socket, selector: selectors.DefaultSelector) -> bool:
        for key, _ in selector.select():
            source = client if key.fileobj is client else server
            target = server if source is client else client
            data = source.recv(1 << 16)
            if not data:
                return False
            if self._count(len(data), upward=source is client):
                self._cut_all()
                return False
            target.sendall(data)
        return True

    def _count(self, nbytes: int, *, upward: bool) -> bool:
        with self._lock:
            if upward:
                self.to_server += nbytes
            else:
                self.to_client += nbytes
            self._passed += nbytes
            if self.cuts and self._passed >= self.cut_after:
                self.cuts -= 1
                self._passed = 0
                return True
            return False

    def _cut_all(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Reached(Protocol):
    """An endpoint, headless or ComfyUI."""

    @property
    def url(self) -> str: ...


@contextmanager
def cutter(endpoint: _Reached) -> Iterator[Cutter]:
    """Open a `Cutter` in front of an endpoint."""
    proxy = Cutter(int(endpoint.url.rsplit(":", 1)[1]))
    try:
        yield proxy
    finally:
        proxy.close()
