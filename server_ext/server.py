"""The headless endpoint as a process: settings, data folder, socket, logging and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from aiohttp import web

from yggdrasill.errors import InvalidArgument, StorageFailed
from yggdrasill.remote.artifact_client import ArtifactClient
from yggdrasill.server_ext.auth import (
    EVERY_ADDRESS,
    Access,
    Guard,
    Signer,
    TokenFile,
    hosts_of_environment,
    load_or_create_secret,
    token_of_endpoint,
    url_for_others,
)
from yggdrasill.server_ext.configs import HostRules
from yggdrasill.server_ext.connections import ConnectionLimiter, Forwarding, connection_limit, is_reportable, log_failures_sparsely
from yggdrasill.server_ext.deployments import Deployments
from yggdrasill.server_ext.headless import HeadlessHost, Host
from yggdrasill.server_ext.jobs.store import JobStore, Retention, default_quota
from yggdrasill.server_ext.logs import RedactingFormatter, Redactor, secrets_of_environment
from yggdrasill.server_ext.peer_fetcher import PeerFetcher
from yggdrasill.server_ext.peers import KnownEndpoints
from yggdrasill.server_ext.principals import Principals
from yggdrasill.server_ext.routes import Endpoint, add_routes
from yggdrasill.server_ext.service import Limits, Service
from yggdrasill.server_ext.tls import Certificate
from yggdrasill.values.stores.embedded import EmbeddedStore
from yggdrasill.values.stores.folder import FILE_CHARGE, FolderStore
from yggdrasill.values.stores.shared import SharedFolderStore

__all__ = [
    "IO_THREADS",
    "Settings",
    "build_service",
    "listen",
    "local_url",
    "make_data_dir",
    "serve",
    "set_up_logging",
    "stop_event",
]

_LINGER_SECONDS = 3.0
_READ_BUFFER_BYTES = 1 << 20
#: Enough that threads which load weights for minutes do not delay the writing of artifacts.
IO_THREADS = 32
_PRIVATE_NAMES = {"artifacts", "graphs", "worlds", "jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"}


@dataclass(frozen=True)
class Settings:
    """The settings of a headless endpoint. The command line options have the same names.

    ``peers`` are urls from which artifacts may be fetched, in addition to those in the data folder's endpoints.yaml. ``peer_url`` is the
    url under which other endpoints reach this one (default: see `url_for_others`). ``trusted_proxies`` are the addresses or networks of
    reverse proxies whose X-Forwarded headers are believed; see `Forwarding`. ``allow_hosts_setting`` names ``allow_hosts`` in messages. ``tls_cert`` and ``tls_key`` are PEM files; with them the
    endpoint serves https. ``roots`` are folders that checkpoint paths of deployed configs may use. With
    ``share_folder``, callers on the same machine use the artifact folder directly. When the folder exceeds ``artifact_quota`` bytes
    (default: `default_quota`), the least recently used artifacts are removed. ``max_queue`` bounds the unfinished jobs and
    ``max_queue_bytes`` the JSON of their requests together.
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
    allow_hosts_setting: str = "the option --allow-host"
    trusted_proxies: Sequence[str] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    roots: Sequence[Path] = ()
    max_body_bytes: int = Limits.max_body_bytes
    max_artifact_bytes: int = Limits.max_artifact_bytes
    artifact_quota: int | None = None
    max_queue: int = Limits.max_queue
    max_queue_bytes: int = Limits.max_queue_bytes
    peer_url: str | None = None
    keep_jobs: int = Retention.jobs
    keep_seconds: float = Retention.seconds
    grace: float = 10.0

    def __post_init__(self) -> None:
        for name in ("data_dir", "artifacts", "tls_cert", "tls_key"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)).expanduser().resolve())
        if self.artifact_quota is not None and self.artifact_quota < 1:
            raise InvalidArgument(f"artifact_quota must be a number of bytes above 0, got {self.artifact_quota}.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidArgument("TLS needs both a certificate and its key. Pass --tls-cert FILE and --tls-key FILE.")
        if self.slots < 1 or self.max_queue < 1:
            raise InvalidArgument(f"slots and max_queue must be at least 1, got {self.slots} and {self.max_queue}.")


#: Receives the endpoint's url and the token file, or None if the token was given or comes from the environment.
Ready = Callable[[str, "Path | None"], None]


def serve(*, ready: Ready | None = None, **options: Any) -> None:
    """Serve with the options of `Settings` until SIGINT or SIGTERM, then shut down gracefully.

    ``ready(url, token_file)`` is called when the endpoint accepts requests; see `Ready`.

    Raises:
        InvalidArgument, InvalidConfig, StorageFailed: the endpoint cannot start.
    """
    settings = Settings(**options)
    umask = None if _is_shared(settings.artifacts) else os.umask(0o077)
    try:
        asyncio.run(_serve(settings, ready))
    finally:
        if umask is not None:
            os.umask(umask)


async def _serve(settings: Settings, ready: Ready | None) -> None:
    data_dir = make_data_dir(settings.data_dir)
    redactor = Redactor(secrets_of_environment())
    token = token_of_endpoint(data_dir, lambda found: redactor.learn([found]), settings.token)
    token_is_stored = isinstance(token, TokenFile)
    set_up_logging(redactor)
    for plugin in settings.plugins:
        importlib.import_module(plugin)
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    limiter = ConnectionLimiter(connection_limit())
    log_failures_sparsely(asyncio.get_running_loop())
    socket_runner = web.AppRunner(
        app := web.Application(middlewares=[limiter.track]),
        access_log=None,
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
        lingering_time=_LINGER_SECONDS,
        shutdown_timeout=_LINGER_SECONDS,
    )
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(IO_THREADS, thread_name_prefix="yggdrasill-io"))
    stop = stop_event()
    service, guard, set_url = await asyncio.to_thread(build_service, settings, data_dir, token, redactor)
    add_routes(app.router, Endpoint(service, guard, Forwarding(settings.trusted_proxies)))
    await service.start()
    await socket_runner.setup()
    try:
        port = await listen(limiter, socket_runner, settings.host, settings.port, certificate)
        watching = None if certificate is None else asyncio.create_task(certificate.watch())
        url = local_url(settings.host, port, is_secure=certificate is not None)
        set_url(url)
        if ready is not None:
            ready(url, data_dir / "token" if token_is_stored else None)
        await stop.wait()
        if watching is not None:
            watching.cancel()
    finally:
        limiter.close()
        await service.close(settings.grace)
        await socket_runner.cleanup()
        if isinstance(service.store, FolderStore):
            await asyncio.to_thread(service.store.close)


