"""Start-up of the endpoint inside ComfyUI: builds the extension context, adds the routes, and starts the service."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from yggdrasill.remote.comfy_graph import run_prompts_with
from yggdrasill.remote.preflight import set_local_comfy
from yggdrasill.remote.retry import RetryPolicy
from yggdrasill.server_ext.auth import token_of_endpoint
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.comfy_host import ComfyHost
from yggdrasill.server_ext.comfy.extension_context import ExtensionContext, set_extension_context
from yggdrasill.server_ext.comfy.local_fallback import LocalFallbacks
from yggdrasill.server_ext.comfy.runner import QueueRunner
from yggdrasill.server_ext.comfy.settings import ComfySettings
from yggdrasill.server_ext.comfy.ui_routes import add_ui_routes, add_web_files
from yggdrasill.server_ext.comfy.value_classes import register_classes
from yggdrasill.server_ext.comfy.workflow_cache import WorkflowCache
from yggdrasill.server_ext.model_fetch import ModelSources
from yggdrasill.server_ext.parent_watchdog import exit_with_parent
from yggdrasill.server_ext.peers import KnownEndpoints
from yggdrasill.server_ext.redaction import Redactor, secrets_of_environment
from yggdrasill.server_ext.routes import Endpoint, add_routes
from yggdrasill.server_ext.server import Settings, build_service
from yggdrasill.server_ext.service import Service

__all__ = ["attach"]

_LOG = logging.getLogger("yggdrasill.comfy")


def attach() -> None:
    """Attach an endpoint to this ComfyUI. Call it on the main loop, before the routes are added.

    A failure is written to ComfyUI's log and to ``ExtensionContext.problem``; ComfyUI itself starts in any case.
    """
    exit_with_parent()
    context = ExtensionContext(QueueRunner())
    set_extension_context(context)
    register_classes()
    with host_api.shielded("the editor's extension cannot be served"):
        add_web_files(host_api.prompt_server().app.router)
    try:
        _attach(context)
    except Exception as error:  # noqa: BLE001 - ComfyUI starts without us
        context.problem = f"{type(error).__name__}: {error}"
        _LOG.error("Yggdrasill: this ComfyUI is not an endpoint: %s", context.problem)


def _attach(context: ExtensionContext) -> None:
    data_dir = Path(host_api.user_directory()) / "yggdrasill"
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = ComfySettings.read(data_dir / "settings.yaml")
    context.runner = QueueRunner(settings.queue)
    # the editor lists the jobs; ComfyUI's console reports its own runs
    logging.getLogger("yggdrasill.jobs").setLevel(logging.WARNING)
    redactor = Redactor(secrets_of_environment())
    token = token_of_endpoint(data_dir, lambda found: redactor.learn([found]))
    retry_policy = RetryPolicy(settings.first_patience, settings.patience)
    context.read_registry = KnownEndpoints(data_dir / "endpoints.yaml", settings.peers, redactor.learn, retry_policy=retry_policy).registry
    addresses, port, url = _own_addresses(settings)
    serving = Settings(
        host=addresses[0],
        port=port,
        data_dir=data_dir,
        artifacts=Path(settings.artifacts) if settings.artifacts else None,
        share_folder=settings.share_folder,
        artifact_quota=None if settings.artifact_quota is None else int(settings.artifact_quota * 2**30),
        peers=settings.peers,
        allow_hosts=[*settings.allow_hosts, *addresses],
        peer_url=settings.peer_url,
        roots=host_api.model_folders(),
    )
    run_prompts_with(context.runner)
    host = ComfyHost(settings.slots)
    set_local_comfy(host)
    service, guard, set_url = build_service(serving, data_dir, token, redactor, host)
    set_url(url)
    context.local_fallbacks = LocalFallbacks(WorkflowCache(data_dir / "kept"), service.deployments)
    service.models = ModelSources(settings.model_sources, host_api.named_model_folders, int(settings.model_limit * 2**30))
    app = host_api.prompt_server().app
    add_routes(app.router, Endpoint(service, guard))
    add_ui_routes(app.router, service, guard, token, settings.peer_url)
    _register_lifecycle(app, service, context)
    context.placement.install()
    problem = host_api.flags_problem()
    if problem is not None:
        _LOG.warning("Yggdrasill: %s", problem)


def _register_lifecycle(app: Any, service: Service, context: ExtensionContext) -> None:
    async def start(_: Any) -> None:
        try:
            await service.start()
        except Exception as error:  # noqa: BLE001 - ComfyUI starts without us
            context.problem = f"{type(error).__name__}: {error}"
            _LOG.error("Yggdrasill: this ComfyUI does not accept jobs: %s", context.problem)
        with host_api.shielded("the other endpoints cannot be monitored"):
            context.placement.monitor.start()

    async def stop(_: Any) -> None:
        with host_api.shielded("monitoring of the other endpoints could not be stopped"):
            await context.placement.monitor.stop()
        with host_api.shielded("the endpoint could not be closed"):
            await service.close(1.0)

    app.on_startup.append(start)
    app.on_shutdown.append(stop)


def _own_addresses(settings: ComfySettings) -> tuple[list[str], int, str]:
    """Return the addresses and the port that ComfyUI listens on, and the URL at which this machine reaches it."""
    args = importlib.import_module("comfy.cli_args").args
    addresses = [part.strip() for part in str(args.listen).split(",")]
    scheme = "https" if args.tls_keyfile and args.tls_certfile else "http"
    name = "127.0.0.1" if addresses[0] in ("0.0.0.0", "::", "") else addresses[0]  # noqa: S104 - compared with
    return addresses, int(args.port), f"{scheme}://{f'[{name}]' if ':' in name else name}:{args.port}"
