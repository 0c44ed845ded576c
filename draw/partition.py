"""A partitioned workflow as a picture: what runs here as nodes, what runs elsewhere as boxes with their nodes inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.draw.config import Child, entries, name_in
from yggdrasill.draw.diagram import Item
from yggdrasill.draw.legend import Legend, framed
from yggdrasill.draw.lettering import width_of
from yggdrasill.draw.network import Ports, draw_network, read_network
from yggdrasill.draw.palette import stylesheet
from yggdrasill.draw.places import Places
from yggdrasill.draw.svg import Picture, document, join, tag, text

__all__ = ["draw_partition"]

_WIDEST, _TALLEST = 620.0, 320.0
_PAD = 9.0


def draw_partition(partition: Mapping[str, Any], *, title: str = "workflow") -> str:
    """An SVG picture of ``{"nodes", "edges"}``, the same bytes for the same arguments.

    Both lists are as in a graph config, with ``title``, ``class_type`` and ``note`` for a node, and for one that stands for a part
    ``place``, where it runs, and ``inside``: such a mapping of its own, whose nodes may be marked ``copy``. `InvalidConfig` for
    another shape.
    """
    nodes = entries(partition, "nodes")
    places = {name_in(node, "node_id", "nodes"): str(node["place"]) for node in nodes if node.get("place")}
    legend = Legend(Places(places, title))
    network = read_network(partition, "graph", "node")

    def item(node: Child, inputs: Ports, outputs: Ports) -> Item:
        return _item(node, inputs, outputs, legend)

    body = draw_network(network, item, legend, name=title, compact=False)
    caption = _caption(nodes)
    return document(framed(body, legend, heading=title, caption=caption), name=f"{title}: {caption}", style=stylesheet())


def _caption(nodes: Any) -> str:
    calls = [node for node in nodes if node.get("place")]
    here = len(nodes) - len(calls)
    count = f"{here} node{'' if here == 1 else 's'} here"
    return f"{count} · {len(calls)} call{'' if len(calls) == 1 else 's'} elsewhere" if calls else count


def _item(node: Child, inputs: Ports, outputs: Ports, legend: Legend) -> Item:
    entry = node.entry
    name = str(entry.get("title") or node.id)
    about, note = str(entry.get("class_type") or ""), str(entry.get("note") or "")
    inside = entry.get("inside")
    if not isinstance(inside, Mapping):
        return Item(node.id, name, about, "grey", inputs, outputs, note)
    hue = legend.places.hue((node.id,))
    return Item(node.id, name, about, hue, inputs, outputs, note, _inside(inside, legend, hue), legend.places.badge((node.id,)))


def _inside(partition: Mapping[str, Any], legend: Legend, hue: str) -> Picture:
    def item(node: Child, inputs: Ports, outputs: Ports) -> Item:
        copy = bool(node.entry.get("copy"))
        if copy:
            legend.samples["copy"] = _copy_sample()
        return Item(node.id, str(node.entry.get("title") or node.id), "", "grey" if copy else hue, inputs, outputs, closed=copy)

    picture = draw_network(read_network(partition, "graph", "node"), item, legend, name="a part", compact=True)
    scale = min(1.0, _WIDEST / max(1.0, picture.width), _TALLEST / max(1.0, picture.height))
    width, height = picture.width * scale + 2 * _PAD, picture.height * scale + 2 * _PAD
    panel = tag("rect", class_="y-inner y-rule", width=width, height=height, rx=6)
    return Picture(width, height, join([panel, picture.placed(_PAD, _PAD, scale)]))


def _copy_sample() -> Picture:
    words = "a copy: what it makes cannot travel"
    square = tag("rect", class_="y-box y-grey-tint y-grey-line y-dashed", x=0.5, y=3, width=16, height=11, rx=3)
    return Picture(23 + width_of(words, 11), 17, join([square, text(22, 12.5, words, "y-t y-label y-soft")]))
