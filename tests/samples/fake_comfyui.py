"""A plugin that makes a headless endpoint a fake ComfyUI: it runs prompts of two node classes.

``FakeDouble`` (value) doubles its value, ``FakeGate`` (path, value) records its start and waits for the file. Everything else is the real
endpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from samples.served_blocks import begin, wait_for
from yggdrasill.executor.context import RunContext
from yggdrasill.remote.comfy_graph import ComfyGraph, run_prompts_with
from yggdrasill.remote.comfy_ports import INPUT_NODE
from yggdrasill.server_ext.headless import HeadlessHost
from yggdrasill.values.handles import load_handles

__all__ = ["CLASSES", "FILE", "FINGERPRINT", "FORM", "FakePromptRunner"]

CLASSES = ("FakeDouble", "FakeGate", "FakeLoader", "YggdrasillGraphInput", "YggdrasillGraphOutput")


class FakePromptRunner:
    """A `yggdrasill.remote.comfy_graph.PromptRunner` for the fake node classes."""

    def changing(self, node_types: Sequence[str]) -> list[str]:
        """Return no node classes."""
        return []

    def run_prompt(
        self, graph: ComfyGraph, inputs: Mapping[str, Any], context: RunContext, preview_method: str | None = None
    ) -> dict[str, Any]:
        """Run the prompt, and return the values at its Graph Output nodes."""

        def value_of(item: Any) -> Any:
            if not isinstance(item, list):
                return item
            node = graph.prompt[item[0]]
            given = node["inputs"]
            if node["class_type"] == INPUT_NODE:
                return load_handles(inputs.get(given["name"], given.get("default")))
            context.check_cancelled()
            if node["class_type"] == "FakeDouble":
                logging.getLogger("yggdrasill.run.fake_comfyui").info("doubling")
                return value_of(given["value"]) * 2
            path = value_of(given["path"])
            begin(path)
            context.progress(1, 2)
            wait_for(path)
            return value_of(given["value"])

        outputs = {}
        for name, port in graph.outputs.items():
            outputs[name] = value_of(graph.prompt[port.nodes[0]]["inputs"]["value"])
            context.host.emit_output(name, outputs[name])
        return outputs


#: What the stand-in says of its node class that doubles, and of its only model file.
FORM = {"input": {"required": {"value": ["*", {}]}, "optional": {"times": ["INT", {}]}}, "output": ["*"]}
FILE, FINGERPRINT = "tiny.ckpt", "aa11"


def _describe(host: HeadlessHost) -> dict[str, Any]:
    classes = {**dict.fromkeys(CLASSES, ""), "FakeDouble": "there"}
    return {"comfy": {"version": "0.0.0", "node_classes": classes, "models": {"checkpoints": [FILE]}}}


def _node_forms(host: HeadlessHost, names: Sequence[str]) -> dict[str, Any]:
    return {"nodes": {name: FORM for name in names if name == "FakeDouble"}, "asks_again": [], "unknown": []}


def _model_fingerprints(host: HeadlessHost, files: Sequence[str]) -> dict[str, dict[str, str]]:
    return {name: {"checkpoints": FINGERPRINT} for name in files if name == FILE}


run_prompts_with(FakePromptRunner())
HeadlessHost.node_forms = _node_forms  # type: ignore[method-assign, assignment]
HeadlessHost.model_fingerprints = _model_fingerprints  # type: ignore[method-assign, assignment]
HeadlessHost.describe = _describe  # type: ignore[method-assign, assignment]
