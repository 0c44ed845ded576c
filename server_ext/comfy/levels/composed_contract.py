"""What a graph that stands on the canvas takes and gives, before anything runs: the nodes that put it together are asked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.errors import InvalidArgument, InvalidConfig
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.server_ext.comfy import host_api
from yggdrasill.server_ext.comfy.levels.graph_ports import contract_of

__all__ = ["COMPOSING", "ComposedGraphModel", "composed_contract"]

COMPOSING = frozenset(f"Yggdrasill{name}" for name in ("LoadGraph", "AddBlock", "Connect", "LoadPipeline", "Pipeline"))
"""The classes of nodes that give configs and do nothing else."""
_PLAIN = frozenset({"PrimitiveString", "PrimitiveStringMultiline", "PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean"})
_DEPTH = 200


class ComposedGraphModel(BaseModel):
    """The nodes that put a graph together, in ComfyUI's API format, and the output that gives it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: dict[str, dict[str, Any]] = Field(max_length=2000)
    node: str = Field(max_length=200)
    output: int = Field(ge=0, le=100)


def composed_contract(asked: ComposedGraphModel) -> dict[str, Any]:
    """The contract of the graph.

    Raises:
        InvalidArgument: another node takes part, so it is known when the workflow runs. Otherwise as the nodes.
    """
    found: dict[str, tuple[Any, ...]] = {}
    return contract_of(_value(asked.prompt, [asked.node, asked.output], found, 0))


def _value(prompt: Mapping[str, Any], link: list[Any], found: dict[str, tuple[Any, ...]], depth: int) -> Any:
    node_id, output = link
    if depth > _DEPTH:
        raise InvalidConfig(f"more than {_DEPTH} nodes stand behind one another, or in a ring")
    if node_id not in found:
        node = prompt.get(node_id)
        kind = None if node is None else node.get("class_type")
        if node is None or kind not in COMPOSING | _PLAIN:
            raise InvalidArgument(f"the graph comes from a {kind or 'missing'} node, so its ports are known when the workflow runs")
        given = node.get("inputs", {})
        values = {name: _value(prompt, value, found, depth + 1) if is_link(value) else value for name, value in given.items()}
        found[node_id] = host_api.call_node(kind, given, values)
    return found[node_id][output]
