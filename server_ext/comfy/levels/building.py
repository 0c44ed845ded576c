"""Builds runnables from configs: locally, or with the parts that the registry places as proxies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig, format_options
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.container import Container
from yggdrasill.foundation.kinds import Kind, build_project, detect_kind, kind_of
from yggdrasill.remote.endpoints import EndpointRegistry
from yggdrasill.remote.placement import ProjectPart, match_keys, name_of
from yggdrasill.remote.placing import RegistryProject, make_proxy
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.extension_context import extension_context
from yggdrasill.server_ext.comfy.levels.built import built_runnables, referenced_files, size_of
from yggdrasill.server_ext.comfy.levels.host_paths import check

__all__ = ["build", "build_placed", "checked_level", "config_key", "retain"]


def config_key(config: Mapping[str, Any]) -> str:
    """Return a string that is equal for equal configs."""
    return json.dumps(config, sort_keys=True, default=repr)


def checked_level(config: Any, *levels: str) -> str:
    """Return the kind of ``config`` if it belongs to one of ``levels``; a kind without children that is run with inputs, such as a
    ComfyUI workflow, belongs to the graphs.

    Raises:
        InvalidConfig
    """
    if not isinstance(config, Mapping):
        raise InvalidConfig(f"A config must be a mapping, got {type(config).__name__}. Link the output of a Yggdrasill node.")
    kind = detect_kind(config)
    level = None if kind is None else "graph" if kind.boundary == "ports" and kind.children is None else kind.name
    if kind is None or level not in levels:
        found = f"the config of a {level}" if level else f"a config of unknown level with the keys {format_options(map(str, config))}"
        raise InvalidConfig(f"Expected the config of one of {format_options(levels)}, got {found}. Load it with the node for its level.")
    return kind.name


def build(config: Mapping[str, Any]) -> Any:
    """Build the graph, pipeline, stage or world of ``config`` in this process. Its models stay loaded while similar configs are built.

    Raises:
        InvalidConfig, UnsupportedVersion, UnknownBlockType, InvalidEdge
    """
    checked = check(config)
    _make_room(config)
    built = build_project(checked, BuildOptions(allow_ref=False))
    return retain(config, built)


def build_placed(config: Mapping[str, Any]) -> Any:
    """Build ``config`` as `build` does, with the parts that the registry places on endpoints as proxies of deployments.

    Raises:
        InvalidConfig, EndpointUnreachable, RemoteError, and the errors of `build`.
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
    resolver, checked = RegistryProject(registry, name_of(config)), check(config)
    _make_room(config)
    return retain(config, build_project(checked, BuildOptions(endpoints=resolver, allow_ref=False)))


def _whole(config: Mapping[str, Any], kind: Kind, registry: EndpointRegistry) -> tuple[Any, bool]:
    """Return the placement of the project as a whole, if any, and whether some of its parts are placed differently."""
    config_id = kind.id_of(config)
    parts = [part for part in ProjectPart.of_config((), config).walk() if part.path]
    keys, _ = match_keys(registry.placements, [ProjectPart((config_id,), None), *parts], config_id)
    taken = (config_id,) in {part.path for part in parts}
    key = None if taken else keys.pop((config_id,), None)
    whole = (
        registry.placements[key] if key is not None else registry.default if kind.boundary == "ports" and kind.children is None else None
    )
    return whole, any(registry.placements[other] != whole for other in keys.values())


def retain(config: Mapping[str, Any], built: Any) -> Any:
    """Keep a runnable for the next node, because the reuse pool shares a model only while a runnable uses it. Return it.

    A node that changes what it built, or returns its config in another form, retains it under the config that it returns: the next node
    builds from that one, and the two do not stay loaded side by side.
    """
    if isinstance(built, Container):
        built_runnables.keep(config_key(config), built, referenced_files(config))
    return built


def _make_room(config: Mapping[str, Any]) -> None:
    """Let ComfyUI unload models of its own if the models of ``config``, which is about to be built, need their memory."""
    nbytes = size_of(referenced_files(config) - built_runnables.files())
    if nbytes:
        with compat.shielded("ComfyUI could not be asked for memory"):
            compat.make_room(nbytes)
