"""ComfyUI's node classes, and the execution of one node outside any prompt."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

__all__ = ["call_node", "node_classes"]


def node_classes() -> Mapping[str, Any]:
    """Return the node classes by the name that prompts use."""
    found: Mapping[str, Any] = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    return found


def call_node(class_type: str, inputs: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the outputs of a synchronous V3 node, executed outside any prompt.

    ``inputs`` are its inputs as a prompt has them, ``values`` the same with links replaced by values.
    """
    forms = importlib.import_module("comfy_api.latest._io")
    cls = node_classes()[class_type]
    known, _, dynamic = forms.get_finalized_class_inputs(cls.INPUT_TYPES(), dict(inputs))
    names = {*known.get("required", ()), *known.get("optional", ())}
    nested = forms.build_nested_inputs({name: value for name, value in values.items() if name in names}, dynamic)
    outputs: tuple[Any, ...] = cls.execute(**nested).args
    return outputs
