"""Builds runnables from configs: locally, or with the parts that the registry places as proxies."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options
from yggdrasill.foundation import Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placement import ProjectPart, match_keys, name_of
from yggdrasill.remote.proxies import kind_of, make_proxy
from yggdrasill.remote.resolvers import RegistryProject
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.levels.host_paths import check
from yggdrasill.stage import Stage
from yggdrasill.world import World

__all__ = ["CLASSES", "build", "build_placed", "checked_level", "config_key"]

CLASSES: dict[str, Any] = {"graph": Graph, "pipeline": Pipeline, "stage": Stage, "world": World, "comfy": ComfyGraph}
_MAX_BUILT = 8
_built: OrderedDict[str, Any] = OrderedDict()
_built_lock = threading.Lock()


def config_key(config: Mapping[str, Any]) -> str:
    """Return a string that is equal for equal configs."""
    return json.dumps(config, sort_keys=True, default=repr)


def checked_level(config: Any, *levels: str) -> str:
    """Return the kind of ``config`` if its level is one of ``levels``. A ComfyUI workflow with ports counts as a graph.

    Raises:
        InvalidConfig
    """
    if not isinstance(config, Mapping):
        raise InvalidConfig(f"A config must be a mapping, got {type(config).__name__}. Link the output of a Yggdrasill node.")
    kind = kind_of(config)
    level = "graph" if kind == "comfy" else kind
    marked = kind != "graph" or "nodes" in config or "graph_id" in config
    if level not in levels or not marked:
        found = f"the config of a {level}" if marked else f"a config of unknown level with the keys {format_options(map(str, config))}"
        raise InvalidConfig(f"Expected the config of one of {format_options(levels)}, got {found}. Load it with the node for its level.")
    return kind


def build(config: Mapping[str, Any]) -> Any:
    """Build the graph, pipeline, stage or world of ``config`` in this process. Its models stay loaded while similar configs are built.

    Raises:
        InvalidConfig, UnsupportedVersion, UnknownBlockType, InvalidEdge
    """
    kind = kind_of(config)
    if kind == "comfy":
        return ComfyGraph.from_config(check(config))
    return _retain(config, CLASSES[kind].from_config(check(config), allow_ref=False))


def build_placed(config: Mapping[str, Any]) -> Any:
    """Build ``config`` as `build` does, with the parts that the registry places on endpoints as proxies of deployments.

    Raises:
        InvalidConfig, EndpointUnreachable, RemoteError, and the errors of `build`.
    """
    registry, kind = extension_context().registry, kind_of(config)
    if not registry.endpoints:
        return build(config)
    whole, apart = _whole(config, kind, registry)
    if whole is not None and not whole.is_local and not apart:
        config_id = str(config.get(f"{'graph' if kind == 'comfy' else kind}_id", kind))
        return make_proxy(registry, whole, config_id, check(config), fallback=lambda: build(config))
    if kind == "comfy":
        return build(config)
    if whole is not None and not whole.is_local:
        return registry.place(build(config))
    return _retain(config, CLASSES[kind].from_config(check(config), allow_ref=False, endpoints=RegistryProject(registry, name_of(config))))


def _whole(config: Mapping[str, Any], kind: str, registry: EndpointRegistry) -> tuple[Any, bool]:
    """Return the placement of the project as a whole, if any, and whether some of its parts are placed differently."""
    config_id = str(config.get(f"{'graph' if kind == 'comfy' else kind}_id", kind))
    parts = [part for part in ProjectPart.of_config((), config).walk() if part.path]
    keys, _ = match_keys(registry.placements, [ProjectPart((config_id,), None), *parts], config_id)
    taken = (config_id,) in {part.path for part in parts}
    key = None if taken else keys.pop((config_id,), None)
    whole = registry.placements[key] if key is not None else registry.default if kind in ("graph", "comfy") else None
    return whole, any(registry.placements[other] != whole for other in keys.values())


def _retain(config: Mapping[str, Any], built: Any) -> Any:
    """Keep the last few runnables alive, because the reuse pool shares a model only while a runnable uses it."""
    with _built_lock:
        _built[config_key(config)] = built
        _built.move_to_end(config_key(config))
        while len(_built) > _MAX_BUILT:
            _built.popitem(last=False)
    return built
