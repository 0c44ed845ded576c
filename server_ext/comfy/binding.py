"""From a workflow with named ports to the prompt of one job: inputs become values by hash, outputs become sinks that know the job."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from yggdrasill.remote.comfy_graph import ComfyGraph

__all__ = ["RESULT_NODE", "VALUE_NODE", "bind_prompt"]

VALUE_NODE = "YggdrasillValue"
RESULT_NODE = "YggdrasillResult"


def bind_prompt(graph: ComfyGraph, digests: Mapping[str, str], run_id: str) -> dict[str, Any]:
    """The API prompt of one run. Node ids stay the workflow's own.

    A Graph Input that has no value keeps its default. The run's id is a constant of the sinks alone, so they run each time
    while everything before them may come from ComfyUI's cache.
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
