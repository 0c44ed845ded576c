"""Cards around an ellipse, and the arcs between them: the geometry of a world's ring, without any drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ring", "Spot", "border_point", "ring_of", "seats"]

_CLEARANCE = 34.0
_ARC_CLEARANCE = 9.0
_SAMPLES = 480

Point = tuple[float, float]


@dataclass(frozen=True)
class Spot:
    """A card by its centre and size; the middle of the ring is 0, 0."""

    x: float
    y: float
    width: float
    height: float

    def holds(self, point: Point, margin: float) -> bool:
        """Whether a point is in the card or nearer to it than ``margin``."""
        return abs(point[0] - self.x) < self.width / 2 + margin and abs(point[1] - self.y) < self.height / 2 + margin


@dataclass(frozen=True)
class Ring:
    """Where the cards stand, clockwise from the top, and the arc from each to the next as points."""

    spots: tuple[Spot, ...]
    arcs: tuple[tuple[Point, ...], ...]


def ring_of(sizes: Sequence[tuple[float, float]], inner: float) -> Ring:
    """The smallest ring on which cards of these sizes neither touch each other nor the disc of radius ``inner`` in the middle."""
    radius = inner + 40.0
    spots = _seated(sizes, radius)
    while not _clear(spots, inner):
        radius *= 1.03
        spots = _seated(sizes, radius)
    return Ring(spots, tuple(_arc(spots, index, radius) for index in range(len(spots))))


def seats(count: int, radius: float) -> list[Point]:
    """Points evenly around a circle, clockwise from the top."""
    return [_on_ellipse(index / count, radius, radius) for index in range(count)]


def border_point(spot: Spot, towards: Point, margin: float = 0.0) -> Point:
    """Where the line from the middle of a card to a point leaves the card, ``margin`` further out."""
    dx, dy = towards[0] - spot.x, towards[1] - spot.y
    if not dx and not dy:
        return spot.x, spot.y
    across = (spot.width / 2 + margin) / abs(dx) if dx else math.inf
    down = (spot.height / 2 + margin) / abs(dy) if dy else math.inf
    share = min(across, down, 1.0)
    return spot.x + dx * share, spot.y + dy * share


def _on_ellipse(turn: float, rx: float, ry: float) -> Point:
    angle = 2 * math.pi * turn - math.pi / 2
    return rx * math.cos(angle), ry * math.sin(angle)


def _radii(radius: float) -> tuple[float, float]:
    return radius * 1.18, radius


def _seated(sizes: Sequence[tuple[float, float]], radius: float) -> tuple[Spot, ...]:
    rx, ry = _radii(radius)
    return tuple(Spot(*_on_ellipse(index / len(sizes), rx, ry), *size) for index, size in enumerate(sizes))


def _clear(spots: Sequence[Spot], inner: float) -> bool:
    for index, spot in enumerate(spots):
        nearest = (max(abs(spot.x) - spot.width / 2, 0.0), max(abs(spot.y) - spot.height / 2, 0.0))
        if math.hypot(*nearest) < inner:
            return False
        for other in spots[index + 1 :]:
            across = abs(spot.x - other.x) - (spot.width + other.width) / 2
            down = abs(spot.y - other.y) - (spot.height + other.height) / 2
            if across < _CLEARANCE and down < _CLEARANCE:
                return False
    return True


def _arc(spots: Sequence[Spot], index: int, radius: float) -> tuple[Point, ...]:
    """The part of the ellipse between a card and the next that no card covers."""
    rx, ry = _radii(radius)
    count = len(spots)
    points = [_on_ellipse((index + step / _SAMPLES) / count, rx, ry) for step in range(_SAMPLES + 1)]
    ends = (spots[index], spots[(index + 1) % count])
    free = [point for point in points if not any(spot.holds(point, _ARC_CLEARANCE) for spot in ends)]
    return tuple(free[:: max(1, len(free) * count // 180)]) + tuple(free[-1:])
