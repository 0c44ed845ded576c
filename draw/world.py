"""A world as a picture: its stages on a ring in the order they run, and in the middle the state blocks they read and write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yggdrasill.draw.card import draw_card, numbered_disc
from yggdrasill.draw.config import BLOCK_HUES, BLOCK_NAMES, Child, Contract, child_of, read_contract
from yggdrasill.draw.legend import Legend
from yggdrasill.draw.svg import Markup, Picture, join, number, shorten, tag, text, text_width, tooltip
from yggdrasill.errors import InvalidConfig, unknown_message

__all__ = ["CardBox", "Ring", "border_point", "draw_world", "fit_ring"]

_MAX_STAGES = 16
_MAX_BLOCKS = 9
_SEAT = 104.0
_INNER = 196.0
_DISC = 17.0
_RING_HEAD = 16.0
_CLEARANCE = 34.0
_ARC_CLEARANCE = 9.0
_SAMPLES = 480

Point = tuple[float, float]


def draw_world(config: Mapping[str, Any], legend: Legend) -> Picture:
    """Return the ring, clockwise from the top, with a thick line from a stage to each block it writes and a thin line from each block it reads."""
    stages = _stages(config, legend)
    contracts = [read_contract(stage.config) if stage.config is not None else Contract((), (), (), ()) for stage in stages]
    blocks = _blocks(config)
    cards = [draw_card(stage, contract, legend, _hue(contract)) for stage, contract in zip(stages, contracts, strict=True)]
    ring = fit_ring([(card.width, card.height) for card in cards], _INNER)
    at = _seat_blocks(blocks, contracts, ring)
    pieces = [_ring_arc(arc) for arc in ring.arcs]
    pieces += _lines(stages, contracts, ring, at)
    pieces += [_block(key, point) for key, point in at.items()]
    pieces += _draw_center(config)
    pieces += [card.placed(spot.x - card.width / 2, spot.y - card.height / 2) for card, spot in zip(cards, ring.spots, strict=True)]
    return _crop(pieces, ring.spots, [point for arc in ring.arcs for point in arc])


def _stages(config: Mapping[str, Any], legend: Legend) -> list[Child]:
    """Return the stages in the order of the cycle; at most sixteen, the rest is counted in a remark."""
    stages = config.get("stages")
    stages = {} if stages is None else stages
    if not isinstance(stages, Mapping):
        raise InvalidConfig(f"stages is a {type(stages).__name__}; expected a mapping of stage ids to stage configs")
    cycle = config.get("cycle")
    cycle = list(stages) if cycle is None else cycle
    if not isinstance(cycle, list | tuple):
        raise InvalidConfig(f"cycle is a {type(cycle).__name__}; expected a list of stage ids")
    found = []
    for name in cycle:
        if not isinstance(name, str) or name not in stages:
            raise InvalidConfig(f"cycle: {unknown_message('stage', name, map(str, stages), 'Add it to stages.')}")
        if not isinstance(stages[name], Mapping):
            raise InvalidConfig(f"stages.{name} is a {type(stages[name]).__name__}; expected a config, a ref or an endpoint_url")
        found.append(child_of(name, stages[name], stages[name]))
    idle = [str(name) for name in stages if name not in cycle]
    if idle:
        legend.remark(f"Not in the cycle, not drawn: {shorten(', '.join(idle), 80)}.")
    if len(found) > _MAX_STAGES:
        legend.remark(f"Not drawn: {len(found) - _MAX_STAGES:,} of {len(found):,} stages.")
    return found[:_MAX_STAGES]


def _blocks(config: Mapping[str, Any]) -> list[str]:
    schema = config.get("state_schema")
    count = schema.get("blocks") if isinstance(schema, Mapping) else None
    return [str(block + 1) for block in range(min(count, _MAX_BLOCKS) if isinstance(count, int) else 5)]


def _hue(contract: Contract) -> str:
    """Return the colour of the first block that a stage writes."""
    return next((BLOCK_HUES[key] for key in contract.writes if key in BLOCK_HUES), "grey")


def _seat_blocks(blocks: Sequence[str], contracts: Sequence[Contract], ring: Ring) -> dict[str, Point]:
    """Return a position in the middle for each block: the free one nearest to the stage that writes it, else any free one."""
    free = _circle_points(len(blocks), _SEAT)
    at: dict[str, Point] = {}
    for key in blocks:
        writer = next((place for place, contract in enumerate(contracts) if key in contract.writes), None)
        if writer is not None:
            spot = ring.spots[writer]
            at[key] = min(free, key=lambda point: (point[0] - spot.x) ** 2 + (point[1] - spot.y) ** 2)
            free.remove(at[key])
    for key in blocks:
        if key not in at:
            at[key] = free.pop(0)
    return dict(sorted(at.items()))


def _ring_arc(points: Sequence[Point]) -> Markup:
    """Return a thick arc whose head ends at the last point; empty if two cards leave no room for it."""
    if not points:
        return Markup("")
    tip = points[-1]
    shaft = [point for point in points if math.dist(point, tip) > _RING_HEAD]
    if not shaft:
        return Markup("")
    length = math.dist(shaft[-1], tip)
    way = ((tip[0] - shaft[-1][0]) / length, (tip[1] - shaft[-1][1]) / length)
    base = (tip[0] - _RING_HEAD * way[0], tip[1] - _RING_HEAD * way[1])
    line = tag("path", class_="y-ring", d="M" + "L".join(_point_text(point) for point in [*shaft, base]))
    return join([line, _head(base, way, "ring-head", _RING_HEAD)])


def _lines(stages: Sequence[Child], contracts: Sequence[Contract], ring: Ring, at: Mapping[str, Point]) -> list[Markup]:
    reads, writes = [], []
    for stage, contract, spot in zip(stages, contracts, ring.spots, strict=True):
        for key in filter(at.__contains__, dict.fromkeys([*contract.reads, *contract.writes])):
            hue = BLOCK_HUES.get(key, "grey")
            if key in contract.reads:
                reads.append(_line(spot, at[key], hue, f"{stage.id} reads block {key}", both=key in contract.writes))
            if key in contract.writes:
                writes.append(_line(spot, at[key], hue, f"{stage.id} writes block {key}", write=True))
    return reads + writes


def _line(spot: CardBox, block: Point, hue: str, words: str, *, write: bool = False, both: bool = False) -> Markup:
    """Return a line: a write runs straight to the block; a read is curved towards the middle and ends at the card."""
    if write:
        start = border_point(spot, block)
        dx, dy = start[0] - block[0], start[1] - block[1]
        length = max(1.0, (dx * dx + dy * dy) ** 0.5)
        end = (block[0] + dx / length * (_DISC + 9), block[1] + dy / length * (_DISC + 9))
        line = tag("path", class_=f"y-write y-{hue}-line", d=f"M{_point_text(start)}L{_point_text(end)}")
        return tag("g", tooltip(words), line, _head(end, (-dx / length, -dy / length), hue, 9.0))
    middle = ((spot.x * 0.42 + block[0]) / 2, (spot.y * 0.42 + block[1]) / 2)
    if both:
        middle = (middle[0] + spot.y * 0.16, middle[1] - spot.x * 0.16)
    end = border_point(spot, middle, 7.0)
    dx, dy = end[0] - middle[0], end[1] - middle[1]
    length = max(1.0, (dx * dx + dy * dy) ** 0.5)
    line = tag("path", class_=f"y-read y-{hue}-line", d=f"M{_point_text(block)}Q{_point_text(middle)} {_point_text(end)}")
    return tag("g", tooltip(words), line, _head(end, (dx / length, dy / length), hue, 6.5))


def _head(tail: Point, way: Point, hue: str, size: float) -> Markup:
    """Return a triangle that starts at ``tail`` and points in the direction ``way``."""
    (x, y), (ux, uy) = tail, way
    corners = [(x + size * ux, y + size * uy), (x - size * 0.5 * uy, y + size * 0.5 * ux), (x + size * 0.5 * uy, y - size * 0.5 * ux)]
    return tag("path", class_=f"y-{hue}", d="M" + "L".join(_point_text(corner) for corner in corners) + "z")


def _block(key: str, point: Point) -> Markup:
    name = BLOCK_NAMES.get(key, "")
    pieces = [
        tooltip(f"state block {key}: {name}" if name else f"state block {key}"),
        numbered_disc(key, _DISC, BLOCK_HUES.get(key, "grey")),
    ]
    if name:
        width = text_width(name, 11, bold=True) + 6
        # On the side of the middle, because the thick line of the writer comes from outside.
        y = _DISC + 14 if point[1] < 0 else -_DISC - 7
        pieces.append(tag("rect", class_="y-light", x=-width / 2, y=y - 11, width=width, height=15, rx=4, fill_opacity="0.85"))
        pieces.append(text(0, y, name, "y-t y-label y-strong y-soft", "middle"))
    return Picture(0, 0, tag("g", *pieces)).placed(*point)


def _draw_center(config: Mapping[str, Any]) -> list[Markup]:
    schema = config.get("state_schema")
    fields = schema.get("fields") if isinstance(schema, Mapping) else None
    names = shorten(", ".join(str(name) for name in fields), 30) if isinstance(fields, list | tuple | Mapping) else ""
    return [text(0, 0, "state", "y-t y-label y-soft", "middle"), text(0, 14, names, "y-t y-small y-soft", "middle")]


def _crop(pieces: Sequence[Markup], spots: Sequence[CardBox], points: Sequence[Point]) -> Picture:
    """Return the pieces in a picture just large enough for cards, arcs and the middle."""
    xs = [-_INNER, _INNER, *(x for x, _ in points)]
    ys = [-_INNER, _INNER, *(y for _, y in points)]
    for spot in spots:
        xs += [spot.x - spot.width / 2, spot.x + spot.width / 2]
        ys += [spot.y - spot.height / 2 - 9, spot.y + spot.height / 2]
    left, top = min(xs) - 6, min(ys) - 6
    return Picture(max(xs) + 6 - left, max(ys) + 6 - top, Picture(0, 0, join(pieces)).placed(-left, -top))


def _point_text(point: Point) -> str:
    return f"{number(point[0])} {number(point[1])}"


# -- geometry of the ring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CardBox:
    """The centre and size of a card; the middle of the ring is 0, 0."""

    x: float
    y: float
    width: float
    height: float

    def contains(self, point: Point, margin: float) -> bool:
        """Return whether a point is in the card or nearer to it than ``margin``."""
        return abs(point[0] - self.x) < self.width / 2 + margin and abs(point[1] - self.y) < self.height / 2 + margin


@dataclass(frozen=True)
class Ring:
    """The positions of the cards, clockwise from the top, and the arc from each to the next as points."""

    spots: tuple[CardBox, ...]
    arcs: tuple[tuple[Point, ...], ...]


def fit_ring(sizes: Sequence[tuple[float, float]], inner: float) -> Ring:
    """Return the smallest ring on which cards of these sizes touch neither each other nor the disc of radius ``inner`` in the middle."""
    radius = inner + 40.0
    spots = _place_cards(sizes, radius)
    while not _fits(spots, inner):
        radius *= 1.03
        spots = _place_cards(sizes, radius)
    return Ring(spots, tuple(_arc(spots, index, radius) for index in range(len(spots))))


def border_point(spot: CardBox, towards: Point, margin: float = 0.0) -> Point:
    """Return the point where the line from the middle of a card to ``towards`` leaves the card, ``margin`` further out."""
    dx, dy = towards[0] - spot.x, towards[1] - spot.y
    if not dx and not dy:
        return spot.x, spot.y
    across = (spot.width / 2 + margin) / abs(dx) if dx else math.inf
    down = (spot.height / 2 + margin) / abs(dy) if dy else math.inf
    share = min(across, down, 1.0)
    return spot.x + dx * share, spot.y + dy * share


def _circle_points(count: int, radius: float) -> list[Point]:
    """Return points spread evenly around a circle, clockwise from the top."""
    return [_on_ellipse(index / count, radius, radius) for index in range(count)]


def _on_ellipse(turn: float, rx: float, ry: float) -> Point:
    angle = 2 * math.pi * turn - math.pi / 2
    return rx * math.cos(angle), ry * math.sin(angle)


def _radii(radius: float) -> tuple[float, float]:
    return radius * 1.18, radius


def _place_cards(sizes: Sequence[tuple[float, float]], radius: float) -> tuple[CardBox, ...]:
    rx, ry = _radii(radius)
    return tuple(CardBox(*_on_ellipse(index / len(sizes), rx, ry), *size) for index, size in enumerate(sizes))


def _fits(spots: Sequence[CardBox], inner: float) -> bool:
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


def _arc(spots: Sequence[CardBox], index: int, radius: float) -> tuple[Point, ...]:
    """Return the part of the ellipse between a card and the next that is not covered by cards."""
    rx, ry = _radii(radius)
    count = len(spots)
    points = [_on_ellipse((index + step / _SAMPLES) / count, rx, ry) for step in range(_SAMPLES + 1)]
    ends = (spots[index], spots[(index + 1) % count])
    free = [point for point in points if not any(spot.contains(point, _ARC_CLEARANCE) for spot in ends)]
    return tuple(free[:: max(1, len(free) * count // 180)]) + tuple(free[-1:])
