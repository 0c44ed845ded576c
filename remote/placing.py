"""Placing: construction of remote parts, while a project is built from its config and for a project that is already built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.kinds import build_project, detect_kind, kind_of
from yggdrasill.pipeline.dag import Dag
from yggdrasill.remote.deployment import DeploymentSpec, inline_refs, state_without_checkpoint
from yggdrasill.remote.placement import Placement, ProjectPart, config_keys, match_keys
from yggdrasill.remote.remote_graph import RemoteGraph, RemotePart
from yggdrasill.remote.remote_stage import RemoteStage, RemoteWorld
from yggdrasill.remote.route import Route
from yggdrasill.world.world import World

if TYPE_CHECKING:
    from yggdrasill.remote.endpoints import EndpointRegistry

__all__ = ["RegistryProject", "make_proxy", "place", "placed_route", "served_proxy"]

#: The proxy's class by how the part is called; a state goes through other methods than inputs do.
_CLASSES: dict[str | None, type[RemotePart]] = {"state": RemoteStage, "world": RemoteWorld}


def placed_route(registry: EndpointRegistry, placement: Placement, graph_id: str, *, deployment: DeploymentSpec | None = None) -> Route:
    """Return the route for ``placement``, with the clients and the retry policy of ``registry``.

    Raises:
        UnknownEndpoint
    """
    return Route(
        [registry.client(name) for name in placement.endpoints],
        graph_id,
        deployment=deployment,
        policy=placement.policy,
        max_queued=placement.max_queued,
        retry_policy=registry.retry_policy,
        strict_build=registry.strict_build,
        priority=placement.priority,
        deadline=placement.deadline,
    )


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
    route = placed_route(registry, placement, name, deployment=deployment)
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
        route = placed_route(registry, placement, graph_id)
    cls = RemoteStage if entry.get("stage") else RemoteGraph
    return cls(route=route, config={"endpoint_url": url, "graph_id": graph_id}, artifact_client=registry.artifact_client)


class RegistryProject:
    """The resolver for one project with the id ``name``. It places parts and checks the registry's keys against all of them."""

    def __init__(self, registry: EndpointRegistry, name: str | None = None) -> None:
        self._registry = registry
        self._name = name
        self._parts: dict[tuple[str, ...], ProjectPart] = {}
        #: Placements inherited by the parts inside a level because another part inside it is placed separately.
        self._inherited: dict[tuple[str, ...], Placement] = {}

    def resolve(self, path: tuple[str, ...], config: Mapping[str, Any]) -> Any | None:
        """See `Resolver.resolve`.

        Raises:
            InvalidConfig: an ambiguous key, or a part that must run locally and has no config.
            Otherwise as `make_proxy`.
        """
        base = config.get("base_dir")
        inner = next((inline_refs(config[field], base, "/".join(path)) for field in config_keys() if field in config), None)
        part = ProjectPart.of_config(path, inner)
        for below in part.walk():
            self._parts.setdefault(below.path, below)
        keys, _ = match_keys(self._registry.placements, self._parts.values(), self._name)
        placement = self._placement(part, keys)
        if "endpoint_url" in config:
            if placement is not None and placement.is_local and part.path in keys:
                raise InvalidConfig(
                    f"{part.name!r} is placed 'local', but its config is only the url {config['endpoint_url']!r}; provide its config"
                )
            named = placement if part.path in keys else None
            return served_proxy(self._registry, path, config, named)
        if placement is None or placement.is_local or inner is None:
            return None
        if any(keys.get(below.path) not in (None, keys.get(path)) for below in list(part.walk())[1:]):
            self._inherited[path] = placement
            return None
        own = part.own_id or path[-1]
        return make_proxy(self._registry, placement, own, inner, fallback=lambda: build_project(inner, BuildOptions(base_dir=base)))

    def _placement(self, part: ProjectPart, keys: Mapping[tuple[str, ...], str]) -> Placement | None:
        """Return the placement of the part's key, else of the nearest level around it, else, for a graph, the default."""
        if part.path in keys:
            found = self._registry.placements[keys[part.path]]
            if found.is_local:
                self._inherited[part.path] = found
            return found
        for length in range(len(part.path) - 1, 0, -1):
            around = self._inherited.get(part.path[:length])
            if around is not None:
                return around
        return None if part.children else self._registry.default

    def finish(self) -> None:
        """Check every key against the whole project and warn about those that name nothing."""
        self._registry.placements_of(list(self._parts.values()), self._name)


