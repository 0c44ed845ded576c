"""Pipelines and stages as pictures: each part is a box that shows a small picture of its own inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.draw.config import Child, child_keys, children, condition_of, connections, id_of, level_of
from yggdrasill.draw.diagram import Item, draw_diagram
from yggdrasill.draw.graph import draw_graph
from yggdrasill.draw.legend import Legend
from yggdrasill.draw.network import Network, Ports, draw_network, read_network
from yggdrasill.draw.places import host_of
from yggdrasill.draw.state import BLOCK_HUES, block_name, contract_exposures, read_contract
from yggdrasill.draw.svg import Picture, join, tag
from yggdrasill.foundation.kinds import find_kind

__all__ = ["draw_box", "draw_pipeline", "draw_stage", "summary_of"]

_INSIDE = (620.0, 320.0)
_PAD = 9.0

Path = tuple[str, ...]


def draw_pipeline(
    config: Mapping[str, Any], legend: Legend, path: Path = (), *, depth: int = 1, compact: bool = False, level: str = "pipeline"
) -> Picture:
    """Return the picture of a pipeline's graphs, each with its inside down to ``depth`` levels; ``level`` is a kind drawn like one."""
    keys = find_kind(level).children
    noun = "part" if keys is None else keys.kind

    def item(child: Child, inputs: Ports, outputs: Ports) -> Item:
        return _item(child, noun, legend, (*path, child.id), inputs, outputs, depth)

    return draw_network(read_network(config, level, noun), item, legend, name=id_of(config, level), compact=compact)


def draw_stage(config: Mapping[str, Any], legend: Legend, path: Path = (), *, depth: int = 2) -> Picture:
    """The pipelines of a stage, and the state blocks that its contract reads into them and writes from them."""

    def item(child: Child, inputs: Ports, outputs: Ports) -> Item:
        return _item(child, "pipeline", legend, (*path, child.id), inputs, outputs, depth)

    parts = children(config, "stage")
    links = connections(config, "stage", [part.id for part in parts])
    inputs, outputs = contract_exposures(read_contract(config), parts, links)
    hues = {block_name(key): hue for key, hue in BLOCK_HUES.items()}
    return draw_network(Network("pipeline", parts, links, inputs, outputs, hues), item, legend, name=id_of(config, "stage"), compact=False)


def draw_box(config: Mapping[str, Any], legend: Legend, level: str) -> Picture:
    """Return the picture of a config whose parts are not drawn: one box with its id and kind."""
    name = id_of(config, level)
    return draw_diagram([Item(name, name, level, legend.places.hue((), None))], [])


def summary_of(child: Child, noun: str) -> str:
    """One line about a part: its file, its host, or what it is made of."""
    if child.ref:
        return f"ref: {child.ref}"
    level = level_of(child.config)
    if child.config is None or level is None:
        return host_of(child.endpoint) if child.endpoint else noun
    key, id_key = child_keys(level)
    if id_key is None:
        return level
    part = key.removesuffix("s")
    listed = child.config.get(key)
    count = len(listed) if isinstance(listed, list | tuple) else 0
    return f"{level} · {count:,} {part}{'' if count == 1 else 's'}"


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
    """The small picture of a part on a panel of its own, scaled down if it is large; None for what has no parts."""
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
    scale = min(1.0, _INSIDE[0] / picture.width, _INSIDE[1] / picture.height)
    width, height = picture.width * scale + 2 * _PAD, picture.height * scale + 2 * _PAD
    panel = tag("rect", class_="y-inner y-rule", width=width, height=height, rx=6)
    return Picture(width, height, join([panel, picture.placed(_PAD, _PAD, scale)]))
