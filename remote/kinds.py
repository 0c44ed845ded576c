"""Kinds of runnables that this package adds: ``comfy``, a ComfyUI workflow with ports, and ``remote``, a part served at a url.

Importing this module registers them; the modules that build them are imported when a config needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidConfig
from yggdrasill.foundation.config import BuildOptions
from yggdrasill.foundation.kinds import Kind, register_kind

__all__: list[str] = []


def _comfy_class() -> Any:
    from yggdrasill.remote.comfy_graph import ComfyGraph

    return ComfyGraph


def _remote_class() -> Any:
    from yggdrasill.remote.remote_graph import RemoteGraph

    return RemoteGraph


def _build_remote(config: Mapping[str, Any], options: BuildOptions) -> Any:
    """Return the proxy of the part that a config names by ``endpoint_url`` and ``graph_id``.

    Credentials are those of `UrlResolver`, whatever resolver the project has: that one did not place the part.

    Raises:
        InvalidConfig: neither ``graph_id`` nor a place in a project says how the part is called.
    """
    from yggdrasill.remote.endpoints import UrlResolver

    path = options.path or ((str(config["graph_id"]),) if config.get("graph_id") else ())
    if not path or not isinstance(config.get("endpoint_url"), str):
        raise InvalidConfig(f"The config of a remote part is {{endpoint_url, graph_id}}; this one has {sorted(map(str, config))}")
    return UrlResolver().resolve(path, config)


register_kind(
    Kind(
        "comfy",
        load_class=_comfy_class,
        build=lambda config, options: _comfy_class().from_config(config),
        marks=("prompt",),
        run_options=frozenset({"num_loop_steps", "dry_run", "preview_method"}),
    )
)
register_kind(Kind("remote", load_class=_remote_class, build=_build_remote, marks=("endpoint_url",), boundary=None, servable=False))
