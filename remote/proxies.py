"""Construction of remote parts: the class of the level, the route to its endpoints, and the local fallback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from yggdrasill.foundation.kinds import kind_of
from yggdrasill.remote.deployment import DeploymentSpec
from yggdrasill.remote.placement import Placement
from yggdrasill.remote.remote_graph import RemoteGraph
from yggdrasill.remote.remote_part import RemotePart
from yggdrasill.remote.remote_stage import RemoteStage, RemoteWorld
from yggdrasill.remote.route import Route

if TYPE_CHECKING:
    from yggdrasill.remote.endpoints import EndpointRegistry

__all__ = ["make_proxy", "served_proxy"]

#: The proxy's class by how the part is called; a state goes through other methods than inputs do.
_CLASSES: dict[str | None, type[RemotePart]] = {"state": RemoteStage, "world": RemoteWorld}


def make_proxy(
    registry: EndpointRegistry,
    placement: Placement,
    name: str,
    config: Mapping[str, Any],
    *,
    state: Mapping[str, Any] | None = None,
    saved: Mapping[str, Any] | None = None,
    fallback: Callable[[], Any] | None = None,
) -> RemotePart:
    """Build a remote part and deploy it on the endpoints of ``placement`` that answer.

    ``saved`` is the result of its `to_config`, if that is not ``config``.

    Raises:
        EndpointUnreachable: no endpoint answers and there is no fallback.
        UnknownBlockType, PayloadTooLarge, RemoteError
    """
    kind = kind_of(config, "graph")
    deployment = DeploymentSpec(name, kind.name, config, state or {}, artifact_client=registry.artifact_client)
    route = Route.placed(registry, placement, name, deployment=deployment)
    local_fallback = fallback if placement.fallback == "local" else None
    kept = saved if saved is not None else config
    proxy = _CLASSES.get(kind.boundary, RemoteGraph)(
        route=route, config=kept, fallback=local_fallback, artifact_client=registry.artifact_client
    )
    proxy.prepare()
    return proxy


def served_proxy(registry: EndpointRegistry, path: tuple[str, ...], entry: Mapping[str, Any], placement: Placement | None) -> RemotePart:
    """Build the remote part of a deployment with a known id: at the entry's ``endpoint_url``, or where the registry places it."""
    url, graph_id = str(entry["endpoint_url"]), str(entry.get("graph_id") or path[-1])
    if placement is None:
        route = Route([registry.client_for(url)], graph_id, retry_policy=registry.retry_policy, strict_build=registry.strict_build)
    else:
        route = Route.placed(registry, placement, graph_id)
    cls = RemoteStage if entry.get("stage") else RemoteGraph
    return cls(route=route, config={"endpoint_url": url, "graph_id": graph_id}, artifact_client=registry.artifact_client)
