"""The contract of a graph composed on the canvas, before anything runs: the composing nodes are executed one by one, outside any prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.server_ext.comfy import compat
from yggdrasill.server_ext.comfy.levels.graph_ports import contract_of

__all__ = ["COMPOSING", "ComposedGraphModel", "composed_contract"]

COMPOSING = frozenset(f"Yggdrasill{name}" for name in ("LoadGraph", "AddBlock", "Connect", "LoadPipeline", "Pipeline"))
"""The classes of nodes that only compose configs."""
_PLAIN = frozenset({"PrimitiveString", "PrimitiveStringMultiline", "PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean"})
_DEPTH = 200


class ComposedGraphModel(BaseModel):
    """The nodes that compose a graph, in ComfyUI's API format, and the output that returns it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: dict[str, dict[str, Any]] = Field(max_length=2000)
    node: str = Field(max_length=200)
    output: int = Field(ge=0, le=100)


def composed_contract(composed: ComposedGraphModel) -> dict[str, Any]:
    """Return the contract of the graph.

    Raises:
        InvalidArgument: the graph depends on another node, so its contract is known only when the workflow runs. Also the errors of the nodes.
    """
    found: dict[str, tuple[Any, ...]] = {}
    return contract_of(_value(composed.prompt, [composed.node, composed.output], found, 0))


def _value(prompt: Mapping[str, Any], link: list[Any], found: dict[str, tuple[Any, ...]], depth: int) -> Any:
    node_id, output = link
    if depth > _DEPTH:
        raise InvalidConfig(f"The graph is composed by a chain of more than {_DEPTH} nodes, or by a cycle.")
    if node_id not in found:
        node = prompt.get(node_id)
        kind = None if node is None else node.get("class_type")
        if node is None or kind not in COMPOSING | _PLAIN:
            raise InvalidArgument(f"The graph depends on a {kind or 'missing'} node, so its ports are known only when the workflow runs.")
        inputs = node.get("inputs", {})
        values = {name: _value(prompt, value, found, depth + 1) if is_link(value) else value for name, value in inputs.items()}
        found[node_id] = compat.call_node(kind, inputs, values)
    return found[node_id][output]
