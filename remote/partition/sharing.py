"""Which calls can be shared out: those that give for each value of a list, or each picture of a batch, what they give for it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.remote.comfy_ports import INPUT_NODE, OUTPUT_NODE, is_link
from yggdrasill.remote.partition.parts import PartCall
from yggdrasill.remote.partition.schemas import NodeSchema

__all__ = ["can_be_shared", "reach_of"]


def can_be_shared(call: PartCall, schemas: Mapping[str, NodeSchema]) -> bool:
    """Whether ComfyUI calls every node inside once for each value, and nothing there may change by itself.

    A node that takes a list whole, or gives one, has to see it whole.
    """
    if call.asks_again:
        return False
    inside = [schemas.get(call.prompt[node]["class_type"]) for node in (*call.nodes, *call.copies)]
    return all(schema is not None and not schema.input_is_list and not any(schema.output_is_list) for schema in inside)


def reach_of(prompt: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """For each output of a prompt with ports, by name, the inputs that it depends on."""
    known: dict[str, frozenset[str]] = {}

    def inputs_behind(start: str) -> frozenset[str]:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            links = [value[0] for value in prompt[node].get("inputs", {}).values() if is_link(value)]
            unknown = [link for link in links if link not in known]
            if unknown:
                waiting += unknown
                continue
            own = {str(prompt[node]["inputs"]["name"])} if prompt[node]["class_type"] == INPUT_NODE else set()
            known[node] = frozenset(own.union(*(known[link] for link in links)))
            waiting.pop()
        return known[start]

    sinks = [node for node in prompt if prompt[node]["class_type"] == OUTPUT_NODE]
    return {str(prompt[node]["inputs"]["name"]): inputs_behind(node) for node in sinks}
