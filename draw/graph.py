"""A graph config as a picture: nodes coloured by role, ports as far as edges and exposures name them, loops marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.draw.config import Child, id_of
from yggdrasill.draw.diagram import Item
from yggdrasill.draw.legend import Legend
from yggdrasill.draw.network import Ports, draw_network, read_network
from yggdrasill.draw.svg import Picture

__all__ = ["draw_graph"]


def draw_graph(config: Mapping[str, Any], legend: Legend, *, compact: bool = False) -> Picture:
    """The nodes of a graph; ``compact`` for the inside of a box. A cycle says how often it runs, if the metadata does."""

    def item(node: Child, inputs: Ports, outputs: Ports) -> Item:
        block_type = str(node.entry.get("block_type") or "no block type")
        own = node.entry.get("config")
        ref = own.get("ref") if isinstance(own, Mapping) else None
        notes = ["frozen"] if node.entry.get("trainable") is False else []
        notes += [f"config: {ref}"] if ref else []
        return Item(node.id, node.id, block_type, legend.hue(block_type), inputs, outputs, ", ".join(notes))

    metadata = config.get("metadata")
    steps = metadata.get("num_loop_steps") if isinstance(metadata, Mapping) else None
    loop = f"loop × {steps}" if isinstance(steps, int) else "loop"
    return draw_network(read_network(config, "graph", "node"), item, legend, name=id_of(config, "graph"), compact=compact, loop=loop)
