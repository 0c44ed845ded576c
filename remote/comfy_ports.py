"""Ports of ComfyUI prompts: names and types, which types are transferable, and the values on a port.

The classes behind the types are in `server_ext.comfy.types_classes`, checks of values on ports in `server_ext.comfy.types_ports`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.errors import CannotTravel, InvalidConfig, LimitExceeded
from yggdrasill.values.extensions import register_type

__all__ = [
    "ANY_TYPE",
    "HIDDEN_NODE",
    "INPUT_NODE",
    "OUTPUT_NODE",
    "Blocked",
    "ComfyPort",
    "PortList",
    "TypeTransferability",
    "check_prompt",
    "dtype_of",
    "is_link",
    "not_transferable",
    "port_value",
    "port_values",
    "ports_of",
    "type_transferability",
]

INPUT_NODE = "YggdrasillGraphInput"
OUTPUT_NODE = "YggdrasillGraphOutput"
#: The class of the node that carries the hidden inputs of a part; it exists only on the way to an endpoint.
HIDDEN_NODE = "YggdrasillHiddenInputs"
ANY_TYPE = "*"
_MOST_NODES = 20_000
_MOST_BYTES = 16 << 20
_LONGEST_NAME = 200

#: ComfyUI types that blocks know under another name; the others are ``comfy/<TYPE>``.
_DTYPES = {"IMAGE": "image", "STRING": "text", ANY_TYPE: "any"}
_TENSOR = "as a tensor"
_TREE = "as dicts and lists of tensors and plain values"
_PLAIN = "as plain values"
_FIELDS = "by its fields, which are tensors and plain values"
_FILE = "as the bytes of the file and its format"
_UNKNOWN = "depending on its values: tensors and plain values are transferable, in lists, tuples and dicts"
_WEIGHTS = "it holds weights on a device"
_CODE = "it holds functions, which are not values"
_TRANSFERABLE = {
    **dict.fromkeys("IMAGE MASK SIGMAS WAN_CAMERA_EMBEDDING".split(), _TENSOR),
    **dict.fromkeys("AUDIO AUDIO_ENCODER_OUTPUT LAYERS LORA_MODEL LOSS_MAP TRACKS".split(), _TREE),
    **dict.fromkeys("DA3_GEOMETRY FACE_LANDMARKS IC_LORA_PARAMETERS MOGE_GEOMETRY POSE_KEYPOINT SAM3_TRACK_DATA".split(), _TREE),
    **dict.fromkeys("STRING INT FLOAT FLOATS BOOLEAN COMBO COLOR COLORS BOUNDING_BOX BOUNDING_BOXES HISTOGRAM".split(), _PLAIN),
    **dict.fromkeys("TIMESTEPS_RANGE DICT ARRAY LOAD_3D LOAD_3D_ANIMATION LOAD3D_CAMERA LOAD3D_MODEL_INFO".split(), _PLAIN),
    **dict.fromkeys("MESH VOXEL SPLAT RANGE CLIP_VISION_OUTPUT".split(), _FIELDS),
    "LATENT": "as a dict with every key it has; samples that are a NestedTensor by their parts",
    "CONDITIONING": "as tensors with every key they have, except control, gligen and hooks",
    "VIDEO": "by its frames, audio and rate, or as the bytes of the file and the used part of it",
    "SVG": "as the bytes of each drawing",
    "CURVE": "by its points",
}
_NOT_TRANSFERABLE = {
    **dict.fromkeys("MODEL CLIP VAE CONTROL_NET CLIP_VISION STYLE_MODEL UPSCALE_MODEL LATENT_UPSCALE_MODEL GLIGEN".split(), _WEIGHTS),
    **dict.fromkeys("PHOTOMAKER AUDIO_ENCODER MODEL_PATCH BACKGROUND_REMOVAL OPTICAL_FLOW".split(), _WEIGHTS),
    **dict.fromkeys("NOISE SAMPLER GUIDER LATENT_OPERATION HOOKS HOOK_KEYFRAMES".split(), _CODE),
    "GPU_OPTIONS": "it names devices of the machine that made it",
    "FLOW_CONTROL": "it names nodes of the prompt that made it",
    "SHAPE_SUBDIVIDES": "it holds sparse tensors whose caches belong to the VAE that made them",
}


@dataclass(frozen=True)
class ComfyPort:
    """A named port: ComfyUI's type, whether it is optional, and the nodes that declare it."""

    name: str
    type: str
    optional: bool
    nodes: tuple[str, ...]

    def spec(self, include_dtype: bool) -> dict[str, Any]:
        """Return the entry of a graph's spec."""
        entry: dict[str, Any] = {"name": self.name}
        return {**entry, "dtype": dtype_of(self.type), "comfy_type": self.type, "optional": self.optional} if include_dtype else entry


def dtype_of(comfy_type: str) -> str:
    """Return a port's dtype: ``image``, ``text``, ``any``, or ``comfy/<TYPE>``."""
    return _DTYPES.get(comfy_type, f"comfy/{comfy_type}")


