"""A timeline of a run: one row per place, bars on a time axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from yggdrasill.draw.legend import swatch
from yggdrasill.draw.palette import stylesheet
from yggdrasill.draw.svg import Markup, Picture, document, number, plural, shorten, tag, text, text_width, tooltip
from yggdrasill.errors import InvalidArgument, unknown_message

__all__ = ["KINDS", "THEMES", "Span", "draw_timeline"]

THEMES = ("auto", "light", "dark")

KINDS: dict[str, str] = {"compute": "indigo", "transfer": "orange", "wait": "grey", "skipped": "grey"}
"""The kinds of spans and their hues; a wait is pale, a skipped part has a dashed outline."""

_MAX_SPANS = 2_000
_BAR = 20.0
_LANE = 25.0
_MARGIN = 24.0
_WIDTH = 860.0
_TOP = 108.0
_SHORTEST = 1e-6
_LATEST = 1e12


@dataclass(frozen=True)
class Span:
    """A step that ran at ``place`` from ``start`` to ``end`` (seconds on any clock), in pass ``pass_index`` of a world."""

    place: str
    label: str
    kind: str
    start: float
    end: float
    pass_index: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgument(f"span {self.label!r}: {unknown_message('kind', self.kind, KINDS)}")
        if not -_LATEST < self.start <= self.end < _LATEST:
            raise InvalidArgument(
                f"the span {self.label!r} runs from {self.start} to {self.end}; times must be finite seconds, and the end must not be before the start"
            )


def draw_timeline(events: Iterable[Span], *, title: str | None = None, theme: str = "auto") -> str:
    """Return an SVG timeline of spans; equal spans give equal bytes. Overlapping spans of one place are drawn in separate lanes.

    ``theme`` is ``auto`` (as the page prefers), ``light`` or ``dark``. Time starts at the earliest span. Of more than 2,000 spans,
    the earliest 2,000 are drawn and the rest is counted.
    """
    if theme not in THEMES:
        raise InvalidArgument(unknown_message("theme", theme, THEMES))
    spans = sorted(events, key=lambda span: (span.start, span.end, span.pass_index, span.place, span.label, span.kind))
    heading = shorten(title if title is not None else "Timeline", 90)
    chart = _Chart(spans[:_MAX_SPANS], len(spans))
    return document(chart.drawn(heading), name=heading, style=stylesheet(theme))


class _Chart:
    def __init__(self, spans: Sequence[Span], total: int) -> None:
        self.spans = spans
        self.total = total
        self.origin = spans[0].start if spans else 0.0
        self.length = max((span.end for span in spans), default=0.0) - self.origin
        self.length = max(self.length, _SHORTEST)
        self.rows = _rows(spans)
        self.left = _MARGIN + min(200.0, max((text_width(shorten(place, 24), 13, bold=True) for place in self.rows), default=0.0)) + 16
        self.bottom = _TOP + sum(lanes for _, lanes in self.rows.values()) * _LANE + 10.0 * len(self.rows)

    def x(self, time: float) -> float:
        """Return the x of a time."""
        return self.left + (time - self.origin) / self.length * _WIDTH

    def drawn(self, heading: str) -> Picture:
        """Return the page."""
        width, height = self.left + _WIDTH + _MARGIN + 16, self.bottom + 70
        places = f"{len(self.rows)} {plural(len(self.rows), 'place')}"
        caption = f"{_time(self.length, self.length)} on {places}" if self.spans else "nothing ran"
        pieces = [tag("rect", class_="y-page y-rule", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=12)]
        pieces += [text(_MARGIN, 37, heading, "y-t y-heading y-ink"), text(_MARGIN, 56, caption, "y-t y-label y-soft")]
        pieces += self._axis() + self._passes()
        y = _TOP
        for place, (bars, lanes) in self.rows.items():
            pieces += self._row(place, bars, lanes, y)
            y += lanes * _LANE + 10
        pieces += self._legend(height)
        return Picture(width, height, Markup("".join(pieces)))

    def _axis(self) -> list[Markup]:
        pieces = []
        step = _step(self.length)
        for tick in range(int(self.length / step + 1e-9) + 1):
            x = self.x(self.origin + tick * step)
            pieces.append(tag("path", class_="y-rule", d=f"M{number(x)} {number(_TOP - 8)}V{number(self.bottom)}"))
            pieces.append(text(x, self.bottom + 15, _time(tick * step, self.length), "y-t y-small y-soft", "middle"))
        pieces.append(tag("path", class_="y-axis y-rule", d=f"M{number(self.left)} {number(self.bottom)}h{number(_WIDTH)}"))
        return pieces

    def _passes(self) -> list[Markup]:
        """Return a line at the start of each pass, if there are several, labelled if the label fits."""
        starts: dict[int, float] = {}
        for span in self.spans:
            starts[span.pass_index] = min(starts.get(span.pass_index, span.start), span.start)
        pieces, free = [], 0.0
        for index in sorted(starts) if len(starts) > 1 else ():
            x = self.x(starts[index])
            pieces.append(tag("path", class_="y-axis y-rule y-dashed", d=f"M{number(x)} {number(_TOP - 30)}V{number(self.bottom)}"))
            words = f"pass {index + 1}"
            if x >= free:
                pieces.append(text(x + 5, _TOP - 20, words, "y-t y-label y-strong y-soft"))
                free = x + text_width(words, 11, bold=True) + 8
        return pieces

    def _row(self, place: str, bars: Sequence[tuple[Span, int]], lanes: int, y: float) -> list[Markup]:
        words = text(_MARGIN, y + lanes * _LANE / 2 + 2, shorten(place, 24), "y-t y-name y-ink")
        pieces = [tag("g", tooltip(place), words)]
        pieces.append(tag("path", class_="y-rule", d=f"M{number(_MARGIN)} {number(y + lanes * _LANE + 3)}H{number(self.left + _WIDTH)}"))
        following: dict[int, float] = {}
        for span, lane in reversed(bars):
            room = following.get(lane, self.left + _WIDTH + _MARGIN) - self.x(span.end)
            pieces.append(self._bar(span, y + lane * _LANE, room))
            following[lane] = self.x(span.start)
        return pieces

    def _bar(self, span: Span, y: float, room: float) -> Markup:
        """Return one bar; its label is inside if it fits, else in the ``room`` after it, else only in the tooltip."""
        x, width = self.x(span.start), max(8.0 if span.kind == "skipped" else 2.0, self.x(span.end) - self.x(span.start))
        hue = KINDS[span.kind]
        solid = span.kind in {"compute", "transfer"}
        look = f"y-{hue}" if solid else f"y-{hue}-tint y-{hue}-line y-rule" + (" y-dashed" if span.kind == "skipped" else "")
        about = f"{span.label}: {span.kind}, {_time(span.end - span.start, span.end - span.start)}, pass {span.pass_index + 1}"
        pieces = [tooltip(about), tag("rect", class_=look, x=x, y=y, width=width, height=_BAR, rx=min(4.0, width / 2))]
        words = shorten(span.label, 40)
        needed = text_width(words, 10, bold=True)
        if needed + 10 <= width:
            pieces.append(text(x + 6, y + 13.6, words, f"y-t y-small y-strong {'y-light' if solid else 'y-soft'}"))
        elif needed + 8 <= room:
            pieces.append(text(x + width + 4, y + 13.6, words, "y-t y-small y-soft"))
        return tag("g", *pieces)

    def _legend(self, height: float) -> list[Markup]:
        pieces, x = [], _MARGIN
        for kind in KINDS:
            if any(span.kind == kind for span in self.spans):
                entry = _sample(kind)
                pieces.append(entry.placed(x, height - 36))
                x += entry.width + 18
        if self.total > len(self.spans):
            words = f"{self.total - len(self.spans):,} of {self.total:,} spans are not drawn: the latest."
            pieces.append(text(x, height - 23.5, words, "y-t y-label y-strong y-soft"))
        return pieces


def _rows(spans: Sequence[Span]) -> dict[str, tuple[list[tuple[Span, int]], int]]:
    """Return for each place its spans with the first free lane, and the number of lanes; places in the order of their first span."""
    ends: dict[str, list[float]] = {}
    bars: dict[str, list[tuple[Span, int]]] = {}
    for span in spans:
        lanes = ends.setdefault(span.place, [])
        lane = next((index for index, end in enumerate(lanes) if end <= span.start), len(lanes))
        lanes[lane : lane + 1] = [span.end]
        bars.setdefault(span.place, []).append((span, lane))
    return {place: (bars[place], len(lanes)) for place, lanes in ends.items()}


def _sample(kind: str) -> Picture:
    """Return the legend's entry for a kind."""
    if kind == "skipped":
        picture = swatch(kind, "grey")
        return Picture(picture.width, picture.height, Markup(picture.body.replace("y-box ", "y-box y-dashed ", 1)))
    if kind == "wait":
        return swatch(kind, "grey")
    square = tag("rect", class_=f"y-{KINDS[kind]}", x=0.5, y=3, width=11, height=11, rx=3)
    return Picture(18 + text_width(kind, 11), 17, Markup(square + text(17, 12.5, kind, "y-t y-label y-soft")))


def _step(length: float) -> float:
    """Return a round distance between ticks (1, 2 or 5 times a power of ten) for five to ten ticks."""
    rough = length / 10
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _time(seconds: float, scale: float) -> str:
    """Return a duration in the unit for ``scale``: s from two seconds on, else ms."""
    return f"{seconds:.4g} s" if scale >= 2.0 else f"{seconds * 1000:.4g} ms"
