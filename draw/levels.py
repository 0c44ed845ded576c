"""Graphs, pipelines and stages as diagrams of their children.

The number of boxes, wires and pills is limited; a box and a remark count the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.draw.config import (
    BLOCK_HUES,
    Child,
    Connection,
    ExposedPort,
    block_name,
    child_keys,
    children,
    condition_of,
    connections,
    contract_exposures,
    exposures,
    id_of,
    level_of,
    read_contract,
)
from yggdrasill.draw.diagram import Item, Pill, draw_diagram, loop_sample
from yggdrasill.draw.layers import back_arcs
from yggdrasill.draw.legend import Legend, host_of
from yggdrasill.draw.svg import Picture, join, plural, tag
from yggdrasill.foundation.kinds import find_kind

__all__ = [
    "MAX_PARTS",
    "MAX_PARTS_INSIDE",
    "Network",
    "Ports",
    "draw_box",
    "draw_graph",
    "draw_network",
    "draw_pipeline",
    "draw_stage",
    "inset",
    "read_network",
    "summary_of",
]

MAX_PARTS = 120
"""The maximum number of boxes of one level."""
MAX_PARTS_INSIDE = 24
"""The maximum number of boxes of a level that is drawn inside a box."""
_MAX_LINKS = 600
_MAX_PILLS = 60
_INSET_SIZE = (620.0, 320.0)
_PAD = 9.0

Path = tuple[str, ...]
Ports = tuple[str, ...]
"""Names of ports, from top to bottom."""


def draw_graph(config: Mapping[str, Any], legend: Legend, *, compact: bool = False) -> Picture:
    """Return the nodes of a graph, coloured by role; ``compact`` for the inside of a box.

    Ports are drawn if an edge or an exposed port names them. A cycle is labelled with its number of steps, if the metadata has it.
    """

    def item(node: Child, inputs: Ports, outputs: Ports) -> Item:
        block_type = str(node.entry.get("block_type") or "no block type")
        block_config = node.entry.get("config")
        ref = block_config.get("ref") if isinstance(block_config, Mapping) else None
        notes = ["frozen"] if node.entry.get("trainable") is False else []
        notes += [f"config: {ref}"] if ref else []
        return Item(node.id, node.id, block_type, legend.hue(block_type), inputs, outputs, ", ".join(notes))

    metadata = config.get("metadata")
    steps = metadata.get("num_loop_steps") if isinstance(metadata, Mapping) else None
    loop = f"loop × {steps}" if isinstance(steps, int) else "loop"
    return draw_network(read_network(config, "graph", "node"), item, legend, name=id_of(config, "graph"), compact=compact, loop=loop)


def draw_pipeline(
    config: Mapping[str, Any], legend: Legend, path: Path = (), *, depth: int = 1, compact: bool = False, level: str = "pipeline"
) -> Picture:
    """Return the graphs of a pipeline, each with its inside down to ``depth`` levels; ``level`` is a kind that is drawn like one."""
    keys = find_kind(level).children
    noun = "part" if keys is None else keys.kind

    def item(child: Child, inputs: Ports, outputs: Ports) -> Item:
        return _item(child, noun, legend, (*path, child.id), inputs, outputs, depth)

    return draw_network(read_network(config, level, noun), item, legend, name=id_of(config, level), compact=compact)


def draw_stage(config: Mapping[str, Any], legend: Legend, path: Path = (), *, depth: int = 2) -> Picture:
    """Return the pipelines of a stage with the state blocks that its contract reads and writes as inputs and outputs."""

    def item(child: Child, inputs: Ports, outputs: Ports) -> Item:
        return _item(child, "pipeline", legend, (*path, child.id), inputs, outputs, depth)

    parts = children(config, "stage")
    links = connections(config, "stage", [part.id for part in parts])
    inputs, outputs = contract_exposures(read_contract(config), parts, links)
    hues = {block_name(key): hue for key, hue in BLOCK_HUES.items()}
    return draw_network(Network("pipeline", parts, links, inputs, outputs, hues), item, legend, name=id_of(config, "stage"), compact=False)


def draw_box(config: Mapping[str, Any], legend: Legend, level: str) -> Picture:
    """Return one box with the id and kind of a config whose parts are not drawn."""
    name = id_of(config, level)
    return draw_diagram([Item(name, name, level, legend.places.hue((), None))], [])


@dataclass(frozen=True)
class Network:
    """The children of a level, its edges and exposed ports; ``noun`` names one child, ``hues`` are the colours of external names."""

    noun: str
    parts: Sequence[Child]
    links: Sequence[Connection]
    inputs: Sequence[ExposedPort] = ()
    outputs: Sequence[ExposedPort] = ()
    hues: Mapping[str, str] = field(default_factory=dict)


def read_network(config: Mapping[str, Any], level: str, noun: str) -> Network:
    """Return the network of a graph or pipeline config."""
    parts = children(config, level)
    ids = [part.id for part in parts]
    return Network(
        noun,
        parts,
        connections(config, level, ids),
        exposures(config, level, "exposed_inputs", ids),
        exposures(config, level, "exposed_outputs", ids),
    )


def draw_network(
    network: Network,
    item_for: Callable[[Child, Ports, Ports], Item],
    legend: Legend,
    *,
    name: str,
    compact: bool,
    loop: str = "loop",
) -> Picture:
    """Return the diagram of a network; ``item_for`` makes the box of a child with its input and output ports."""
    kept = list(network.parts[: MAX_PARTS_INSIDE if compact else MAX_PARTS])
    ids = {part.id for part in kept}
    links = [link for link in network.links if link.source in ids and link.target in ids][:_MAX_LINKS]
    inputs = [] if compact else [entry for entry in network.inputs if entry.part in ids][:_MAX_PILLS]
    outputs = [] if compact else [entry for entry in network.outputs if entry.part in ids][:_MAX_PILLS]
    entering = _ports([(link.target, link.target_port) for link in links], inputs)
    leaving = _ports([(link.source, link.source_port) for link in links], outputs)
    items = [item_for(part, entering.get(part.id, ()), leaving.get(part.id, ())) for part in kept]
    hues = {item.id: item.hue for item in items}
    hidden = len(network.parts) - len(kept)
    if hidden:
        items.append(_summary(hidden, network.noun, hues))
        leading_out = dict.fromkeys(link.source for link in network.links if link.source in ids and link.target not in ids)
        links = links + [Connection(source, "", items[-1].id, "") for source in leading_out]
    order = {item.id: place for place, item in enumerate(items)}
    if back_arcs(len(items), [(order[link.source], order[link.target]) for link in links]):
        legend.samples["loop"] = loop_sample()
    if not compact:
        _remark(network, len(kept), ids, legend, name)
    return draw_diagram(items, links, _pills(inputs, network.hues, {}), _pills(outputs, network.hues, hues), loop=loop, compact=compact)


def summary_of(child: Child, noun: str) -> str:
    """Return one line about a child: its file, its host, or its level and number of children."""
    if child.ref:
        return f"ref: {child.ref}"
    level = level_of(child.config)
    if child.config is None or level is None:
        return host_of(child.endpoint) if child.endpoint else noun
    key, id_key = child_keys(level)
    if id_key is None:
        return level
    listed = child.config.get(key)
    count = len(listed) if isinstance(listed, list | tuple) else 0
    return f"{level} · {count:,} {plural(count, key.removesuffix('s'))}"


def inset(picture: Picture) -> Picture:
    """Return ``picture`` on a panel, scaled down if it is large, to be drawn inside a box."""
    scale = min(1.0, _INSET_SIZE[0] / max(1.0, picture.width), _INSET_SIZE[1] / max(1.0, picture.height))
    width, height = picture.width * scale + 2 * _PAD, picture.height * scale + 2 * _PAD
    panel = tag("rect", class_="y-inner y-rule", width=width, height=height, rx=6)
    return Picture(width, height, join([panel, picture.placed(_PAD, _PAD, scale)]))


def _item(child: Child, noun: str, legend: Legend, path: Path, inputs: Ports, outputs: Ports, depth: int) -> Item:
    notes = [condition_of(child), "frozen" if child.entry.get("trainable") is False else ""]
    hue = legend.places.hue(path, child.endpoint)
    inside = _inside(child.config, legend, path, depth - 1) if child.config is not None and depth > 0 else None
    badge = legend.places.badge(path, child.endpoint)
    summary = summary_of(child, noun)
    return Item(
        child.id, child.id, summary, hue, inputs, outputs, ", ".join(filter(None, notes)), inside, badge, closed=child.config is None
    )


def _inside(config: Mapping[str, Any], legend: Legend, path: Path, depth: int) -> Picture | None:
    """Return the small picture of a child on a panel; None if it has no children."""
    level = level_of(config)
    drawing = None if level is None else find_kind(level).drawing
    if drawing == "nodes":
        picture = draw_graph(config, legend, compact=True)
    elif drawing == "network" and level is not None:
        picture = draw_pipeline(config, legend, path, depth=depth, compact=True, level=level)
    else:
        return None
    if not picture.width:
        return None
    return inset(picture)


def _summary(hidden: int, noun: str, taken: Mapping[str, str]) -> Item:
    name = "more"
    while name in taken:
        name += "+"
    return Item(name, f"+ {hidden:,} {noun}s", "not drawn", "grey", closed=True)


def _remark(network: Network, kept: int, ids: set[str], legend: Legend, name: str) -> None:
    """Add a remark about the parts that are not drawn."""
    links = sum(link.source in ids and link.target in ids for link in network.links)
    cut = {
        f"{network.noun}s": len(network.parts) - kept,
        "edges": len(network.links) - min(links, _MAX_LINKS),
        "inputs": max(0, len(network.inputs) - _MAX_PILLS),
        "outputs": max(0, len(network.outputs) - _MAX_PILLS),
    }
    missing = [f"{count:,} {what}" for what, count in cut.items() if count]
    if missing:
        legend.remark(f"Not drawn of {name}: {', '.join(missing)} ({kept:,} of {len(network.parts):,} {network.noun}s are drawn).")


def _ports(ends: Iterable[tuple[str, str]], exposed: Iterable[ExposedPort]) -> dict[str, Ports]:
    """Return the ports of each child, in the order they are first named."""
    found: dict[str, dict[str, None]] = {}
    for part, port in [*((entry.part, entry.port) for entry in exposed), *ends]:
        if port:
            found.setdefault(part, {})[port] = None
    return {part: tuple(ports) for part, ports in found.items()}


def _pills(exposed: Iterable[ExposedPort], named: Mapping[str, str], hues: Mapping[str, str]) -> list[Pill]:
    """Return one pill per external name with all its ends, in the hue of its name or of its child."""
    ends: dict[str, dict[tuple[str, str], None]] = {}
    for entry in exposed:
        ends.setdefault(entry.name, {})[entry.part, entry.port] = None
    return [Pill(name, tuple(found), named.get(name) or hues.get(next(iter(found))[0], "grey")) for name, found in ends.items()]
