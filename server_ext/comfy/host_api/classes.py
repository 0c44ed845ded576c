"""The node classes that ComfyUI has, and calling one apart from any prompt."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

__all__ = ["call_node", "node_classes"]


def node_classes() -> Mapping[str, Any]:
    """The node classes by the name that prompts use."""
    found: Mapping[str, Any] = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    return found


def call_node(class_type: str, given: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The outputs of a node of the newer form that works at once, called apart from any prompt.

    ``given`` are its inputs as a prompt has them, ``values`` the same with the values of links.
    """
    forms = importlib.import_module("comfy_api.latest._io")
    cls = node_classes()[class_type]
    known, _, dynamic = forms.get_finalized_class_inputs(cls.INPUT_TYPES(), dict(given))
    names = {*known.get("required", ()), *known.get("optional", ())}
    nested = forms.build_nested_inputs({name: value for name, value in values.items() if name in names}, dynamic)
    outputs: tuple[Any, ...] = cls.execute(**nested).args
    return outputs
