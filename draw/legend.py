"""The page around a drawing: places and their badges, the legend, heading, caption and remarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from yggdrasill.draw.palette import hue_of, place_hues
from yggdrasill.draw.svg import Markup, Picture, join, shorten, tag, text, text_width, tooltip
from yggdrasill.errors import InvalidConfig

__all__ = ["Badge", "Legend", "Places", "draw_badge", "frame", "host_of", "swatch"]

_MARGIN = 24.0
_GAP = 18.0
_ROW = 24.0


@dataclass
class Legend:
    """The block families, places and remarks of one picture, collected while it is drawn."""

    places: Places
    families: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    samples: dict[str, Picture] = field(default_factory=dict)

    def hue(self, block_type: str) -> str:
        """Return the hue of a block type and add its family to the legend."""
        hue, family = hue_of(block_type)
        self.families[family] = hue
        return hue

    def remark(self, words: str) -> None:
        """Add a line of text below the picture."""
        self.remarks.append(words)

    def entries(self) -> list[Picture]:
        """Return the entries of the legend in a fixed order."""
        families = [swatch(family, self.families[family]) for family in sorted(self.families)]
        return families + [self.samples[name] for name in sorted(self.samples)] + [draw_badge(badge) for badge in self.places.legend()]


@dataclass(frozen=True)
class Badge:
    """The name of a place, such as an endpoint, and its hue."""

    place: str
    hue: str


class Places:
    """The place of every path, by the most specific entry; records the places that were drawn, for the legend."""

    def __init__(self, places: Mapping[str, str], root: str) -> None:
        self._places = dict(places)
        self._root = root
        self._names = sorted(set(self._places.values()))
        self._seen: set[str] = set()

    def of(self, path: tuple[str, ...], endpoint: str | None = None) -> str | None:
        """Return the place of ``path`` by its key (whole path, path below the root's id, or last id), else its URL's host, else its parent's place."""
        for key in ("/".join(path), "/".join((self._root, *path)), path[-1] if path else self._root):
            if key in self._places:
                return self._places[key]
        if endpoint:
            return host_of(endpoint)
        return self.of(path[:-1]) if path else None

    def badge(self, path: tuple[str, ...], endpoint: str | None = None) -> Badge | None:
        """Return the badge of a part; None if the part has no place or runs at the same place as its parent."""
        place = self.of(path, endpoint)
        if place is None or (path and place == self.of(path[:-1])):
            return None
        self._seen.add(place)
        return Badge(place, self._hue(place))

    def hue(self, path: tuple[str, ...], endpoint: str | None = None) -> str:
        """Return the hue of the place of a path; grey if it has no place."""
        place = self.of(path, endpoint)
        return "grey" if place is None else self._hue(place)

    def legend(self) -> list[Badge]:
        """Return a badge for every place that was drawn."""
        hues = place_hues(self._names)
        return [Badge(name, hues[name]) for name in self._names if name in self._seen]

    def _hue(self, place: str) -> str:
        if place not in self._names:
            self._names.append(place)
        return place_hues(self._names)[place]


def host_of(url: str) -> str:
    """Return ``host:port`` of an endpoint's URL, without user name, password and path; raise `InvalidConfig` if it is not a URL."""
    try:
        authority = urlsplit(url if "//" in url else f"//{url}").netloc
    except ValueError as error:
        raise InvalidConfig(f"Invalid endpoint_url ({error}). Use a URL such as 'http://host:8188'.") from error
    return authority.rpartition("@")[2] or "endpoint"


def draw_badge(badge: Badge) -> Picture:
    """Return a small filled pill with the name of the place."""
    words = shorten(badge.place, 30, keep_end=True)
    width = text_width(words, 10, bold=True) + 24
    pill = tag("rect", class_=f"y-{badge.hue}", width=width, height=17, rx=8.5)
    dot = tag("circle", class_="y-light", cx=10, cy=8.5, r=3)
    label = text(17, 12, words, "y-t y-small y-strong y-light")
    return Picture(width, 17, tag("g", tooltip(f"runs at {badge.place}"), pill, dot, label))


def swatch(words: str, hue: str) -> Picture:
    """Return a coloured square with its meaning."""
    shown = shorten(words, 24)
    square = tag("rect", class_=f"y-box {f'y-{hue}-tint y-{hue}-line'}", x=0.5, y=3, width=11, height=11, rx=3)
    return Picture(18 + text_width(shown, 11), 17, join([square, text(17, 12.5, shown, "y-t y-label y-soft")]))


def frame(body: Picture, legend: Legend, *, heading: str, caption: str) -> Picture:
    """Return the page around a drawing: heading and caption above, legend and remarks below."""
    shown = shorten(heading, 90)
    badge = legend.places.badge(())
    width = max(
        body.width,
        text_width(shown, 17, bold=True) + 190,
        text_width(caption, 11),
        *(text_width(words, 11) for words in legend.remarks),
        320,
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
    """Return the entries in rows no wider than ``width``, and the y below them."""
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
