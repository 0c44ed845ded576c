"""The public functions: a config of any level, or a partitioned workflow, as a complete SVG text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yggdrasill.draw.config import Child, entries, id_of, name_in, nested
from yggdrasill.draw.diagram import Item
from yggdrasill.draw.legend import Legend, Places, frame
from yggdrasill.draw.levels import Ports, draw_box, draw_graph, draw_network, draw_pipeline, draw_stage, inset, read_network, summary_of
from yggdrasill.draw.palette import stylesheet
from yggdrasill.draw.svg import Picture, document, join, plural, tag, text, text_width
from yggdrasill.draw.world import draw_world
from yggdrasill.foundation.kinds import find_kind

__all__ = ["draw_config", "draw_partition"]


def draw_config(config: Mapping[str, Any], *, places: Mapping[str, str] | None = None, title: str | None = None) -> str:
    """Return an SVG picture of a config of any kind; equal arguments give equal bytes.

    ``places`` maps a path of ids such as ``stage/pipeline/graph``, the end of a path, or one id to the name of the place where it
    runs, such as ``local``. ``title`` replaces the id as heading. Ids may be any text. Raises `InvalidConfig` if the mapping is not
    the config of a kind.
    """
    level, config = nested(config)
    name = id_of(config, level)
    legend = Legend(Places(places or {}, name))
    drawing = find_kind(level).drawing
    if drawing == "nodes":
        body = draw_graph(config, legend)
    elif drawing == "network":
        body = draw_pipeline(config, legend, level=level)
    elif drawing == "stage":
        body = draw_stage(config, legend)
    elif drawing == "ring":
        body = draw_world(config, legend)
    else:
        body = draw_box(config, legend, level)
    heading = title if title is not None else name
    caption = _caption(config, level, name)
    return document(frame(body, legend, heading=heading, caption=caption), name=f"{heading}: {caption}", style=stylesheet())


def draw_partition(partition: Mapping[str, Any], *, title: str = "workflow") -> str:
    """Return an SVG picture of ``{"nodes", "edges"}``; equal arguments give equal bytes.

    Both lists are as in a graph config. A node may have ``title``, ``class_type`` and ``note``. A node for a part also has
    ``place``, where the part runs, and ``inside``, a mapping of the same form whose nodes may be marked ``copy``. Raises
    `InvalidConfig` for any other form.
    """
    nodes = entries(partition, "nodes")
    places = {name_in(node, "node_id", "nodes"): str(node["place"]) for node in nodes if node.get("place")}
    legend = Legend(Places(places, title))
    network = read_network(partition, "graph", "node")

    def item(node: Child, inputs: Ports, outputs: Ports) -> Item:
        return _item(node, inputs, outputs, legend)

    body = draw_network(network, item, legend, name=title, compact=False)
    caption = _partition_caption(nodes)
    return document(frame(body, legend, heading=title, caption=caption), name=f"{title}: {caption}", style=stylesheet())


def _caption(config: Mapping[str, Any], level: str, name: str) -> str:
    if level == "world":
        stages = config.get("stages")
        count = len(stages) if isinstance(stages, Mapping) else 0
        return f"world · {count} {plural(count, 'stage')}"
    role = config.get("role") or config.get("graph_kind")
    return summary_of(Child(name, config, config), level) + (f" · {role}" if isinstance(role, str) else "")


def _partition_caption(nodes: Any) -> str:
    calls = [node for node in nodes if node.get("place")]
    here = len(nodes) - len(calls)
    count = f"{here} {plural(here, 'node')} here"
    return f"{count} · {len(calls)} {plural(len(calls), 'call')} elsewhere" if calls else count


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
    return inset(picture)


def _copy_sample() -> Picture:
    words = "a copy: what it makes cannot travel"
    square = tag("rect", class_="y-box y-grey-tint y-grey-line y-dashed", x=0.5, y=3, width=16, height=11, rx=3)
    return Picture(23 + text_width(words, 11), 17, join([square, text(22, 12.5, words, "y-t y-label y-soft")]))
