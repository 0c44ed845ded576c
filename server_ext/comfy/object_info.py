"""The definitions of this ComfyUI's node classes, exactly as its ``/object_info`` returns them, and which classes may have to run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from yggdrasill.server_ext.comfy import compat

__all__ = ["read_object_info"]


async def read_object_info(names: Iterable[str]) -> dict[str, Any]:
    """Return ``{"nodes": {name: entry of /object_info}, "asks_again": [name], "unknown": [name]}``. Call it on ComfyUI's main loop.

    ``asks_again`` lists classes that `compat.may_rerun` reports; ``unknown`` those that do not exist or cannot be read.
    """
    classes = compat.node_classes()
    found: dict[str, Any] = {}
    again, unknown = [], []
    for name in dict.fromkeys(names):
        with compat.shielded(f"the definition of node class {name!r} could not be read"):
            found.update(await compat.object_info_entry(name))
        if name not in found:
            unknown.append(name)
        elif compat.may_rerun(classes[name]):
            again.append(name)
    return {"nodes": found, "asks_again": again, "unknown": unknown}
