"""Resolvers that decide, part by part, where a part runs while a level is built from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yggdrasill.errors import InvalidConfig
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.kinds import build_project
from yggdrasill.remote.deployment import inline_refs
from yggdrasill.remote.placement import Placement, ProjectPart, config_keys, match_keys
from yggdrasill.remote.proxies import make_proxy, served_proxy

if TYPE_CHECKING:
    from yggdrasill.remote.endpoints import EndpointRegistry

__all__ = ["RegistryProject"]


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
