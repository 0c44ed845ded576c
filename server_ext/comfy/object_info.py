"""The definitions of this ComfyUI's node classes, exactly as its ``/object_info`` returns them, and which classes may have to run again."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from yggdrasill.errors import InvalidArgument
from yggdrasill.server_ext.comfy import host_api

__all__ = ["may_rerun", "read_object_info", "validates_itself"]

_PATH = "/object_info/{node_class}"


async def read_object_info(names: Iterable[str]) -> dict[str, Any]:
    """Return ``{"nodes": {name: entry of /object_info}, "asks_again": [name], "unknown": [name]}``. Call it on ComfyUI's main loop.

    ``asks_again`` lists classes that `may_rerun`; ``unknown`` those that do not exist or cannot be read.
    """
    handler = next((route.handler for route in host_api.prompt_server().routes if getattr(route, "path", None) == _PATH), None)
    if handler is None:
        raise InvalidArgument(f"This ComfyUI has no route {_PATH!r}, so its node classes cannot be read. Update ComfyUI.")
    classes = host_api.node_classes()
    found: dict[str, Any] = {}
    again, unknown = [], []
    for name in dict.fromkeys(names):
        with host_api.shielded(f"the definition of node class {name!r} could not be read"):
            # only the handler of this route builds an entry; of the request it reads the name alone
            found.update(json.loads((await handler(SimpleNamespace(match_info={"node_class": name}))).text))
        if name not in found:
            unknown.append(name)
        elif may_rerun(classes[name]):
            again.append(name)
    return {"nodes": found, "asks_again": again, "unknown": unknown}


def may_rerun(node_class: Any) -> bool:
    """Return whether ComfyUI may execute a node of this class again although its inputs are unchanged."""
    internal = importlib.import_module("comfy_api.internal")
    if getattr(node_class, "NOT_IDEMPOTENT", False) or hasattr(node_class, "IS_CHANGED"):
        return True
    has_schema = issubclass(node_class, internal._ComfyNodeInternal)
    return has_schema and internal.first_real_override(node_class, "fingerprint_inputs") is not None


def validates_itself(class_type: str, name: str) -> bool:
    """Return whether a class of this ComfyUI validates an input itself, so that ComfyUI does not compare it with the options.

    Classes that this ComfyUI does not have count as such.
    """
    node_class = host_api.node_classes().get(class_type)
    if node_class is None:
        return True
    internal = importlib.import_module("comfy_api.internal")
    if issubclass(node_class, internal._ComfyNodeInternal):
        validate = internal.first_real_override(node_class, "validate_inputs")
    else:
        validate = getattr(node_class, "VALIDATE_INPUTS", None)
    if validate is None:
        return False
    arguments = inspect.getfullargspec(validate)
    return name in arguments.args or arguments.varkw is not None