def build_service(
    settings: Settings, data_dir: Path, token: str | Callable[[], str], redactor: Redactor, host: Host | None = None
) -> tuple[Service, Guard, Callable[[str], None]]:
    """Build the service and guard of an endpoint, and return them with a function that sets the url at which this machine reaches it, once it is known.

    The endpoint is headless unless ``host`` is given.
    """
    import torch  # noqa: F401 - imported at startup, so that the first job does not wait for it

    _make_private(data_dir, settings.artifacts)
    store = _open_store(settings, data_dir)
    quota = store.quota_bytes = default_quota(store) if settings.artifact_quota is None else settings.artifact_quota
    known = KnownEndpoints(data_dir / "endpoints.yaml", settings.peers, redactor.learn, ArtifactClient(store))
    roots = [Path(root).expanduser().resolve() for root in settings.roots] or [data_dir / "models"]
    rules = HostRules(roots, data_dir / "worlds", known.knows)
    deployments = Deployments(data_dir / "graphs", rules, resolver=known.resolver)
    for path in settings.graphs:
        deployments.add_file(Path(path))
    signer = Signer(load_or_create_secret(data_dir / "signing_key"), settings.peer_url)
    principals = Principals(token, data_dir)
    service = Service(
        access=Access(principals, data_dir, store),
        host=host or HeadlessHost(settings.slots),
        deployments=deployments,
        jobs=JobStore(data_dir / "jobs.sqlite"),
        store=store,
        shared=store if settings.share_folder else None,
        signer=signer,
        fetcher=PeerFetcher(store, known.is_peer, settings.max_artifact_bytes),
        redactor=redactor,
        limits=Limits(settings.max_body_bytes, settings.max_artifact_bytes, settings.max_queue, settings.max_queue_bytes),
        retention=Retention(settings.keep_seconds, settings.keep_jobs).within(quota),
    )
    peer_names = [urlsplit(settings.peer_url).netloc] if settings.peer_url else []
    hosts = [settings.host, *settings.allow_hosts, *peer_names, *hosts_of_environment()]
    guard = Guard(principals, hosts, settings.allow_hosts_setting)

    def set_url(url: str) -> None:
        if signer.peer_url is None:
            signer.follows_caller = settings.host.strip() in EVERY_ADDRESS or bool(settings.trusted_proxies)
            signer.peer_url = url_for_others(url, settings.host)

    return service, guard, set_url


