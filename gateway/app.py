"""The gateway as a process: settings, data folder, store, dialects, socket and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from aiohttp import web

from yggdrasill.errors import InvalidArgument, YggdrasillError
from yggdrasill.gateway.asset_model import AssetBounds
from yggdrasill.gateway.assets import AssetStore
from yggdrasill.gateway.database import Database
from yggdrasill.gateway.dialects import bare, comfy_v2, comfy_v2_assets, runpod, runpod_worker
from yggdrasill.gateway.dispatch import Dispatcher, Pace
from yggdrasill.gateway.endpoints import Fleet
from yggdrasill.gateway.files import Files
from yggdrasill.gateway.http import Dialect, Http
from yggdrasill.gateway.hub import Hub
from yggdrasill.gateway.models import Event, Job
from yggdrasill.gateway.service import Gateway, Limits
from yggdrasill.gateway.status_page import add_routes as add_page
from yggdrasill.gateway.store import Bounds, JobStore
from yggdrasill.gateway.webhooks import DELAYS, Webhooks
from yggdrasill.gateway.work import Work
from yggdrasill.protocol.states import FINAL
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.retry import RetryBudget
from yggdrasill.server_ext.auth import Guard, TokenFile, hosts_of_environment, load_or_create_secret, token_of_endpoint
from yggdrasill.server_ext.connections import ConnectionLimiter, Forwarding, connection_limit, log_failures_sparsely
from yggdrasill.server_ext.logs import Redactor, secrets_of_environment
from yggdrasill.server_ext.principals import Principals
from yggdrasill.server_ext.server import IO_THREADS, listen, local_url, make_data_dir, set_up_logging, stop_event
from yggdrasill.server_ext.tls import Certificate
from yggdrasill.values.files import FileLock

__all__ = ["DATABASE_VARIABLE", "Ready", "Settings", "dialects_of", "serve"]

DATABASE_VARIABLE = "YGGDRASILL_DATABASE"
_LINGER_SECONDS = 3.0
_REVOKED_SECONDS = 2.0
_READ_BUFFER_BYTES = 1 << 20
_LOG = logging.getLogger("yggdrasill.gateway")

#: Receives the URL of the gateway and the token file, or None if the token was given or comes from the environment.
Ready = Callable[[str, "Path | None"], None]


@dataclass(frozen=True)
class Settings:
    """The settings of a gateway. The command line options have the same names.

    ``database`` is the URL of the store (default: ``gateway.sqlite`` in the data folder), ``endpoints`` the endpoints.yaml, which
    ``may_lack`` if it is the default. ``pools`` are targets that workers serve. ``ahead`` is the number of jobs beyond its slots that an
    endpoint gets, ``lease`` the seconds after which another gateway resumes the jobs of one that vanished. ``retry_reserve`` bounds how
    often jobs may run again after their endpoint was lost; each 10 minutes one more is allowed. ``assets`` is the folder of assets
    (default: in the data folder), ``asset_quota`` the bytes that it may have, ``asset_lifetime`` the seconds for which an asset is kept, and
    ``max_asset`` the bytes of one. ``comfy_ttl`` is the lifetime of unfinished jobs of Comfy API v2 in seconds.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: Path = Path("~/.yggdrasill/gateway")
    database: str | None = None
    endpoints: Path | None = None
    may_lack: bool = False
    pools: Sequence[str] = ()
    token: str | None = None
    allow_hosts: Sequence[str] = ()
    trusted_proxies: Sequence[str] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_queue: int = Bounds.max_queue
    max_attempts: int = Bounds.max_attempts
    ahead: int = 1
    lease: float = Pace.lease
    worker_lease: float = Limits.worker_lease
    retry_reserve: float = 20.0
    assets: Path | None = None
    asset_quota: int = AssetBounds.quota
    asset_lifetime: float = AssetBounds.lifetime
    max_asset: int = AssetBounds.largest
    comfy_ttl: float = Limits.comfy_ttl
    private_webhooks: bool = False
    webhook_delays: Sequence[float] = DELAYS
    retention: float = Limits.retention
    run_retention: float = Limits.run_retention
    runsync_retention: float = Limits.runsync_retention
    grace: float = 5.0

    def __post_init__(self) -> None:
        for name in ("data_dir", "endpoints", "tls_cert", "tls_key", "assets"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)).expanduser().resolve())
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidArgument("TLS needs both a certificate and its key. Pass --tls-cert FILE and --tls-key FILE.")
        if self.max_queue < 1 or self.max_attempts < 1 or self.ahead < 0 or self.lease <= 0 or self.worker_lease <= 0:
            raise InvalidArgument("max_queue and max_attempts must be at least 1, ahead at least 0, and leases above 0.")
        if min(self.asset_quota, self.max_asset) < 1 or self.asset_lifetime <= 0 or self.comfy_ttl <= 0:
            raise InvalidArgument("asset_quota and max_asset must be at least 1 byte, asset_lifetime and comfy_ttl above 0 seconds.")

    @property
    def database_url(self) -> str:
        """The URL of the store."""
        return self.database or os.environ.get(DATABASE_VARIABLE) or f"sqlite:///{self.data_dir / 'gateway.sqlite'}"


