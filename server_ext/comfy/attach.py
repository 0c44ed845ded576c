"""Start-up of the endpoint inside ComfyUI: builds the extension context, adds the routes, and starts the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.errors import YggdrasillError
from yggdrasill.remote.comfy_graph import run_prompts_with
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.preflight import set_local_comfy
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.server_ext.auth import token_of_endpoint
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.comfy_host import ComfyHost
from yggdrasill.server_ext.comfy.compat.holds import HOLDS
from yggdrasill.server_ext.comfy.compat.probe import EDITOR, ENDPOINT, FEATURES, PLACEMENT, probe
from yggdrasill.server_ext.comfy.custom_messages import route_custom_messages
from yggdrasill.server_ext.comfy.extension_context import ExtensionContext, set_extension_context
from yggdrasill.server_ext.comfy.local_fallback import LocalFallbacks
from yggdrasill.server_ext.comfy.orderly_stop import OrderlyStop
from yggdrasill.server_ext.comfy.placement.refusal import refuse_placed_prompts
from yggdrasill.server_ext.comfy.placement.workflow_placements import WorkflowPlacements, note_users
from yggdrasill.server_ext.comfy.runner import QueueRunner
from yggdrasill.server_ext.comfy.settings import ComfySettings
from yggdrasill.server_ext.comfy.ui_routes import PREFIXES, add_ui_routes, add_web_files
from yggdrasill.server_ext.comfy.value_classes import register_classes
from yggdrasill.server_ext.comfy.workflow_cache import WorkflowCache
from yggdrasill.server_ext.logs import Redactor, secrets_of_environment
from yggdrasill.server_ext.model_fetch import ModelSources
from yggdrasill.server_ext.parent_watchdog import exit_with_parent
from yggdrasill.server_ext.peers import KnownEndpoints
from yggdrasill.server_ext.routes import Endpoint, add_routes
from yggdrasill.server_ext.server import IO_THREADS, Settings, build_service
from yggdrasill.server_ext.service import Service

__all__ = ["attach"]

_T = TypeVar("_T")
_LOG = logging.getLogger("yggdrasill.comfy")


def attach() -> None:
    """Attach an endpoint to this ComfyUI. Call it on the main loop, before the routes are added.

    A failure is written to ComfyUI's log and to ``ExtensionContext.problem``; ComfyUI itself starts in any case.
    """
    exit_with_parent()
    context = ExtensionContext(QueueRunner(), off=dict(probe(HOLDS)))
    set_extension_context(context)
    for feature, reason in context.off.items():
        _LOG.error("Yggdrasill: %s is off in this ComfyUI (%s): %s", FEATURES[feature], compat.comfy_version(), reason)
    register_classes()
    with compat.shielded("placements of workflows cannot be read"):
        context.workflow_placements = WorkflowPlacements(Path(compat.user_directory()) / "yggdrasill" / "placements.json")
        note_users(compat.web_app())
    with compat.shielded("the editor's extension cannot be served"):
        add_web_files(compat.web_app().router)
    try:
        _attach(context)
    except Exception as error:  # noqa: BLE001 - ComfyUI starts without us
        context.problem = f"{type(error).__name__}: {error}"
        _LOG.error("Yggdrasill: this ComfyUI is not an endpoint: %s", context.problem)
        for feature in (ENDPOINT, PLACEMENT, EDITOR):
            context.off.setdefault(feature, context.problem)
    if PLACEMENT in context.off:
        with compat.shielded("prompts with placed parts cannot be refused"):
            refuse_placed_prompts(compat.web_app(), context.off[PLACEMENT], _registry_for_refusals(context), context.workflow_placements)


def _registry_for_refusals(context: ExtensionContext) -> Callable[[], EndpointRegistry]:
    """Return the reader of the registry, also where the endpoint failed before it read its registry."""
    if context.problem is not None and context.read_registry is EndpointRegistry:
        with contextlib.suppress(YggdrasillError):
            return KnownEndpoints(Path(compat.user_directory()) / "yggdrasill" / "endpoints.yaml", (), lambda tokens: None).registry
    return context.read_registry


def _attach(context: ExtensionContext) -> None:
    data_dir = Path(compat.user_directory()) / "yggdrasill"
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = ComfySettings.read(data_dir / "settings.yaml")
    context.runner = QueueRunner(settings.queue)
    # the editor lists the jobs; ComfyUI's console reports its own runs
    logging.getLogger("yggdrasill.jobs").setLevel(logging.WARNING)
    redactor = Redactor(secrets_of_environment())
    token = token_of_endpoint(data_dir, lambda found: redactor.learn([found]))
    retry_policy = RetryPolicy(settings.first_patience, settings.patience)
    context.read_registry = KnownEndpoints(data_dir / "endpoints.yaml", settings.peers, redactor.learn, retry_policy=retry_policy).registry
    addresses, port, url = _read(compat.own_addresses, (["127.0.0.1"], 8188, "http://127.0.0.1:8188"))
    serving = Settings(
        host=addresses[0],
        port=port,
        data_dir=data_dir,
        artifacts=Path(settings.artifacts) if settings.artifacts else None,
        share_folder=settings.share_folder,
        artifact_quota=None if settings.artifact_quota is None else int(settings.artifact_quota * 2**30),
        peers=settings.peers,
        allow_hosts=[*settings.allow_hosts, *addresses],
        allow_hosts_setting=f"'allow_hosts' in {data_dir / 'settings.yaml'}",
        peer_url=settings.peer_url,
        roots=_read(compat.model_folders, []),
    )
    run_prompts_with(context.runner)
    with compat.shielded("messages of nodes cannot be sent to the callers of jobs"):
        route_custom_messages(lambda prompt_id: context.runner.run_of(prompt_id) is not None)
    host = ComfyHost(settings.slots)
    set_local_comfy(host)
    service, guard, set_url = build_service(serving, data_dir, token, redactor, host)
    set_url(url)
    with compat.shielded("served graphs will not be released when ComfyUI needs memory"):
        compat.on_memory_request(lambda required, device: service.deployments.release_built())
    context.local_fallbacks = LocalFallbacks(WorkflowCache(data_dir / "kept"), service.deployments)
    service.models = ModelSources(settings.model_sources, compat.named_model_folders, int(settings.model_limit * 2**30))
    app = compat.web_app()
    context.problem = context.off.get(ENDPOINT)
    for prefix in PREFIXES:
        add_routes(app.router, Endpoint(service, guard), off=context.problem, prefix=prefix)
    add_ui_routes(app.router, service, guard, token, settings.peer_url, off=context.off.get(EDITOR))
    _register_lifecycle(app, service, context)
    if PLACEMENT not in context.off:
        _install_placement(context)
    with compat.shielded("the command line flags could not be read"):
        problem = compat.flags_problem()
        if problem is not None:
            _LOG.warning("Yggdrasill: %s", problem)


def _read(read: Callable[[], _T], default: _T) -> _T:
    """Return a fact of ComfyUI, or ``default`` where ComfyUI lacks it: the endpoint is off then, and the editor works without it."""
    try:
        return read()
    except (AttributeError, ImportError):
        return default


def _install_placement(context: ExtensionContext) -> None:
    try:
        context.placement.install()
    except Exception as error:  # noqa: BLE001 - prompts with placed parts are refused then
        context.off[PLACEMENT] = f"{type(error).__name__}: {error}"
        _LOG.error("Yggdrasill: %s is off in this ComfyUI: %s", FEATURES[PLACEMENT], context.off[PLACEMENT])


def _register_lifecycle(app: Any, service: Service, context: ExtensionContext) -> None:
    async def close() -> None:
        with compat.shielded("monitoring of the other endpoints could not be stopped"):
            await context.placement.monitor.stop()
        with compat.shielded("the endpoint could not be closed"):
            await service.close(1.0)

    orderly_stop = OrderlyStop(close)

    async def start(_: Any) -> None:
        with compat.shielded("the endpoint will not be closed when a signal ends ComfyUI"):
            orderly_stop.install()
        _enlarge_thread_pool(asyncio.get_running_loop())
        try:
            if ENDPOINT not in context.off:
                await service.start()
        except Exception as error:  # noqa: BLE001 - ComfyUI starts without us
            context.problem = f"{type(error).__name__}: {error}"
            _LOG.error("Yggdrasill: this ComfyUI does not accept jobs: %s", context.problem)
        with compat.shielded("the other endpoints cannot be monitored"):
            context.placement.monitor.start()

    async def stop(_: Any) -> None:
        await orderly_stop.close()

    app.on_startup.append(start)
    app.on_shutdown.append(stop)


def _enlarge_thread_pool(loop: asyncio.AbstractEventLoop) -> None:
    """Give the main loop a pool of as many threads as the headless server has, unless it has one already.

    Python's own has four more threads than the machine has cores, and a few requests of the endpoint that wait for a disk would block it for
    ComfyUI and all packs.
    """
    if getattr(loop, "_default_executor", None) is None:
        loop.set_default_executor(ThreadPoolExecutor(IO_THREADS, thread_name_prefix="yggdrasill-io"))
