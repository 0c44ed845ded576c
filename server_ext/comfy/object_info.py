"""The forms of this ComfyUI's node classes, word for word as its own ``/object_info`` tells them, and which must be asked again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.comfy import host_api

__all__ = ["may_rerun", "read_object_info"]

_PATH = "/object_info/{node_class}"


async def read_object_info(names: Iterable[str]) -> dict[str, Any]:
    """``{"nodes": {name: entry of /object_info}, "asks_again": [name], "unknown": [name]}``. On ComfyUI's main loop only.

    ``unknown`` are classes that are not there, or whose form cannot be read.
    """
    handler = next((route.handler for route in host_api.prompt_server().routes if getattr(route, "path", None) == _PATH), None)
    if handler is None:
        raise InvalidArgument(f"this ComfyUI has no route {_PATH!r}, so its node classes cannot be told; update ComfyUI")
    classes = host_api.node_classes()
    found: dict[str, Any] = {}
    again, unknown = [], []
    for name in dict.fromkeys(names):
        with host_api.shielded(f"the form of node class {name!r} could not be read"):
            # the route's own code is the only place in ComfyUI that makes an entry; of a request it looks at the name alone
            found.update(json.loads((await handler(SimpleNamespace(match_info={"node_class": name}))).text))
        if name not in found:
            unknown.append(name)
        elif may_rerun(classes[name]):
            again.append(name)
    return {"nodes": found, "asks_again": again, "unknown": unknown}


def may_rerun(node_class: Any) -> bool:
    """Whether ComfyUI may run a node of this class again though its inputs are the same."""
    internal = importlib.import_module("comfy_api.internal")
    if getattr(node_class, "NOT_IDEMPOTENT", False) or hasattr(node_class, "IS_CHANGED"):
        return True
    of_new_kind = issubclass(node_class, internal._ComfyNodeInternal)
    return of_new_kind and internal.first_real_override(node_class, "fingerprint_inputs") is not None
