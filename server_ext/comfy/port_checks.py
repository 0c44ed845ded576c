"""Checks on ports before anything is sent: their number, and whether their values are transferable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yggdrasill.errors import CannotTravel, InvalidArgument
from yggdrasill.remote.comfy_ports import not_transferable, type_transferability
from yggdrasill.server_ext.comfy.value_classes import parts_of
from yggdrasill.values import Opaque
from yggdrasill.values.encoder import SCALAR_ENCODERS
from yggdrasill.values.extensions import BY_CLASS
from yggdrasill.values.tensors import is_array, is_number, is_tensor

__all__ = ["MAX_PORTS", "check_port", "check_port_count", "sendable_values"]

MAX_PORTS = 32
"""Sockets on each side of a node; the editor has the same number in ``contract.js``."""
_OTHER_LEAVES = (bytes, bytearray, Opaque)
_AUDIO = frozenset({"waveform", "sample_rate"})
_KEYS = {
    "control": "a ControlNet with its weights",
    "gligen": "a GLIGEN model with its weights",
    "hooks": "hooks, which change a model while it samples",
}


def check_port_count(graph: str, inputs: int, outputs: int, node: str) -> None:
    """Raise `InvalidArgument` if ``graph`` has more ports on a side than the node called ``node`` has sockets."""
    for count, side in ((inputs, "inputs"), (outputs, "outputs")):
        if count > MAX_PORTS:
            raise InvalidArgument(
                f"{graph!r} has {count} {side}, but {node} supports at most {MAX_PORTS}. Expose fewer ports, or split the graph into "
                "several graphs, each with its own node."
            )


def check_port(port: str, type_name: str | Sequence[str], values: Sequence[Any]) -> None:
    """Check that ``values``, the list of values on ``port``, are transferable. Nothing is copied or read.

    Raises:
        CannotTravel: the type or a part of a value is not transferable; the message names the port, the type, the location and the class.
    """
    if not type_transferability(type_name).transferable:
        raise not_transferable(port, type_name)
    for index, value in enumerate(values):
        for location, what in _offenders(value):
            part = next((f" ({key} is {_KEYS[key]})" for key in _KEYS if f"[{_show(key)}]" in location), "")
            raise not_transferable(port, type_name, f"value {index}{location} is {what}{part}")


def sendable_values(port: str, type_name: str | Sequence[str], values: Sequence[Any]) -> list[Any]:
    """Return ``values`` as they are sent: a mapping of a pack that behaves as an AUDIO becomes a dict.

    Raises:
        CannotTravel: as `check_port`.
    """
    sent = [_as_audio(value) if _keys_of(value) >= _AUDIO else value for value in values]
    check_port(port, type_name, sent)
    return sent


def _keys_of(value: Any) -> set[Any]:
    return set(value) if isinstance(value, Mapping) and type(value) is not dict else set()


def _as_audio(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value[key] for key in value}


def _offenders(root: Any) -> Iterator[tuple[str, str]]:
    """Yield the locations in ``root`` of parts without a codec, each with a description. An object is visited once."""
    stack: list[tuple[str, Any]] = [("", root)]
    seen: dict[int, Any] = {}
    while stack:
        location, value = stack.pop()
        kind = type(value)
        if kind in SCALAR_ENCODERS or kind in _OTHER_LEAVES or id(value) in seen:
            continue
        seen[id(value)] = value
        if kind is dict:
            stack += [(f"{location}[{_show(key)}]", part) for key, part in reversed(value.items())]
        elif kind in (list, tuple):
            stack += [
                (f"{location}[{index}]", value[index]) for index in reversed(range(len(value))) if type(value[index]) not in SCALAR_ENCODERS
            ]
        elif not _has_codec(value):
            yield location, _described(value)
        else:
            try:
                stack.append((location, parts_of(value)))
            except CannotTravel:
                yield location, f"{_described(value)}, which only shares its name with a class of ComfyUI"


def _has_codec(value: Any) -> bool:
    if is_tensor(value):
        return _is_plain(value)
    kind = type(value)
    return kind in (set, frozenset) or is_number(value) or is_array(value) or kind in BY_CLASS or kind.__name__ in BY_CLASS


def _is_plain(tensor: Any) -> bool:
    import torch

    known = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return known and tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized and tensor.device.type != "meta"


def _described(value: Any) -> str:
    name = f"a {type(value).__module__}.{type(value).__qualname__}"
    return f"{name} of {value.layout} on {value.device} with {value.dtype}, which is not plain memory" if is_tensor(value) else name


def _show(key: Any) -> str:
    text = json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)
    return text if len(text) <= 60 else text[:57] + "..."
