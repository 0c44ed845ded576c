"""The inventory of this ComfyUI: node classes, each with a hash of its inputs and outputs, and the model files in its folders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from yggdrasill.remote.preflight import class_signature, is_model_file, same_path
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.model_files import model_files
from yggdrasill.server_ext.deployment import canonical_json
from yggdrasill.values.payload import blake3_hex

__all__ = ["inventory", "memory", "node_hashes", "normalize_model_paths"]


def inventory() -> dict[str, Any]:
    """Return ``{"version", "node_classes": {name: hash of inputs and outputs}, "models": {folder: [file]}}``. The first call is slow."""
    return {"version": compat.comfy_version(), "node_classes": dict(node_hashes()), "models": model_files()}


def memory() -> list[dict[str, Any]]:
    """Return ``{device, free, total}`` in bytes for each device that ComfyUI computes on, its preferred device first.

    It is empty if this ComfyUI does not report them.
    """
    found: list[tuple[str, int, int]] = []
    with compat.shielded("the memory of the devices could not be read"):
        found = compat.compute_devices()
    return [{"device": name, "free": free, "total": total} for name, free, total in found]


def normalize_model_paths(prompt: dict[str, Any]) -> None:
    """Rewrite the model files in ``prompt`` as this machine spells them: the same path may use ``\\`` or ``/``."""
    known: dict[str, str] | None = None
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and ("\\" in value or "/" in value) and is_model_file(value):
                if known is None:
                    known = {same_path(file): file for files in model_files().values() for file in files}
                node["inputs"][name] = known.get(same_path(value), value)


@lru_cache(maxsize=1)
def node_hashes() -> Mapping[str, str]:
    """Return a hash of the inputs and outputs of every node class, empty for a class that cannot be read.

    The result is cached, because the classes do not change while ComfyUI runs.
    """
    found = {}
    for name, node_class in list(compat.node_classes().items()):
        digest = ""
        with compat.shielded(f"the inputs and outputs of node class {name!r} could not be read"):
            form = class_signature({"input": node_class.INPUT_TYPES(), "output": node_class.RETURN_TYPES})
            digest = blake3_hex(memoryview(canonical_json(form)))[:16]
        found[str(name)] = digest
    return found
