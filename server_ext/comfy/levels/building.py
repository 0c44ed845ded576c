"""From a config to something that is checked or runs: locally, or with its parts where the registry places them."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.kinds import Kind, build_project, detect_kind, kind_of
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placement import ProjectPart, match_keys, name_of
from yggdrasill.remote.proxies import make_proxy
from yggdrasill.remote.resolvers import RegistryProject
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.levels.host_paths import check

__all__ = ["build", "checked_level", "config_key", "placed"]

_MOST_KEPT = 8
_kept: OrderedDict[str, Any] = OrderedDict()
_kept_lock = threading.Lock()


def config_key(config: Mapping[str, Any]) -> str:
    """Equal for equal configs."""
    return json.dumps(config, sort_keys=True, default=repr)


def checked_level(config: Any, *levels: str) -> str:
    """Return the kind of ``config`` if it belongs to one of ``levels``; a kind without children that is run with inputs, such as a
    ComfyUI workflow, belongs to the graphs.

    Raises:
        InvalidConfig
    """
    if not isinstance(config, Mapping):
        raise InvalidConfig(f"a config is a mapping, got {type(config).__name__}; link what a Yggdrasill node gives")
    kind = detect_kind(config)
    level = None if kind is None else "graph" if kind.boundary == "ports" and kind.children is None else kind.name
    if kind is None or level not in levels:
        what = f"a {level}'s" if level else f"of no level: it has {format_options(map(str, config))}"
        raise InvalidConfig(f"this config is {what}, and here goes one of {format_options(levels)}; load it with the node for its level")
    return kind.name


def build(config: Mapping[str, Any]) -> Any:
    """The graph, pipeline, stage or world of ``config`` in this process. Its models stay loaded while others like it are built.

    Raises:
        InvalidConfig, UnsupportedVersion, UnknownBlockType, InvalidEdge
    """
    built = build_project(check(config), BuildOptions(allow_ref=False))
    return _keep(config, built) if isinstance(built, Container) else built


def placed(config: Mapping[str, Any]) -> Any:
    """As `build`, with the parts that the registry of this ComfyUI places elsewhere as proxies of what is deployed there.

    Raises:
        InvalidConfig, EndpointUnreachable, RemoteError, and as `build`.
    """
    registry, kind = extension_context().registry, kind_of(config, "graph")
    if not registry.endpoints:
        return build(config)
    whole, apart = _whole(config, kind, registry)
    if whole is not None and not whole.is_local and not apart:
        return make_proxy(registry, whole, kind.id_of(config), check(config), fallback=lambda: build(config))
    if kind.name == "comfy":
        return build(config)
    if whole is not None and not whole.is_local:
        return registry.place(build(config))
    resolver = RegistryProject(registry, name_of(config))
    return _keep(config, build_project(check(config), BuildOptions(endpoints=resolver, allow_ref=False)))


def _whole(config: Mapping[str, Any], kind: Kind, registry: EndpointRegistry) -> tuple[Any, bool]:
    """Where the project as a whole is placed, if anywhere, and whether some of its parts are placed apart from it."""
    own = kind.id_of(config)
    parts = [part for part in ProjectPart.of_config((), config).walk() if part.path]
    keys, _ = match_keys(registry.placements, [ProjectPart((own,), None), *parts], own)
    taken = (own,) in {part.path for part in parts}
    key = None if taken else keys.pop((own,), None)
    whole = (
        registry.placements[key] if key is not None else registry.default if kind.boundary == "ports" and kind.children is None else None
    )
    return whole, any(registry.placements[other] != whole for other in keys.values())


def _keep(config: Mapping[str, Any], built: Any) -> Any:
    """Hold on to the last few that were built: the reuse pool shares a model for as long as somebody has it."""
    with _kept_lock:
        _kept[config_key(config)] = built
        _kept.move_to_end(config_key(config))
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return built
