"""Binds a workflow with named ports to one job: input nodes become values named by hash, output nodes become sinks that name the job."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from yggdrasill.remote.comfy_graph import ComfyGraph

__all__ = ["RESULT_NODE", "VALUE_NODE", "bind_prompt"]

VALUE_NODE = "YggdrasillValue"
RESULT_NODE = "YggdrasillResult"


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
