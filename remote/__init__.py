"""Remote execution: parts of a project on endpoints, the registry that places them, and their client."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yggdrasill.remote.artifact_client import ArtifactClient
    from yggdrasill.remote.client import EndpointClient
    from yggdrasill.remote.endpoint import Endpoint
    from yggdrasill.remote.endpoints import EndpointRegistry, UrlResolver
    from yggdrasill.remote.observers import CallReport, observe_calls
    from yggdrasill.remote.placement import Placement
    from yggdrasill.remote.placing import place
    from yggdrasill.remote.remote_graph import RemoteGraph, RemoteWorkflow
    from yggdrasill.remote.remote_stage import RemoteStage, RemoteWorld
    from yggdrasill.remote.retry import RetryPolicy

_MODULES = {
    "CallReport": "observers",
    "ArtifactClient": "artifact_client",
    "Endpoint": "endpoint",
    "EndpointClient": "client",
    "EndpointRegistry": "endpoints",
    "RetryPolicy": "retry",
    "Placement": "placement",
    "RemoteGraph": "remote_graph",
    "RemoteStage": "remote_stage",
    "RemoteWorkflow": "remote_graph",
    "RemoteWorld": "remote_stage",
    "UrlResolver": "endpoints",
    "observe_calls": "observers",
    "place": "placing",
}

__all__ = [
    "ArtifactClient",
    "CallReport",
    "Endpoint",
    "EndpointClient",
    "EndpointRegistry",
    "Placement",
    "RemoteGraph",
    "RemoteStage",
    "RemoteWorkflow",
    "RemoteWorld",
    "RetryPolicy",
    "UrlResolver",
    "observe_calls",
    "place",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'yggdrasill.remote' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"yggdrasill.remote.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
