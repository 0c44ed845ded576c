"""The headless endpoint as a process: its folders, its socket, its beginning and its end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from yggdrasill.errors import InvalidArgument, StorageFailed
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.server_ext.auth import TOKEN_VARIABLE, Guard, keep_secret, resolve_token
from yggdrasill.server_ext.configs import HostRules
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.fetch import PeerFetcher
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.server_ext.host import Host
from yggdrasill.server_ext.jobs import JobStore
from yggdrasill.server_ext.peers import KnownEndpoints
from yggdrasill.server_ext.redaction import RedactingFormatter, Redactor, secrets_of_environment
from yggdrasill.server_ext.retention import Retention, fair_quota
from yggdrasill.server_ext.routes import Endpoint, add_routes
from yggdrasill.server_ext.service import Limits, Service
from yggdrasill.server_ext.signing import Signer
from yggdrasill.values.stores.disk import DiskStore

__all__ = ["Settings", "build_service", "serve"]

_LINGER = 3.0
_READ_BUFFER = 1 << 20
#: More than wait for one another at a time: a graph that loads weights for minutes must not keep artifacts from being written.
_THREADS = 32


@dataclass(frozen=True)
class Settings:
    """How a headless endpoint is set up; the command line's options have the same names.

    ``peers`` are urls artifacts may be fetched from, besides those in the data folder's endpoints.yaml; ``peer_url`` is how
    others reach this endpoint; ``roots`` are folders that checkpoint paths of deployed configs may name. With ``share_folder``
    callers on the same machine write to and read from the folder of artifacts themselves. What was not used for longest is removed
    from that folder when it has more than ``artifact_quota`` bytes, by default `fair_quota`.
    """

    host: str = "127.0.0.1"
    port: int = 8400
    data_dir: Path = Path("~/.yggdrasill")
    artifacts: Path | None = None
    share_folder: bool = True
    graphs: Sequence[Path] = ()
    plugins: Sequence[str] = ()
    slots: int = 1
    token: str | None = None
    peers: Sequence[str] = ()
    allow_hosts: Sequence[str] = ()
    roots: Sequence[Path] = ()
    max_body_bytes: int = Limits.max_body_bytes
    max_artifact_bytes: int = Limits.max_artifact_bytes
    artifact_quota: int | None = None
    max_queue: int = Limits.max_queue
    peer_url: str | None = None
    keep_jobs: int = Retention.jobs
    keep_seconds: float = Retention.seconds
    grace: float = 10.0

    def __post_init__(self) -> None:
        for name in ("data_dir", "artifacts"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)).expanduser().resolve())
        if self.artifact_quota is not None and self.artifact_quota < 1:
            raise InvalidArgument(f"artifact_quota is a number of bytes above 0, got {self.artifact_quota}")
        if self.slots < 1 or self.max_queue < 1:
            raise InvalidArgument(f"slots and max_queue must be at least 1, got {self.slots} and {self.max_queue}")


#: Told the endpoint's url, and the file that holds its token, None if the token came from elsewhere.
Ready = Callable[[str, "Path | None"], None]


def serve(*, ready: Ready | None = None, **options: Any) -> None:
    """Serve with the options of `Settings` until SIGINT or SIGTERM, then end gracefully.

    ``ready(url, token_file)`` is called once requests are answered; ``token_file`` is None if the token was given or is in the environment.

    Raises:
        InvalidArgument, InvalidConfig, StorageFailed: it cannot start.
    """
    asyncio.run(_serve(Settings(**options), ready))


async def _serve(settings: Settings, ready: Ready | None) -> None:
    data_dir = _make_data_dir(settings.data_dir)
    token = resolve_token(data_dir, settings.token)
    kept = settings.token is None and not os.environ.get(TOKEN_VARIABLE)
    redactor = Redactor([token, *secrets_of_environment()])
    _set_up_logging(redactor)
    for plugin in settings.plugins:
        importlib.import_module(plugin)
    socket_runner = web.AppRunner(
        app := web.Application(),
        access_log=None,
        auto_decompress=False,
        read_bufsize=_READ_BUFFER,
        lingering_time=_LINGER,
        shutdown_timeout=_LINGER,
    )
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="yggdrasill-io"))
    stop = _stop_event()
    service, guard, late = await asyncio.to_thread(build_service, settings, data_dir, token, redactor)
    add_routes(app.router, Endpoint(service, guard))
    await service.start()
    await socket_runner.setup()
    try:
        port = await _listen(socket_runner, settings)
        url = f"http://{_in_url(_reachable(settings.host))}:{port}"
        late(url)
        if ready is not None:
            ready(url, data_dir / "token" if kept else None)
        await stop.wait()
    finally:
        await service.close(settings.grace)
        await socket_runner.cleanup()


def build_service(
    settings: Settings, data_dir: Path, token: str, redactor: Redactor, host: Host | None = None
) -> tuple[Service, Guard, Callable[[str], None]]:
    """The service and the guard of an endpoint, headless unless another ``host`` runs its jobs, and what tells the service its own url once it is known."""
    import torch  # noqa: F401 - loaded now, so that the first job does not wait for it

    store = DiskStore(settings.artifacts or data_dir / "artifacts", max_artifact_bytes=settings.max_artifact_bytes)
    quota = store.quota_bytes = fair_quota(store) if settings.artifact_quota is None else settings.artifact_quota
    known = KnownEndpoints(data_dir / "endpoints.yaml", settings.peers, redactor.learn, ArtifactClient(store))
    roots = [Path(root).expanduser().resolve() for root in settings.roots] or [data_dir / "models"]
    rules = HostRules(roots, data_dir / "worlds", known.knows)
    deployments = Deployments(data_dir / "graphs", rules, resolver=known.resolver)
    for path in settings.graphs:
        deployments.add_file(Path(path))
    signer = Signer(keep_secret(data_dir / "signing_key"), settings.peer_url)
    service = Service(
        host=host or HeadlessHost(settings.slots),
        deployments=deployments,
        jobs=JobStore(data_dir / "jobs.sqlite"),
        store=store,
        shared=store if settings.share_folder else None,
        signer=signer,
        fetcher=PeerFetcher(store, known.is_peer, settings.max_artifact_bytes),
        redactor=redactor,
        limits=Limits(settings.max_body_bytes, settings.max_artifact_bytes, settings.max_queue),
        retention=Retention(settings.keep_seconds, settings.keep_jobs).within(quota),
    )
    own_names = [urlsplit(settings.peer_url).netloc] if settings.peer_url else []
    guard = Guard(token, [settings.host, *settings.allow_hosts, *own_names])

    def tell_url(url: str) -> None:
        signer.peer_url = signer.peer_url or url

    return service, guard, tell_url


def _make_data_dir(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(
            f"the data folder {str(folder)!r} cannot be made: {error.strerror or error}; choose another one", path=str(folder)
        ) from error
    return folder


async def _listen(runner: web.AppRunner, settings: Settings) -> int:
    site = web.TCPSite(runner, settings.host, settings.port)
    try:
        await site.start()
    except OSError as error:
        raise InvalidArgument(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose another --host or --port"
        ) from error
    return int(runner.addresses[0][1])


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - compared with


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _stop_event() -> asyncio.Event:
    """Set when the process is asked to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(name, stop.set)
        except NotImplementedError:
            # Windows: the handler runs in the main thread between two bytecodes of the loop
            with contextlib.suppress(ValueError):
                signal.signal(name, lambda *_: loop.call_soon_threadsafe(stop.set))
        except (RuntimeError, ValueError):
            # not the main thread: whoever started it ends it
            break
    return stop


def _set_up_logging(redactor: Redactor) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(redactor, "%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    handler.addFilter(_is_worth_a_line)
    logging.getLogger("yggdrasill.server").setLevel(logging.INFO)
    logging.getLogger("yggdrasill.run").setLevel(logging.INFO)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not what any stranger can cause by speaking no HTTP, or by hanging up."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("aiohttp") and isinstance(error, (HttpProcessingError, ConnectionError)))
