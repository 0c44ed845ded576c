"""What a ComfyUI API prompt says about itself: its nodes, and the ports that Graph Input and Graph Output nodes mark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import InvalidConfig, LimitExceeded

__all__ = ["ANY_TYPE", "INPUT_NODE", "OUTPUT_NODE", "ComfyPort", "check_prompt", "dtype_of", "is_link", "ports_of"]

INPUT_NODE = "YggdrasillGraphInput"
OUTPUT_NODE = "YggdrasillGraphOutput"
ANY_TYPE = "*"
_MOST_NODES = 20_000
_MOST_BYTES = 16 << 20
_LONGEST_NAME = 200

#: ComfyUI types whose values blocks use under a name of their own; the others are ``comfy/<TYPE>``.
_DTYPES = {"IMAGE": "image", "STRING": "text", ANY_TYPE: "any"}


@dataclass(frozen=True)
class ComfyPort:
    """A named port: ComfyUI's type, whether it may be left out, and the nodes that mark it."""

    name: str
    type: str
    optional: bool
    nodes: tuple[str, ...]

    def spec(self, include_dtype: bool) -> dict[str, Any]:
        """The entry of a graph's spec."""
        entry: dict[str, Any] = {"name": self.name}
        return {**entry, "dtype": dtype_of(self.type), "comfy_type": self.type, "optional": self.optional} if include_dtype else entry


def dtype_of(comfy_type: str) -> str:
    """A port's dtype: ``image``, ``text``, ``any``, or ``comfy/<TYPE>``."""
    return _DTYPES.get(comfy_type, f"comfy/{comfy_type}")


def is_link(value: Any) -> bool:
    """Whether an input of a node is a link to another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def check_prompt(prompt: Any, graph_id: str) -> dict[str, Any]:
    """A copy of ``prompt`` if it is one in ComfyUI's API format.

    Raises:
        InvalidConfig: it is not; LimitExceeded: it is larger than any workflow.
    """
    where = f"workflow {graph_id!r}"
    if not isinstance(prompt, Mapping) or not prompt:
        raise InvalidConfig(
            f"{where}: a prompt is a mapping from node ids to nodes, got {type(prompt).__name__}; export it with 'Export (API)'"
        )
    if "nodes" in prompt and "links" in prompt:
        raise InvalidConfig(f"{where} is saved in the editor's format; export it with 'Export (API)'")
    try:
        text = json.dumps(dict(prompt))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"{where}: a prompt is made of JSON values: {error}") from None
    if len(prompt) > _MOST_NODES or len(text) > _MOST_BYTES:
        raise LimitExceeded(
            f"{where} has {len(prompt)} nodes in {len(text)} bytes; at most {_MOST_NODES} in {_MOST_BYTES} are taken", bound=_MOST_NODES
        )
    copied: dict[str, Any] = json.loads(text)
    for node_id, node in copied.items():
        _check_node(node_id, node, copied, where)
    return copied


def _check_node(node_id: str, node: Any, prompt: Mapping[str, Any], where: str) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("class_type"), str) or not isinstance(node.get("inputs", {}), dict):
        raise InvalidConfig(f"{where}: node {node_id!r} needs a class_type and inputs")
    for name, value in node.setdefault("inputs", {}).items():
        if is_link(value) and value[0] not in prompt:
            raise InvalidConfig(
                f"{where}: input {name!r} of node {node_id!r} ({node['class_type']}) is linked to node {value[0]!r}, which is not there"
            )


def ports_of(prompt: Mapping[str, Any], class_type: str, graph_id: str) -> dict[str, ComfyPort]:
    """The ports that nodes of ``class_type`` mark, by name. Several inputs of one name are one port; outputs must differ.

    They stand in the order of the numbers ``_meta.order`` of their nodes, which the editor gives from top to bottom; nodes without one
    come after those, as the prompt has them.

    Raises:
        InvalidConfig
    """
    found: dict[str, ComfyPort] = {}
    for node_id, node in sorted(prompt.items(), key=_order):
        if node["class_type"] != class_type:
            continue
        port = _port(node_id, node, graph_id)
        other = found.get(port.name)
        if other is not None:
            port = _joined(other, port, class_type, graph_id)
        found[port.name] = port
    return found


def _order(item: tuple[str, Mapping[str, Any]]) -> float:
    meta = item[1].get("_meta")
    order = meta.get("order") if isinstance(meta, Mapping) else None
    return float("inf") if isinstance(order, bool) or not isinstance(order, int) else order


def _port(node_id: str, node: Mapping[str, Any], graph_id: str) -> ComfyPort:
    inputs = node["inputs"]
    name, kind = inputs.get("name"), inputs.get("type", ANY_TYPE) or ANY_TYPE
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME or not isinstance(kind, str):
        raise InvalidConfig(
            f"workflow {graph_id!r}: node {node_id!r} ({node['class_type']}) needs a name, and a type such as 'IMAGE' or '*'"
        )
    return ComfyPort(name, kind, inputs.get("default") is not None, (node_id,))


def _joined(first: ComfyPort, second: ComfyPort, class_type: str, graph_id: str) -> ComfyPort:
    nodes = (*first.nodes, *second.nodes)
    types = {first.type, second.type} - {ANY_TYPE}
    if class_type == OUTPUT_NODE or len(types) > 1:
        what = "two outputs" if class_type == OUTPUT_NODE else f"inputs of types {sorted(types)}"
        raise InvalidConfig(f"workflow {graph_id!r} has {what} named {first.name!r}, at nodes {', '.join(nodes)}; give one another name")
    return ComfyPort(first.name, types.pop() if types else ANY_TYPE, first.optional and second.optional, nodes)
