"""Parts, edges and exposures of one level as a diagram, bounded: what is too much is counted in a box and a remark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yggdrasill.draw.config import Child, Connection, ExposedPort, children, connections, exposures
from yggdrasill.draw.diagram import Item, Pill, draw_diagram
from yggdrasill.draw.layers import back_arcs
from yggdrasill.draw.legend import Legend
from yggdrasill.draw.svg import Picture
from yggdrasill.draw.wires import loop_sample

__all__ = ["MAX_PARTS", "MAX_PARTS_INSIDE", "Network", "Ports", "draw_network", "read_network"]

MAX_PARTS = 120
"""Boxes drawn of one level."""
MAX_PARTS_INSIDE = 24
"""Boxes drawn of a level that is shown inside the box of another."""
_MAX_LINKS = 600
_MAX_PILLS = 60

Ports = tuple[str, ...]
"""Names of ports, top to bottom."""


@dataclass(frozen=True)
class Network:
    """The parts of a level and what connects them; ``noun`` names one part, ``hues`` colour external names."""

    noun: str
    parts: Sequence[Child]
    links: Sequence[Connection]
    inputs: Sequence[ExposedPort] = ()
    outputs: Sequence[ExposedPort] = ()
    hues: Mapping[str, str] = field(default_factory=dict)


def read_network(config: Mapping[str, Any], level: str, noun: str) -> Network:
    """The network of a graph or pipeline config."""
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
    """The diagram of a network; ``item_for`` makes the box of a part with its input and output ports."""
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


def _summary(hidden: int, noun: str, taken: Mapping[str, str]) -> Item:
    name = "more"
    while name in taken:
        name += "+"
    return Item(name, f"+ {hidden:,} {noun}s", "not drawn", "grey", closed=True)


def _remark(network: Network, kept: int, ids: set[str], legend: Legend, name: str) -> None:
    """Say what the bounds cut off."""
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
    """The ports of each part, in the order they are first named."""
    found: dict[str, dict[str, None]] = {}
    for part, port in [*((entry.part, entry.port) for entry in exposed), *ends]:
        if port:
            found.setdefault(part, {})[port] = None
    return {part: tuple(ports) for part, ports in found.items()}


def _pills(exposed: Iterable[ExposedPort], own: Mapping[str, str], hues: Mapping[str, str]) -> list[Pill]:
    """One pill per external name, with all its ends; in its own hue or that of its part."""
    ends: dict[str, dict[tuple[str, str], None]] = {}
    for entry in exposed:
        ends.setdefault(entry.name, {})[entry.part, entry.port] = None
    return [Pill(name, tuple(found), own.get(name) or hues.get(next(iter(found))[0], "grey")) for name, found in ends.items()]
