"""Wires as SVG paths: smooth where they run forward, dashed and square where they close a loop."""

from __future__ import annotations

from collections.abc import Sequence

from yggdrasill.draw.layout import Route
from yggdrasill.draw.lettering import width_of
from yggdrasill.draw.svg import Markup, Picture, join, number, tag, text

__all__ = ["arrow_head", "draw_wire", "loop_badge", "loop_sample"]

_CORNER = 8.0
_HEAD = 6.0

Point = tuple[float, float]


def draw_wire(route: Route, hue: str, *, head: bool = True, label: Markup | None = None) -> Markup:
    """One wire with its arrow head; ``label`` is its tooltip."""
    *way, (x, y) = route.points
    points = [*way, (x - _HEAD if head else x, y)]
    if route.back:
        line = tag("path", class_="y-loop-wire", d=_square(points))
        tip = arrow_head(x, y, "y-loop")
    else:
        line = tag("path", class_=f"y-wire y-{hue}-line", d=_smooth(points))
        tip = arrow_head(x, y, f"y-{hue}")
    return tag("g", *([label] if label else []), line, *([tip] if head else []))


def arrow_head(x: float, y: float, class_: str) -> Markup:
    """A small triangle that points right, its tip at ``x``, ``y``."""
    return tag("path", class_=class_, d=f"M{number(x)} {number(y)}l-7.5 -4v8z")


def loop_badge(x: float, y: float, words: str) -> Markup:
    """The mark of a loop, centred on ``x``, ``y``: a turning arrow and ``words``."""
    width = width_of(words, 10, bold=True) + 28
    left = x - width / 2
    pill = tag("rect", class_="y-loop-badge y-rule", x=left, y=y - 8.5, width=width, height=17, rx=8.5)
    turn = f"M{number(left + 15.2)} {number(y - 2.6)}a4 4 0 1 0 0.6 3.6"
    arc = tag("path", class_="y-loop-wire", d=turn, stroke_dasharray="none", style="stroke-dasharray:none")
    tip = tag("path", class_="y-loop", d=f"M{number(left + 17.2)} {number(y - 5.6)}v5h-5z")
    return join([pill, arc, tip, text(left + 21, y + 3.6, words, "y-t y-small y-strong y-loop")])


def loop_sample() -> Picture:
    """The legend's entry for wires that close a loop."""
    line = tag("path", class_="y-loop-wire", d="M0 8.5h26")
    return Picture(32 + width_of("closes a loop", 11), 17, join([line, text(32, 12.5, "closes a loop", "y-t y-label y-soft")]))


def _smooth(points: Sequence[Point]) -> str:
    """Level through each point, curved between points of different height."""
    (x, y), *rest = points
    path = f"M{number(x)} {number(y)}"
    for to_x, to_y in rest:
        if abs(to_y - y) < 0.05:
            path += f"H{number(to_x)}"
        else:
            middle = number((x + to_x) / 2)
            path += f"C{middle} {number(y)} {middle} {number(to_y)} {number(to_x)} {number(to_y)}"
        x, y = to_x, to_y
    return path


def _square(points: Sequence[Point]) -> str:
    """Straight lines with rounded corners."""
    path = f"M{number(points[0][0])} {number(points[0][1])}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        enter, leave = _towards(corner, before), _towards(corner, after)
        path += f"L{number(enter[0])} {number(enter[1])}Q{number(corner[0])} {number(corner[1])} {number(leave[0])} {number(leave[1])}"
    return path + f"L{number(points[-1][0])} {number(points[-1][1])}"


def _towards(corner: Point, other: Point) -> Point:
    """The point at most a corner's radius away from ``corner``, on the way to ``other``."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = abs(dx) + abs(dy)
    share = min(_CORNER, length / 2) / length if length else 0.0
    return corner[0] + dx * share, corner[1] + dy * share
