"""Sockets that are many alike: a graph's ports by number, and the parts of which something is put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.v0_0_2 import io

__all__ = ["linked_parts", "names_input", "part_inputs", "port_inputs", "port_outputs", "values_in_order"]

_MOST_PARTS = 24


def port_inputs(most: int, tooltip: str | None = None) -> Any:
    """``ports``: the values of a graph's inputs in their order, sockets ``p0``, ``p1`` ..."""
    port = io.AnyType.Input("port", optional=True)
    return io.Autogrow.Input(
        "ports", template=io.Autogrow.TemplatePrefix(port, prefix="p", min=0, max=most), optional=True, tooltip=tooltip
    )


def port_outputs(most: int) -> list[Any]:
    """A graph's outputs in their order, sockets ``o0``, ``o1`` ..., each a list of values."""
    return [io.AnyType.Output(f"o{index}", display_name=f"o{index}", is_output_list=True) for index in range(most)]


def values_in_order(outputs: Mapping[int, Any], count: int) -> list[Any]:
    """What the first ``count`` of `port_outputs` give; one without value blocks what depends on it."""
    from comfy_execution.graph_utils import ExecutionBlocker

    blocked = [ExecutionBlocker(None)]
    return [outputs.get(index, blocked) for index in range(count)]


def part_inputs(name: str, part: Any, prefix: str, tooltip: str) -> Any:
    """``name``: parts like ``part``, one at least, and one socket more for each that is linked."""
    return io.Autogrow.Input(name, template=io.Autogrow.TemplatePrefix(part, prefix=prefix, min=1, max=_MOST_PARTS), tooltip=tooltip)


def names_input(parts: str) -> Any:
    """What ``parts`` are called inside the whole."""
    return io.String.Input(
        "names", default="", tooltip=f"What the {parts} are called, divided by commas; blank are their ids.", advanced=True
    )


def linked_parts(parts: Mapping[str, Any]) -> list[Any]:
    """The values of `part_inputs` that are there, in their order."""
    return [part for part in parts.values() if part is not None]