def place(project: Any, registry: EndpointRegistry) -> Any:
    """Return a copy of a graph, pipeline, stage or world with its placed parts remote; the other parts are the same objects.

    A placed part is deployed with its config and the state of blocks that name no checkpoint. A project that is placed as a whole, by
    its id, becomes a remote part.

    Raises:
        InvalidArgument: not a project, or a stateful block is shared with a part that runs in another place.
        InvalidConfig: an ambiguous key.
        UnknownBlockType, PayloadTooLarge, EndpointUnreachable, InvalidEdge
    """
    if not isinstance(project, Container) and not _is_leaf(project):
        raise InvalidArgument(f"expected a graph, pipeline, stage or world to place, got {type(project).__name__}")
    root = ProjectPart((project.id,), None)
    parts = [part for part in ProjectPart.of_config((), project.to_config()).walk() if part.path]
    placements = registry.placements_of([root, *parts], project.id)
    project_placement = placements.pop(root.path, None) if root.path not in {part.path for part in parts} else None
    if project_placement is None and _is_leaf(project):
        project_placement = registry.default
    placer = _Placer(registry, placements)
    placed = placer.part(project, (), project_placement)
    placer.check_shared_state()
    return placed


def _is_leaf(part: Any) -> bool:
    """Whether a part is placed whole or not at all: a graph, or a runnable of another kind that endpoints serve."""
    if isinstance(part, (Graph, Container, RemotePart)):
        return isinstance(part, Graph)
    kind = detect_kind(part.to_config()) if isinstance(part, Runnable) else None
    return kind is not None and kind.servable


class _Placer:
    def __init__(self, registry: EndpointRegistry, placements: Mapping[tuple[str, ...], Placement]) -> None:
        self._registry = registry
        self._placements = placements
        #: Where each stateful block runs: the name of the placed part, or empty for this process.
        self._locations: dict[int, set[str]] = {}

    def part(self, child: Any, path: tuple[str, ...], inherited: Placement | None) -> Any:
        """Return the placed form of ``child``: a remote part, a copy with remote parts inside, or ``child``."""
        placement = self._placements.get(path, inherited)
        is_leaf = _is_leaf(child)
        if not isinstance(child, Container) and not is_leaf:
            return child
        if placement is None and is_leaf:
            placement = self._registry.default
        split = any(other[: len(path)] == path and other != path and found != placement for other, found in self._placements.items())
        if placement is not None and not placement.is_local and (is_leaf or not split):
            self._record(child, "/".join(path) or child.id)
            return self._proxy(child, path, placement)
        if is_leaf:
            self._record(child, "")
            return child
        children = {child_id: self.part(below, (*path, child_id), placement) for child_id, below in child.children.items()}
        changed = {child_id: below for child_id, below in children.items() if below is not child.children[child_id]}
        return cast("Dag | World", child).with_children(changed) if changed else child

    def _proxy(self, child: Any, path: tuple[str, ...], placement: Placement) -> Any:
        return make_proxy(
            self._registry,
            placement,
            child.id,
            child.to_config(),
            state=state_without_checkpoint(child) if isinstance(child, Container) else None,
            fallback=lambda: child,
        )

    def _record(self, part: Any, location: str) -> None:
        for block in part.blocks() if isinstance(part, Container) else ():
            if block.stateful:
                self._locations.setdefault(id(block), set()).add(location)

    def check_shared_state(self) -> None:
        """Raise `InvalidArgument` if parts that now run in different places shared a stateful block."""
        for locations in self._locations.values():
            if len(locations) > 1:
                names = ", ".join(repr(location) if location else "this process" for location in sorted(locations))
                raise InvalidArgument(
                    f"{names} share a block that keeps state between calls, which can live in one place only; place them together, as one pipeline"
                )
