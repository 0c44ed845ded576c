"""A graph as a small cell: its name, and one coloured square per node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from yggdrasill.draw.config import Child, children, level_of
from yggdrasill.draw.legend import Legend
from yggdrasill.draw.lettering import shortened, width_of
from yggdrasill.draw.levels import summary_of
from yggdrasill.draw.places import draw_badge
from yggdrasill.draw.svg import Markup, Picture, join, tag, text, tooltip

__all__ = ["draw_cell", "flowed"]

_SQUARES = 12
_SQUARE = 11.0


def draw_cell(graph: Child, legend: Legend, path: tuple[str, ...]) -> Picture:
    """The cell of one graph, in the colour of its place; closed, with a dashed outline, if its config is elsewhere."""
    name = shortened(graph.id, 26)
    strip = _strip(graph, legend)
    badge = legend.places.badge(path, graph.endpoint)
    mark = draw_badge(badge) if badge else None
    width = max(width_of(name, 10, bold=True) + 16 + (mark.width + 4 if mark else 0.0), strip.width + 16, 60.0)
    height = 21.0 + strip.height
    hue = legend.places.hue(path, graph.endpoint)
    dashed = "" if graph.config is not None else " y-dashed"
    pieces = [
        tooltip(f"{graph.id}: {summary_of(graph, 'graph')}"),
        tag("rect", class_=f"y-box y-{hue}-line{dashed}", width=width, height=height, rx=5),
        text(8, 14, name, "y-t y-small y-strong y-ink"),
        strip.placed(8, 20),
        *([mark.placed(width - mark.width - 3, 2)] if mark else []),
    ]
    return Picture(width, height, tag("g", *pieces))


def flowed(cells: Sequence[Picture], width: float) -> Picture:
    """Cells in rows of at most ``width``, or of the widest cell."""
    x = y = row = full = 0.0
    pieces = []
    for cell in cells:
        if x and x + cell.width > width:
            x, y, row = 0.0, y + row + 7, 0.0
        pieces.append(cell.placed(x, y))
        x += cell.width + 7
        full, row = max(full, x - 7), max(row, cell.height)
    return Picture(full, y + row, join(pieces))


def _strip(graph: Child, legend: Legend) -> Picture:
    """One square per node in the colour of its family; a line of text where there are no nodes to show."""
    if graph.config is None or level_of(graph.config) != "graph":
        words = "" if graph.endpoint else shortened(summary_of(graph, "graph"), 34, keep_end=True)
        return Picture(width_of(words, 10, mono=True), 15 if words else 3, text(0, 9, words, "y-code y-soft"))
    nodes = children(graph.config, "graph")
    pieces: list[Markup] = []
    for place, node in enumerate(nodes[:_SQUARES]):
        block_type = _block_type(node.entry)
        square = tag(
            "rect", tooltip(f"{node.id} ({block_type})"), class_=f"y-{legend.hue(block_type)}", x=place * _SQUARE, width=8, height=8, rx=2
        )
        pieces.append(square)
    width = min(len(nodes), _SQUARES) * _SQUARE
    if len(nodes) > _SQUARES:
        words = f"+ {len(nodes) - _SQUARES:,}"
        pieces.append(text(width + 2, 8, words, "y-t y-small y-soft"))
        width += width_of(words, 10) + 4
    return Picture(width, 15, join(pieces))


def _block_type(entry: Mapping[str, object]) -> str:
    return str(entry.get("block_type") or "no block type")
