"""What one picture gathers while it is drawn, and the frame that shows it: heading, legend, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from yggdrasill.draw.lettering import shortened, width_of
from yggdrasill.draw.palette import hue_of
from yggdrasill.draw.places import Places, draw_badge
from yggdrasill.draw.svg import Markup, Picture, join, tag, text

__all__ = ["Legend", "framed", "swatch"]

_MARGIN = 24.0
_GAP = 18.0
_ROW = 24.0


@dataclass
class Legend:
    """The families, places and remarks of one picture."""

    places: Places
    families: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    samples: dict[str, Picture] = field(default_factory=dict)

    def hue(self, block_type: str) -> str:
        """The hue of a block type, remembered for the legend."""
        hue, family = hue_of(block_type)
        self.families[family] = hue
        return hue

    def remark(self, words: str) -> None:
        """Say something below the picture."""
        self.remarks.append(words)

    def entries(self) -> list[Picture]:
        """Everything to explain, in a fixed order."""
        families = [swatch(family, self.families[family]) for family in sorted(self.families)]
        return families + [self.samples[name] for name in sorted(self.samples)] + [draw_badge(badge) for badge in self.places.legend()]


def swatch(words: str, hue: str) -> Picture:
    """A coloured square and what it means."""
    shown = shortened(words, 24)
    square = tag("rect", class_=f"y-box {f'y-{hue}-tint y-{hue}-line'}", x=0.5, y=3, width=11, height=11, rx=3)
    return Picture(18 + width_of(shown, 11), 17, join([square, text(17, 12.5, shown, "y-t y-label y-soft")]))


def framed(body: Picture, legend: Legend, *, heading: str, caption: str) -> Picture:
    """The page around a drawing: heading and caption above, legend and remarks below."""
    shown = shortened(heading, 90)
    badge = legend.places.badge(())
    width = max(
        body.width, width_of(shown, 17, bold=True) + 190, width_of(caption, 11), *(width_of(words, 11) for words in legend.remarks), 320
    )
    pieces = [text(_MARGIN, 37, shown, "y-t y-heading y-ink"), text(_MARGIN, 56, caption, "y-t y-label y-soft")]
    if badge is not None:
        mark = draw_badge(badge)
        pieces.append(mark.placed(_MARGIN + width - mark.width, 24))
    y = 78.0
    pieces.append(body.placed(_MARGIN + (width - body.width) / 2, y))
    y += body.height + 20
    rows, y = _rows(legend.entries(), width, y)
    pieces += rows
    for words in legend.remarks:
        pieces.append(text(_MARGIN, y + 14, words, "y-t y-label y-strong y-soft"))
        y += 18
    full, tall = width + 2 * _MARGIN, y + 14
    page = tag("rect", class_="y-page y-rule", x=0.5, y=0.5, width=full - 1, height=tall - 1, rx=12)
    return Picture(full, tall, join([page, *pieces]))


def _rows(entries: list[Picture], width: float, y: float) -> tuple[list[Markup], float]:
    """Entries in rows no wider than ``width``, and the y below them."""
    if not entries:
        return [], y
    pieces = [tag("path", class_="y-rule", d=f"M{_MARGIN:g} {y:.1f}h{width:.1f}")]
    x, y = 0.0, y + 10
    for entry in entries:
        if x and x + entry.width > width:
            x, y = 0.0, y + _ROW
        pieces.append(entry.placed(_MARGIN + x, y))
        x += entry.width + _GAP
    return pieces, y + _ROW