def serve(*, ready: Ready | None = None, **options: Any) -> None:
    """Serve with the options of `Settings` until SIGINT or SIGTERM, then give back what still runs.

    Raises:
        InvalidArgument, InvalidConfig, StorageFailed: the gateway cannot start.
    """
    settings = Settings(**options)
    umask = os.umask(0o077)
    try:
        asyncio.run(_serve(settings, ready))
    finally:
        os.umask(umask)
        loop_thread().close()


def dialects_of(gateway: Gateway, http: Http) -> list[Dialect]:
    """Return the dialects of a gateway. Each adds its routes; a new dialect is one more entry."""
    return [
        bare.BareDialect(gateway, http),
        runpod.RunpodDialect(gateway, http),
        runpod_worker.WorkerDialect(gateway, http),
        comfy_v2.ComfyDialect(gateway, http),
        comfy_v2_assets.AssetDialect(gateway, http),
    ]


def _describe(job: Job, output: Any) -> dict[str, Any]:
    """Return the body of a webhook, in the dialect of the job."""
    return runpod.describe(job, output) if job.dialect == runpod.DIALECT else bare.describe(job, output)


async def _serve(settings: Settings, ready: Ready | None) -> None:
    data_dir = make_data_dir(settings.data_dir)
    lock = FileLock(data_dir / ".gateway.lock", mode=0o600)
    if not lock.acquire(wait=False):
        raise InvalidArgument(f"Another gateway uses the data folder {str(data_dir)!r}. Stop it, or pass another --data-dir.")
    redactor = Redactor([*secrets_of_environment(), *_passwords(settings.database_url)])
    token = token_of_endpoint(data_dir, lambda found: redactor.learn([found]), settings.token)
    set_up_logging(redactor)
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    limiter = ConnectionLimiter(connection_limit())
    loop = asyncio.get_running_loop()
    log_failures_sparsely(loop)
    loop.set_default_executor(ThreadPoolExecutor(IO_THREADS, thread_name_prefix="yggdrasill-io"))
    stop = stop_event()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lock.release)
        guard = Guard(Principals(token, data_dir), [settings.host, *settings.allow_hosts, *hosts_of_environment()])
        gateway = await _start_gateway(settings, data_dir, redactor, guard, stack)
        app = web.Application(middlewares=[limiter.track])
        http = Http(guard, Forwarding(settings.trusted_proxies), redactor)
        app.router.add_get("/healthz", _alive)
        add_page(app.router)
        for dialect in dialects_of(gateway, http):
            dialect.add_routes(app.router)
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
            lingering_time=_LINGER_SECONDS,
            shutdown_timeout=_LINGER_SECONDS,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        port = await listen(limiter, runner, settings.host, settings.port, certificate)
        stack.callback(limiter.close)
        if certificate is not None:
            stack.callback(asyncio.create_task(certificate.watch()).cancel)
        if ready is not None:
            ready(
                local_url(settings.host, port, is_secure=certificate is not None),
                data_dir / "token" if isinstance(token, TokenFile) else None,
            )
        await stop.wait()


