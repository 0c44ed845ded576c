"""The definitions of this ComfyUI's node classes, exactly as its ``/object_info`` returns them, and properties that these do not contain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from yggdrasill.server_ext.comfy import compat

__all__ = ["read_object_info"]


async def read_object_info(names: Iterable[str]) -> dict[str, Any]:
    """Return ``{"nodes": {name: entry of /object_info}, "asks_again": [name], "loops": {name: role}, "unknown": [name]}``.

    Call it on ComfyUI's main loop. ``asks_again`` lists classes that `compat.may_rerun` reports, ``loops`` has `compat.loop_role` of classes
    that have one, and ``unknown`` lists classes that do not exist or cannot be read.
    """
    classes = compat.node_classes()
    found: dict[str, Any] = {}
    again, unknown = [], []
    loops: dict[str, str] = {}
    for name in dict.fromkeys(names):
        with compat.shielded(f"the definition of node class {name!r} could not be read"):
            found.update(await compat.object_info_entry(name))
        if name not in found:
            unknown.append(name)
            continue
        if compat.may_rerun(classes[name]):
            again.append(name)
        role = compat.loop_role(classes[name])
        if role is not None:
            loops[name] = role
    return {"nodes": found, "asks_again": again, "loops": loops, "unknown": unknown}