def _open_store(settings: Settings, data_dir: Path) -> FolderStore:
    """Open the artifact folder: the one of the data folder belongs to this endpoint, one that was chosen may be shared with others."""
    limit = settings.max_artifact_bytes
    if settings.artifacts is None or settings.artifacts == data_dir / "artifacts":
        return EmbeddedStore(data_dir / "artifacts", max_artifact_bytes=limit, min_charge=FILE_CHARGE)
    return SharedFolderStore(settings.artifacts, max_artifact_bytes=limit, min_charge=FILE_CHARGE)


def make_data_dir(folder: Path) -> Path:
    """Create a data folder that only this user can read. Raise `StorageFailed` if that is impossible."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(
            f"Cannot create the data folder {str(folder)!r}: {error.strerror or error}. Choose another folder.", path=str(folder)
        ) from error
    return folder


def _is_shared(folder: Path | None) -> bool:
    """Return whether an artifact folder was made accessible to other users on purpose."""
    return folder is not None and folder.exists() and bool(folder.stat().st_mode & 0o077)


def _make_private(data_dir: Path, artifacts: Path | None) -> None:
    """Remove other users' access to this user's files in the data folder, which earlier versions created with the user's umask."""
    if not hasattr(os, "geteuid"):
        return
    for path in data_dir.iterdir():
        if path.name not in _PRIVATE_NAMES or path == artifacts or path.is_symlink():
            continue
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            path.chmod(stat.S_IMODE(status.st_mode) & 0o700)


async def listen(limiter: ConnectionLimiter, runner: web.AppRunner, host: str, port: int, certificate: Certificate | None) -> int:
    """Accept connections for an application and return the port. Raise `InvalidArgument` if that is impossible."""
    context = None if certificate is None else certificate.context
    try:
        return await limiter.listen(cast("web.Server", runner.server), host, port, context)
    except OSError as error:
        raise InvalidArgument(f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another --host or --port.") from error


def local_url(host: str, port: int, *, is_secure: bool) -> str:
    """Return the URL at which this machine reaches a server that listens on ``host``."""
    name = "127.0.0.1" if host.strip() in EVERY_ADDRESS else host
    return f"{'https' if is_secure else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def stop_event() -> asyncio.Event:
    """Return an event that is set by SIGINT and SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(name, stop.set)
        except NotImplementedError:
            # Windows: Python calls the handler in the main thread between two bytecodes
            with contextlib.suppress(ValueError):
                signal.signal(name, lambda *_: loop.call_soon_threadsafe(stop.set))
        except (RuntimeError, ValueError):
            # not the main thread: the thread that started the server stops it
            break
    return stop


def set_up_logging(redactor: Redactor) -> None:
    """Write the log of a server process to standard error, without secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(redactor, "%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    handler.addFilter(is_reportable)
    logging.getLogger("yggdrasill.server").setLevel(logging.INFO)
    logging.getLogger("yggdrasill.run").setLevel(logging.INFO)
    logging.getLogger("yggdrasill.jobs").setLevel(logging.INFO)
    logging.getLogger("yggdrasill.gateway").setLevel(logging.INFO)
