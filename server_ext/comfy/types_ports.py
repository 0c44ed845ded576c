"""What lies on a port: ComfyUI's own list of values, some of them blocked, checked before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from yggdrasill.errors import CannotTravel
from yggdrasill.remote.comfy_types import can_travel, refusal
from yggdrasill.server_ext.comfy.types_classes import find_class, parts_of
from yggdrasill.values import Opaque
from yggdrasill.values.arrays import is_array, is_number
from yggdrasill.values.extensions import extension_for
from yggdrasill.values.payload import corrupt
from yggdrasill.values.scalars import LEAVES
from yggdrasill.values.tensors import is_tensor

__all__ = ["check_port", "pack_port", "unpack_port"]

_BLOCKER = "comfy_execution.graph_utils:ExecutionBlocker"
_OTHER_LEAVES = (bytes, bytearray, Opaque)
_KEYS = {
    "control": "a ControlNet with its weights",
    "gligen": "a GLIGEN model with its weights",
    "hooks": "hooks, which change a model while it samples",
}


def check_port(port: str, type_name: str | Sequence[str], values: Sequence[Any]) -> None:
    """Return if ``values``, the list of values on ``port``, can travel; copies and reads nothing.

    Raises:
        CannotTravel: the type or a part of a value cannot; the message names port, type, place and class.
    """
    if not can_travel(type_name).travels:
        raise refusal(port, type_name)
    for index, value in enumerate(values):
        for place, what in _offenders(value):
            part = next((f" ({key} is {_KEYS[key]})" for key in _KEYS if f"[{_show(key)}]" in place), "")
            raise refusal(port, type_name, f"value {index}{place} is {what}{part}")


def pack_port(port: str, type_name: str | Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """``values``, the list of values on ``port``, for the codec: ``{"values": [...], "blocked": [[index, message], ...]}``.

    A blocked value is None in ``values``. Raises as `check_port`.
    """
    blocker: Any = find_class(_BLOCKER)
    blocked = [[index, value.message] for index, value in enumerate(values) if type(value) is blocker]
    places = {index for index, _ in blocked}
    plain = [None if index in places else value for index, value in enumerate(values)]
    check_port(port, type_name, plain)
    return {"values": plain, "blocked": [[index, None if message is None else str(message)] for index, message in blocked]}


def unpack_port(data: Any) -> list[Any]:
    """The list of values that `pack_port` was given, its blocked ones an ``ExecutionBlocker`` again; needs ComfyUI.

    Raises `CorruptData` for anything else.
    """
    if (
        type(data) is not dict
        or data.keys() != {"values", "blocked"}
        or type(data["values"]) is not list
        or type(data["blocked"]) is not list
    ):
        raise corrupt("what lies on a port is not its values and which of them are blocked")
    values = list(data["values"])
    blocker: Any = find_class(_BLOCKER)
    for flag in data["blocked"]:
        if type(flag) is not list or len(flag) != 2 or type(flag[0]) is not int or not 0 <= flag[0] < len(values):
            raise corrupt("a port's flag for a blocked value names none of its values")
        if flag[1] is not None and type(flag[1]) is not str:
            raise corrupt("a blocked value's message is not text")
        values[flag[0]] = blocker(flag[1])
    return values


def _offenders(root: Any) -> Iterator[tuple[str, str]]:
    """The places in ``root`` of what no codec takes, each with what is there; an object is looked into once."""
    stack: list[tuple[str, Any]] = [("", root)]
    seen: dict[int, Any] = {}
    while stack:
        place, value = stack.pop()
        kind = type(value)
        if kind in LEAVES or kind in _OTHER_LEAVES or id(value) in seen:
            continue
        seen[id(value)] = value
        if kind is dict:
            stack += [(f"{place}[{_show(key)}]", part) for key, part in reversed(value.items())]
        elif kind in (list, tuple):
            stack += [(f"{place}[{index}]", value[index]) for index in reversed(range(len(value))) if type(value[index]) not in LEAVES]
        elif not _has_codec(value):
            yield place, _described(value)
        else:
            try:
                stack.append((place, parts_of(value)))
            except CannotTravel:
                yield place, f"{_described(value)}, which only shares its name with a class of ComfyUI's"


def _has_codec(value: Any) -> bool:
    if is_tensor(value):
        return _is_plain(value)
    return type(value) in (set, frozenset) or is_number(value) or is_array(value) or extension_for(type(value)) is not None


def _is_plain(tensor: Any) -> bool:
    import torch

    known = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return known and tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized and tensor.device.type != "meta"


def _described(value: Any) -> str:
    name = f"a {type(value).__module__}.{type(value).__qualname__}"
    return f"{name} of {value.layout} on {value.device} with {value.dtype}, which is no plain memory" if is_tensor(value) else name


def _show(key: Any) -> str:
    text = json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)
    return text if len(text) <= 60 else text[:57] + "..."
