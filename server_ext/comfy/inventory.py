"""What this ComfyUI has: its node classes with a hash of each one's form, and the model files in its folders."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from yggdrasill.remote.preflight import is_model_file, same_path
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.deployments import canonical_json
from yggdrasill.values.payload import blake3_hex

__all__ = ["fit_paths", "inventory", "model_files"]


def inventory() -> dict[str, Any]:
    """``{"version", "node_classes": {name: hash of inputs and outputs}, "models": {folder: [file]}}``; takes a moment the first time."""
    return {"version": host_api.comfy_version(), "node_classes": dict(_node_classes()), "models": model_files()}


def model_files() -> dict[str, list[str]]:
    """The files ComfyUI finds in each of its model folders, as it spells them; folders without any are left out."""
    folders = importlib.import_module("folder_paths")
    names = [name for name in folders.folder_names_and_paths if name != "custom_nodes"]
    found = {name: [file for file in folders.get_filename_list(name) if is_model_file(file)] for name in names}
    return {name: files for name, files in sorted(found.items()) if files}


def fit_paths(prompt: dict[str, Any]) -> None:
    """Spell model files in ``prompt`` as this machine does: the same path may have been written with ``\\`` or ``/``."""
    known: dict[str, str] | None = None
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and ("\\" in value or "/" in value) and is_model_file(value):
                if known is None:
                    known = {same_path(file): file for files in model_files().values() for file in files}
                node["inputs"][name] = known.get(same_path(value), value)


@lru_cache(maxsize=1)
def _node_classes() -> Mapping[str, str]:
    """The classes do not change while ComfyUI runs; one whose form cannot be read has an empty hash."""
    found = {}
    for name, node_class in list(host_api.node_classes().items()):
        digest = ""
        with host_api.shielded(f"the form of node class {name!r} could not be read"):
            form = {"inputs": _types(node_class.INPUT_TYPES()), "outputs": [str(kind) for kind in node_class.RETURN_TYPES]}
            digest = blake3_hex(memoryview(canonical_json(form)))[:16]
        found[str(name)] = digest
    return found


def _types(inputs: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Names and types; the entries of a choice are often this machine's files, so they do not count."""
    return {
        group: {
            str(name): "COMBO" if isinstance(entry[0], (list, tuple)) else str(entry[0]) for name, entry in inputs.get(group, {}).items()
        }
        for group in ("required", "optional")
    }
