"""The ports of a graph as a node's sockets: order, ComfyUI types, and conversion of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.errors import InvalidArgument, format_options
from yggdrasill.foundation.contract import Runnable
from yggdrasill.foundation.kinds import find_kind
from yggdrasill.server_ext.comfy.levels.building import build, checked_level
from yggdrasill.server_ext.comfy.port_checks import check_port_count

__all__ = ["contract_of", "inputs_by_name", "outputs_in_order", "pictures_of"]


def contract_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contract ``{graph_id, kind, hash, inputs, outputs}`` of a graph or pipeline, as an endpoint publishes it, with an empty hash."""
    kind = checked_level(config, "graph", "pipeline")
    graph = build(config)
    inputs, outputs = _entries(graph)
    graph_id = find_kind(kind).id_of(config)
    return {"graph_id": graph_id, "kind": kind, "hash": "", "inputs": inputs, "outputs": outputs}


def _entries(graph: Runnable) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    sides = []
    for spec in (graph.get_input_spec(include_dtype=True), graph.get_output_spec(include_dtype=True)):
        ports: dict[str, dict[str, Any]] = {}
        for entry in spec:
            port: dict[str, Any] = {name: entry[name] for name in ("name", "dtype", "comfy_type", "optional") if name in entry}
            first = ports.setdefault(entry["name"], port)
            first["optional"] = bool(first.get("optional")) and bool(port.get("optional"))
            first["dtype"] = port["dtype"] if first.get("dtype") == "any" else first.get("dtype", "any")
        sides.append(list(ports.values()))
    return sides[0], sides[1]


def inputs_by_name(graph: Any, name: str, sockets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of sockets ``p0``, ``p1`` ... by the graph's input names; IMAGE values are converted for blocks.

    Raises:
        InvalidArgument: the graph has more ports than a node has sockets, a linked socket has no port, or a required input is not linked.
    """
    ports, outputs = _entries(graph)
    check_port_count(name, len(ports), len(outputs), "Run Graph")
    inputs = {}
    for socket, value in sockets.items():
        index = int(socket.removeprefix("p"))
        if value is None:
            continue
        if index >= len(ports):
            names = format_options(port["name"] for port in ports)
            raise InvalidArgument(f"Socket {socket!r} is linked, but {name!r} has {len(ports)} inputs: {names}. Unlink the socket.")
        port = ports[index]
        inputs[port["name"]] = _picture(value, port["name"]) if port["dtype"] == "image" else value
    missing = [port["name"] for port in ports if not port["optional"] and port["name"] not in inputs]
    if missing:
        raise InvalidArgument(
            f"{name!r} is missing the inputs {format_options(missing)}. Link the node's sockets, in the order of its inputs."
        )
    return inputs


def outputs_in_order(graph: Any, outputs: Mapping[str, Any]) -> dict[int, Any]:
    """Return the output values by socket number, without outputs that were not written."""
    names = [port["name"] for port in _entries(graph)[1]]
    return {index: outputs[name] for index, name in enumerate(names) if outputs.get(name) is not None}


def _picture(value: Any, port: str) -> Any:
    """Return a picture [batch, height, width, channels] as float32, without loss.

    Raises:
        InvalidArgument: the value is not a picture, or float32 cannot represent it exactly.
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim != 4:
        what = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InvalidArgument(f"Input {port!r} requires an IMAGE [batch, height, width, channels], got {what}. Convert it first.")
    if value.dtype is torch.float32:
        return value
    exact = value.to(torch.float32)
    if not value.is_floating_point() or not torch.equal(exact.to(value.dtype), value) or value.element_size() > 4:
        raise InvalidArgument(f"Input {port!r} is {value.dtype}, which float32 may not represent exactly. Convert it first.")
    return exact


def pictures_of(value: Any) -> list[Any]:
    """Return the pictures [batch, height, width, 1, 3 or 4 channels] in a value: a tensor, the items of a list, or the ``images`` of a dict."""
    import torch

    if isinstance(value, torch.Tensor):
        fits = value.ndim == 4 and value.shape[-1] in (1, 3, 4) and value.is_floating_point()
        return [value] if fits else []
    if isinstance(value, Mapping):
        parts = value.get("images", value.get("image"))
        return [] if parts is None else pictures_of(parts)
    if isinstance(value, (list, tuple)):
        return [picture for part in value for picture in pictures_of(part)]
    return []