async def _start_gateway(settings: Settings, data_dir: Path, redactor: Redactor, guard: Guard, stack: contextlib.AsyncExitStack) -> Gateway:
    """Open the store and start what works beside the requests; ``stack`` stops it in the opposite order."""
    database = await asyncio.to_thread(Database, settings.database_url)
    stack.push_async_callback(asyncio.to_thread, database.close)
    store, work = JobStore(database, Bounds(settings.max_queue, settings.max_attempts)), Work(database)
    fleet = Fleet(settings.endpoints, ahead=settings.ahead, may_lack=settings.may_lack, on_secrets=redactor.learn)
    hub = Hub(store)
    database.on_events = hub.written
    limits = Limits(
        worker_lease=settings.worker_lease,
        retention=settings.retention,
        run_retention=settings.run_retention,
        runsync_retention=settings.runsync_retention,
        comfy_ttl=settings.comfy_ttl,
    )
    node = load_or_create_secret(data_dir / "gateway_id")[:16]
    owner = f"{node}.{secrets.token_hex(4)}"
    bounds = AssetBounds(settings.asset_quota, settings.asset_lifetime, settings.max_asset)
    assets = await asyncio.to_thread(AssetStore, database, settings.assets or data_dir / "assets", bounds)
    stack.callback(assets.close)
    files = Files(assets, work, redactor.learn, owner)
    gateway = Gateway(
        store, work, fleet, hub, limits=limits, files=files, pools=frozenset(settings.pools), private_webhooks=settings.private_webhooks
    )
    dispatcher = Dispatcher(
        store,
        work,
        fleet,
        hub,
        redactor,
        files,
        owner=owner,
        node=f"{node}.",
        pace=Pace(lease=settings.lease),
        budget=RetryBudget(ratio=0.05, reserve=settings.retry_reserve, per_second=1 / 600),
    )
    secret = os.environ.get("YGGDRASILL_WEBHOOK_SECRET") or load_or_create_secret(data_dir / "webhook_secret")
    redactor.learn([secret])
    webhooks = Webhooks(work, secret, _describe, allow_private=settings.private_webhooks, delays=tuple(settings.webhook_delays))

    def on_event(event: Event) -> None:
        if event.data.get("status") in FINAL:
            webhooks.wake()

    hub.on_status += [dispatcher.on_event, gateway.on_event, files.on_event, on_event]
    await hub.start()
    stack.push_async_callback(hub.close)
    await dispatcher.start()
    stack.push_async_callback(dispatcher.close, settings.grace)
    await webhooks.start()
    stack.push_async_callback(webhooks.close)
    for forever in (_stop_revoked(gateway, guard), assets.sweep_forever()):
        stack.callback(asyncio.create_task(forever).cancel)
    return gateway


async def _stop_revoked(gateway: Gateway, guard: Guard) -> None:
    """Cancel the unfinished jobs of principals whose token was revoked or has expired. Those of other gateways may be unknown in this one."""
    reason = "The token of the job's principal was revoked or has expired."
    while True:
        await asyncio.sleep(_REVOKED_SECONDS)
        try:
            for name in await asyncio.wrap_future(gateway.store.unfinished_principals()):
                known = guard.principals.get(name)
                if known is not None and not known.is_valid:
                    for job in await asyncio.wrap_future(
                        gateway.store.newest(principal=name, statuses=("IN_QUEUE", "IN_PROGRESS"), limit=10_000)
                    ):
                        await gateway.cancel(job.job_id, reason=reason)
        except YggdrasillError as error:
            _LOG.warning("The check for revoked tokens is repeated: %s", error.message)


async def _alive(request: web.Request) -> web.Response:
    """Answer that the process is alive, without a token: for health checks of containers."""
    return web.json_response({"status": "ok"})


def _passwords(url: str) -> list[str]:
    password = urlsplit(url).password
    return [] if not password else [password, unquote(password)]
