"""The inventory of this ComfyUI: node classes, each with a hash of its inputs and outputs, and the model files in its folders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.model_names import same_path
from yggdrasill.remote.partition.traits import texts_of
from yggdrasill.remote.preflight import choices_of, class_signature
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
    """Rewrite paths in ``prompt`` as this machine spells them: the same path may use ``\\`` or ``/``.

    A value is a path if it is an option of its list or names a model file; so are the texts inside lists and dicts. Other text is unchanged.
    """
    known: dict[str, str] | None = None
    for node in prompt.values():
        inputs = node["inputs"]
        for name, value in inputs.items():
            if is_link(value) or not any("\\" in text or "/" in text for text in texts_of(value)):
                continue
            specs = _input_specs(str(node["class_type"]))
            options = choices_of(specs.get(name))
            if options is not None:
                inputs[name] = _respelled(value, {same_path(option): option for option in options if isinstance(option, str)})
            elif not _is_free_text(specs.get(name)):
                if known is None:
                    known = {same_path(file): file for files in model_files().values() for file in files}
                inputs[name] = _respelled(value, known)


def _respelled(value: Any, known: Mapping[str, str]) -> Any:
    """Return ``value`` with each text in it that names an entry of ``known`` spelled as that entry."""
    if isinstance(value, str):
        return known.get(same_path(value), value)
    if isinstance(value, dict):
        return {key: _respelled(item, known) for key, item in value.items()}
    if isinstance(value, list) and not is_link(value):
        return [_respelled(item, known) for item in value]
    return value


def _input_specs(class_type: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    node_class = compat.node_classes().get(class_type)
    if node_class is not None:
        with compat.shielded(f"the inputs of node class {class_type!r} could not be read"):
            inputs = node_class.INPUT_TYPES()
            found = {**(inputs.get("optional") or {}), **(inputs.get("required") or {})}
    return found


def _is_free_text(spec: Any) -> bool:
    """Return whether an input is a text of several lines, such as a prompt."""
    options = spec[1] if isinstance(spec, (list, tuple)) and len(spec) > 1 else {}
    return isinstance(options, Mapping) and bool(options.get("multiline"))


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
