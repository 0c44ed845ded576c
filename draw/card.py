"""A stage of a world as a card: its contract, its pipelines, and their graphs as small cells with one square per node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yggdrasill.draw.config import BLOCK_HUES, Child, Contract, children, condition_of, level_of
from yggdrasill.draw.legend import Legend, draw_badge
from yggdrasill.draw.levels import summary_of
from yggdrasill.draw.svg import Markup, Picture, join, number, shorten, tag, text, text_width, tooltip

__all__ = ["draw_card", "numbered_disc"]

_PAD = 10.0
_PIPELINES = 6
_CELLS = 8
_CELLS_WIDTH = 250.0
_SQUARES = 12
_SQUARE = 11.0

Path = tuple[str, ...]


def draw_card(stage: Child, contract: Contract, legend: Legend, hue: str) -> Picture:
    """Return the card of one stage; closed, with a dashed outline, if its config is a ref or an endpoint."""
    path = (stage.id,)
    name, about = shorten(stage.id, 30), _subtitle_of(stage)
    panels, chips = _panels(stage, legend, path), _chips(contract)
    badge = legend.places.badge(path, stage.endpoint)
    mark = draw_badge(badge) if badge else Picture(0, 0, Markup(""))
    contents = [chips.width, text_width(name, 13, bold=True) + 8, text_width(about, 10, mono=True) + 4, *(panel.width for panel in panels)]
    width = max(150.0, mark.width + 40, *(content + 2 * _PAD for content in contents))
    head = 30.0 + (15.0 if about else 0.0)
    y = head + (27.0 if chips.width else 10.0)
    inside = []
    for panel in panels:
        inside.append(panel.drawn(width - 2 * _PAD).placed(_PAD, y))
        y += panel.height + 8
    height = y + (2.0 if panels else 0.0)
    dashed = "" if stage.config is not None else " y-dashed"
    inner = number(width - 25.2)
    pieces = [
        tooltip(f"stage {stage.id}"),
        tag("rect", class_=f"y-box y-{hue}-line{dashed}", width=width, height=height, rx=12),
        tag("path", class_=f"y-{hue}-tint", d=f"M.6 {number(head)}V12.6a12 12 0 0 1 12-12h{inner}a12 12 0 0 1 12 12V{number(head)}z"),
        text(_PAD + 2, 20, name, "y-t y-name y-ink"),
        *([text(_PAD + 2, 35, about, f"y-code y-{hue}")] if about else []),
        chips.placed(_PAD, head + 6),
        *inside,
        *([mark.placed(width - mark.width - 12, -8.5)] if badge else []),
    ]
    return Picture(width, height, tag("g", *pieces))


def numbered_disc(key: str, radius: float, hue: str) -> Markup:
    """Return a filled disc with the number of a state block, centred on 0, 0."""
    size = "y-name" if radius > 12 else "y-small y-strong"
    return join([tag("circle", class_=f"y-{hue}", r=radius), text(0, 4.6 if radius > 12 else 3.6, key, f"y-t {size} y-light", "middle")])


@dataclass(frozen=True)
class _Panel:
    """One pipeline of a stage: a line of text above its cells."""

    words: str
    cells: Picture
    badge: Picture

    @property
    def width(self) -> float:
        badge = self.badge.width + 14 if self.badge.width else 0.0
        return max(text_width(self.words, 10, bold=True) + 18 + badge, self.cells.width + 16)

    @property
    def height(self) -> float:
        return 22.0 + (self.cells.height + 8 if self.cells.height else 0.0)

    def drawn(self, width: float) -> Picture:
        panel = tag("rect", class_="y-inner y-rule", width=width, height=self.height, rx=6)
        words = text(8, 15, self.words, "y-t y-small y-strong y-soft")
        badge = [self.badge.placed(width - self.badge.width - 4, 2.5)] if self.badge.width else []
        return Picture(width, self.height, join([panel, words, self.cells.placed(8, 22), *badge]))


def _subtitle_of(stage: Child) -> str:
    """Return the line under the name: the source of a closed stage, or the role if it differs from the id."""
    if stage.config is None:
        return shorten(summary_of(stage, "stage"), 40, keep_end=True)
    role = stage.config.get("role")
    return shorten(role, 30) if isinstance(role, str) and role != stage.id else ""


def _panels(stage: Child, legend: Legend, path: Path) -> list[_Panel]:
    if stage.config is None or level_of(stage.config) != "stage":
        return []
    pipelines = children(stage.config, "stage")
    panels = [_panel(pipeline, legend, (*path, pipeline.id)) for pipeline in pipelines[:_PIPELINES]]
    if len(pipelines) > _PIPELINES:
        panels.append(
            _Panel(f"+ {len(pipelines) - _PIPELINES:,} pipelines, not drawn", Picture(0, 0, Markup("")), Picture(0, 0, Markup("")))
        )
    return panels


def _panel(pipeline: Child, legend: Legend, path: Path) -> _Panel:
    badge = legend.places.badge(path, pipeline.endpoint)
    words = [shorten(pipeline.id, 30)]
    condition = condition_of(pipeline)
    words += [shorten(condition, 30)] if condition else []
    words += [shorten(summary_of(pipeline, "pipeline"), 34, keep_end=True)] if pipeline.config is None else []
    cells = _cells(pipeline, legend, path)
    return _Panel(" · ".join(words), _flow_cells(cells, _CELLS_WIDTH), draw_badge(badge) if badge else Picture(0, 0, Markup("")))


def _cells(pipeline: Child, legend: Legend, path: Path) -> Sequence[Picture]:
    if pipeline.config is None or level_of(pipeline.config) != "pipeline":
        return []
    graphs = children(pipeline.config, "pipeline")
    cells = [_draw_cell(graph, legend, (*path, graph.id)) for graph in graphs[:_CELLS]]
    if len(graphs) > _CELLS:
        words = f"+ {len(graphs) - _CELLS:,} graphs"
        cells.append(Picture(text_width(words, 10), 30, text(0, 19, words, "y-t y-small y-soft")))
    return cells


def _chips(contract: Contract) -> Picture:
    """Return ``reads (1) (2) writes (3)`` in one row; empty without a contract."""
    x, pieces = 2.0, []
    for verb, keys in (("reads", contract.reads), ("writes", contract.writes)):
        if not keys:
            continue
        pieces.append(text(x, 12, verb, "y-t y-small y-soft"))
        x += text_width(verb, 10) + 5
        for key in keys[:10]:
            if len(key) == 1:
                pieces.append(Picture(0, 0, numbered_disc(key, 7.5, BLOCK_HUES.get(key, "grey"))).placed(x + 7.5, 8.5))
                x += 18
            else:
                words = shorten(key, 14)
                pieces.append(text(x, 12, words, "y-t y-small y-strong y-soft"))
                x += text_width(words, 10, bold=True) + 7
        x += 8
    return Picture(x - 8 if pieces else 0.0, 17.0, join(pieces))


def _draw_cell(graph: Child, legend: Legend, path: tuple[str, ...]) -> Picture:
    """Return the cell of one graph in the colour of its place; closed, with a dashed outline, if its config is a ref or an endpoint."""
    name = shorten(graph.id, 26)
    strip = _strip(graph, legend)
    badge = legend.places.badge(path, graph.endpoint)
    mark = draw_badge(badge) if badge else None
    width = max(text_width(name, 10, bold=True) + 16 + (mark.width + 4 if mark else 0.0), strip.width + 16, 60.0)
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


def _flow_cells(cells: Sequence[Picture], width: float) -> Picture:
    """Return the cells in rows of at most ``width``, or of the widest cell."""
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
    """Return one square per node in the colour of its family, or a line of text if the nodes are unknown."""
    if graph.config is None or level_of(graph.config) != "graph":
        words = "" if graph.endpoint else shorten(summary_of(graph, "graph"), 34, keep_end=True)
        return Picture(text_width(words, 10, mono=True), 15 if words else 3, text(0, 9, words, "y-code y-soft"))
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
        width += text_width(words, 10) + 4
    return Picture(width, 15, join(pieces))


def _block_type(entry: Mapping[str, object]) -> str:
    return str(entry.get("block_type") or "no block type")
