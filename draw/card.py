"""A stage of a world as a card: what it reads and writes, its pipelines, and in them their graphs as small cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yggdrasill.draw.cell import draw_cell, flowed
from yggdrasill.draw.config import Child, children, condition_of, level_of
from yggdrasill.draw.legend import Legend
from yggdrasill.draw.lettering import shortened, width_of
from yggdrasill.draw.levels import summary_of
from yggdrasill.draw.places import draw_badge
from yggdrasill.draw.state import BLOCK_HUES, Contract
from yggdrasill.draw.svg import Markup, Picture, join, number, tag, text, tooltip

__all__ = ["draw_card", "numbered"]

_PAD = 10.0
_PIPELINES = 6
_CELLS = 8
_CELLS_WIDTH = 250.0

Path = tuple[str, ...]


def draw_card(stage: Child, contract: Contract, legend: Legend, hue: str) -> Picture:
    """The card of one stage; closed, with a dashed outline, if its config is elsewhere."""
    path = (stage.id,)
    name, about = shortened(stage.id, 30), _about(stage)
    panels, chips = _panels(stage, legend, path), _chips(contract)
    badge = legend.places.badge(path, stage.endpoint)
    mark = draw_badge(badge) if badge else Picture(0, 0, Markup(""))
    contents = [chips.width, width_of(name, 13, bold=True) + 8, width_of(about, 10, mono=True) + 4, *(panel.width for panel in panels)]
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


def numbered(key: str, radius: float, hue: str) -> Markup:
    """A filled disc with the number of a state block, centred on 0, 0."""
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
        return max(width_of(self.words, 10, bold=True) + 18 + badge, self.cells.width + 16)

    @property
    def height(self) -> float:
        return 22.0 + (self.cells.height + 8 if self.cells.height else 0.0)

    def drawn(self, width: float) -> Picture:
        panel = tag("rect", class_="y-inner y-rule", width=width, height=self.height, rx=6)
        words = text(8, 15, self.words, "y-t y-small y-strong y-soft")
        badge = [self.badge.placed(width - self.badge.width - 4, 2.5)] if self.badge.width else []
        return Picture(width, self.height, join([panel, words, self.cells.placed(8, 22), *badge]))


def _about(stage: Child) -> str:
    """A second line under the name: where a closed stage comes from, or the role of one that is named otherwise."""
    if stage.config is None:
        return shortened(summary_of(stage, "stage"), 40, keep_end=True)
    role = stage.config.get("role")
    return shortened(role, 30) if isinstance(role, str) and role != stage.id else ""


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
    words = [shortened(pipeline.id, 30)]
    condition = condition_of(pipeline)
    words += [shortened(condition, 30)] if condition else []
    words += [shortened(summary_of(pipeline, "pipeline"), 34, keep_end=True)] if pipeline.config is None else []
    cells = _cells(pipeline, legend, path)
    return _Panel(" · ".join(words), flowed(cells, _CELLS_WIDTH), draw_badge(badge) if badge else Picture(0, 0, Markup("")))


def _cells(pipeline: Child, legend: Legend, path: Path) -> Sequence[Picture]:
    if pipeline.config is None or level_of(pipeline.config) != "pipeline":
        return []
    graphs = children(pipeline.config, "pipeline")
    cells = [draw_cell(graph, legend, (*path, graph.id)) for graph in graphs[:_CELLS]]
    if len(graphs) > _CELLS:
        words = f"+ {len(graphs) - _CELLS:,} graphs"
        cells.append(Picture(width_of(words, 10), 30, text(0, 19, words, "y-t y-small y-soft")))
    return cells


def _chips(contract: Contract) -> Picture:
    """``reads (1) (2) writes (3)`` in one row; nothing without a contract."""
    x, pieces = 2.0, []
    for verb, keys in (("reads", contract.reads), ("writes", contract.writes)):
        if not keys:
            continue
        pieces.append(text(x, 12, verb, "y-t y-small y-soft"))
        x += width_of(verb, 10) + 5
        for key in keys[:10]:
            if len(key) == 1:
                pieces.append(Picture(0, 0, numbered(key, 7.5, BLOCK_HUES.get(key, "grey"))).placed(x + 7.5, 8.5))
                x += 18
            else:
                words = shortened(key, 14)
                pieces.append(text(x, 12, words, "y-t y-small y-strong y-soft"))
                x += width_of(words, 10, bold=True) + 7
        x += 8
    return Picture(x - 8 if pieces else 0.0, 17.0, join(pieces))
