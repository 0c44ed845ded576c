"""Binds a workflow with named ports to one job: input nodes become values named by hash, output nodes become sinks that name the job.

Nodes of the extension that produce values of ports have outputs of any type. A class that validates the types of its links would refuse them,
so they get a class with the types of the ports where such a class is linked to them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from yggdrasill.remote.comfy_graph import ComfyGraph
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.server_ext.comfy import compat

__all__ = ["RESULT_NODE", "VALUE_NODE", "bind_prompt", "give_output_types"]

VALUE_NODE = "YggdrasillValue"
RESULT_NODE = "YggdrasillResult"
_ANY = "*"
_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,79}", re.ASCII)
_NOT_PLAIN = frozenset({"COMBO"})
_MAX_CLASSES = 256
_typed: set[str] = set()
"""The names of the classes with output types that were added to ComfyUI's."""


def bind_prompt(graph: ComfyGraph, digests: Mapping[str, str], run_id: str) -> dict[str, Any]:
    """Return the prompt of one run. Node ids are those of the workflow.

    A Graph Input without a value keeps its default. Only the sinks contain ``run_id``, so they execute in every run while all other nodes
    may be served from ComfyUI's cache.
    """
    prompt = copy.deepcopy(graph.prompt)
    for name, digest in digests.items():
        for node_id in graph.inputs[name].nodes:
            prompt[node_id] = {**prompt[node_id], "class_type": VALUE_NODE, "inputs": {"hash": digest}}
    for name, port in graph.outputs.items():
        node = prompt[port.nodes[0]]
        sink = {"port": name, "type": port.type, "run": run_id, "value": node["inputs"].get("value")}
        prompt[port.nodes[0]] = {**node, "class_type": RESULT_NODE, "inputs": sink}
    return prompt


def give_output_types(prompt: dict[str, Any], types: Mapping[str, Sequence[str]]) -> None:
    """Give nodes of ``prompt`` classes whose outputs have ``types``, by node id, if a linked class validates the types of its links."""
    judges = [node for node in prompt.values() if compat.validates_types(str(node["class_type"]))]
    linked = {str(value[0]) for node in judges for value in node["inputs"].values() if is_link(value)}
    for node_id in linked & types.keys():
        kinds = [kind if _TYPE.fullmatch(kind) and kind not in _NOT_PLAIN else _ANY for kind in types[node_id]]
        prompt[node_id] = {**prompt[node_id], "class_type": _class_with_types(str(prompt[node_id]["class_type"]), kinds)}


def _class_with_types(class_type: str, kinds: Sequence[str]) -> str:
    """Return the name of a class as ``class_type`` with these output types; ``class_type`` itself if all are any, or too many exist."""
    name = f"{class_type}:{','.join(kinds)}"
    if name in _typed:
        return name
    if set(kinds) <= {_ANY} or len(_typed) >= _MAX_CLASSES:
        return class_type
    compat.add_class_with_types(name, class_type, kinds)
    _typed.add(name)
    return name