def is_link(value: Any) -> bool:
    """Return whether an input of a node is a link to another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def check_prompt(prompt: Any, graph_id: str) -> dict[str, Any]:
    """Return a copy of ``prompt`` after checking that it is in ComfyUI's API format.

    Raises:
        InvalidConfig: another format.
        LimitExceeded: too many nodes or bytes.
    """
    where = f"workflow {graph_id!r}"
    if not isinstance(prompt, Mapping) or not prompt:
        raise InvalidConfig(
            f"{where}: a prompt must be a mapping from node ids to nodes, got {type(prompt).__name__}; export it with 'Export (API)'"
        )
    if "nodes" in prompt and "links" in prompt:
        raise InvalidConfig(f"{where} is in the editor's format; export it with 'Export (API)'")
    try:
        text = json.dumps(dict(prompt))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"{where}: a prompt must consist of JSON values: {error}") from None
    if len(prompt) > _MOST_NODES or len(text) > _MOST_BYTES:
        raise LimitExceeded(
            f"{where} has {len(prompt)} nodes in {len(text)} bytes; the limit is {_MOST_NODES} nodes in {_MOST_BYTES} bytes",
            bound=_MOST_NODES,
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
                f"{where}: input {name!r} of node {node_id!r} ({node['class_type']}) is linked to node {value[0]!r}, which does not exist"
            )


def ports_of(prompt: Mapping[str, Any], class_type: str, graph_id: str) -> dict[str, ComfyPort]:
    """Return the ports that nodes of ``class_type`` declare, by name. Inputs with one name are one port; outputs need different names.

    They are sorted by ``_meta.order`` of their nodes, which the editor numbers from top to bottom; nodes without it follow in the
    prompt's order.

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
            port = _merged_port(other, port, class_type, graph_id)
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


def _merged_port(first: ComfyPort, second: ComfyPort, class_type: str, graph_id: str) -> ComfyPort:
    nodes = (*first.nodes, *second.nodes)
    types = {first.type, second.type} - {ANY_TYPE}
    if class_type == OUTPUT_NODE or len(types) > 1:
        what = "two outputs" if class_type == OUTPUT_NODE else f"inputs of types {sorted(types)}"
        raise InvalidConfig(f"workflow {graph_id!r} has {what} named {first.name!r}, at nodes {', '.join(nodes)}; rename one of them")
    return ComfyPort(first.name, types.pop() if types else ANY_TYPE, first.optional and second.optional, nodes)


@dataclass(frozen=True)
class TypeTransferability:
    """Transferability of a type: whether it is ``transferable``, and how it is sent or why not (``detail``).

    ``known`` is False for a type that no table names; its values are inspected at run time.
    """

    type: str
    transferable: bool
    known: bool
    detail: str


def type_transferability(type_name: str | Sequence[str]) -> TypeTransferability:
    """Return the transferability of a type as ComfyUI spells it: a name, comma-separated names, or the options of a combo.

    Several types are known to be transferable only if each one is; if none is, the whole is not transferable.
    """
    if not isinstance(type_name, str):
        return TypeTransferability("COMBO", transferable=True, known=True, detail=_PLAIN)
    # A plain str, because node packs use str subclasses that equal everything.
    parts = type_name.split(",")
    name = ",".join(parts)
    results = [_single_type(part.strip()) for part in parts]
    first = results[0]
    if len(results) == 1 or all((each.transferable, each.known) == (first.transferable, first.known) for each in results):
        return TypeTransferability(name, first.transferable, first.known, first.detail)
    return TypeTransferability(name, transferable=any(each.transferable for each in results), known=False, detail=_UNKNOWN)


def _single_type(name: str) -> TypeTransferability:
    detail = _FILE if name == "FILE_3D" or name.startswith("FILE_3D_") else _TRANSFERABLE.get(name)
    if detail is not None:
        return TypeTransferability(name, transferable=True, known=True, detail=detail)
    reason = _NOT_TRANSFERABLE.get(name) or (_WEIGHTS if name.endswith("_MODEL") else None)
    if reason is not None:
        return TypeTransferability(name, transferable=False, known=True, detail=reason)
    return TypeTransferability(name, transferable=True, known=False, detail=_UNKNOWN)


def not_transferable(port: str, type_name: str | Sequence[str], reason: str | None = None) -> CannotTravel:
    """Return the error for ``port``: ``reason`` or the table's reason why its value cannot be transferred."""
    result = type_transferability(type_name)
    return CannotTravel(
        f"port {port!r} ({result.type}) cannot be transferred: {reason or result.detail}. Transferable are tensors, plain values and ComfyUI's types "
        "made of them, such as IMAGE, LATENT, CONDITIONING, AUDIO and VIDEO. Run the nodes that make this value on the side that uses it.",
        port=port,
        type=result.type,
    )


class Blocked:
    """A value that blocks the nodes that receive it; ``message`` is what ComfyUI then shows, if anything."""

    __slots__ = ("message",)

    def __init__(self, message: str | None = None) -> None:
        self.message = None if message is None else str(message)

    def __eq__(self, other: object) -> bool:
        return self.message == other.message if isinstance(other, Blocked) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.message)

    def __repr__(self) -> str:
        return f"Blocked({self.message!r})"


class PortList:
    """The values of one port in order; a node that takes single values is called once for each."""

    __slots__ = ("values",)

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = tuple(values)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __eq__(self, other: object) -> bool:
        return self.values == other.values if isinstance(other, PortList) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return f"PortList({list(self.values)!r})"


def port_value(values: Iterable[Any]) -> Any:
    """Return ``values`` as seen outside ComfyUI: a single value as it is, any other number as a `PortList`."""
    found = tuple(values)
    return found[0] if len(found) == 1 else PortList(found)


def port_values(value: Any) -> list[Any]:
    """Return the values on a port, the inverse of `port_value`."""
    return list(value.values) if isinstance(value, PortList) else [value]


register_type("comfy/list", PortList, lambda value: list(value.values), PortList)
register_type("comfy/blocked", Blocked, lambda value: value.message, Blocked)
