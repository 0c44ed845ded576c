"""The form of a ComfyUI node class, as far as it decides what a prompt means: names and types of inputs, types of outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from yggdrasill.remote.comfy_ports import is_link

__all__ = ["differences", "form_of"]

Form = dict[str, Any]


def form_of(entry: Mapping[str, Any]) -> Form:
    """``{"required": {name: type}, "optional": {name: type}, "outputs": [type]}`` of an entry of ComfyUI's ``/object_info``.

    The choices of a list are often a machine's files, so they do not count.
    """
    given = entry.get("input") or {}
    groups = {
        group: {
            str(name): "COMBO" if isinstance(item[0], (list, tuple)) else str(item[0]) for name, item in (given.get(group) or {}).items()
        }
        for group in ("required", "optional")
    }
    return {**groups, "outputs": [str(kind) for kind in entry.get("output") or ()]}


def differences(prompt: Mapping[str, Any], class_type: str, here: Form, there: Form) -> list[str]:
    """What makes ``prompt`` mean something else over there; nothing it does not use counts."""
    nodes = {node_id: node for node_id, node in prompt.items() if node["class_type"] == class_type}
    found = [said for node in nodes.values() for said in _of_inputs(node["inputs"], here, there)]
    used = {value[1] for node in prompt.values() for value in node["inputs"].values() if is_link(value) and value[0] in nodes}
    for index in sorted(used):
        ours, theirs = (str(dict(enumerate(form["outputs"])).get(index, "missing")) for form in (here, there))
        if ours != theirs:
            found.append(f"output {index} is {ours} here and {theirs} there")
    return list(dict.fromkeys(found))


def _of_inputs(given: Mapping[str, Any], here: Form, there: Form) -> Iterator[str]:
    ours, theirs = ({**form["optional"], **form["required"]} for form in (here, there))
    for name in given:
        # names of inputs that grow have a dot, and no entry of their own on either side
        if name in ours and ours[name] != theirs.get(name):
            yield f"input {name!r} is {ours[name]} here and {theirs.get(name, 'missing')} there"
    for name, kind in there["required"].items():
        if name not in given and name not in ours:
            yield f"input {name!r} ({kind}) is needed there and missing here"
