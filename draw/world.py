"""A world as a picture: its stages on a ring in the order they run, and in the middle the state they read and write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from yggdrasill.draw.card import draw_card, numbered
from yggdrasill.draw.config import Child, part
from yggdrasill.draw.legend import Legend
from yggdrasill.draw.lettering import shortened, width_of
from yggdrasill.draw.ring import Ring, Spot, border_point, ring_of, seats
from yggdrasill.draw.state import BLOCK_HUES, BLOCK_NAMES, Contract, read_contract
from yggdrasill.draw.svg import Markup, Picture, join, number, tag, text, tooltip
from yggdrasill.errors import InvalidConfig, unknown_message

__all__ = ["draw_world"]

_MAX_STAGES = 16
_MAX_BLOCKS = 9
_SEAT = 104.0
_INNER = 196.0
_DISC = 17.0
_RING_HEAD = 16.0

Point = tuple[float, float]


def draw_world(config: Mapping[str, Any], legend: Legend) -> Picture:
    """The ring, clockwise from the top, with a thick line from a stage to each block it writes and a thin one from each block it reads."""
    stages = _stages(config, legend)
    contracts = [read_contract(stage.config) if stage.config is not None else Contract((), (), (), ()) for stage in stages]
    blocks = _blocks(config)
    cards = [draw_card(stage, contract, legend, _hue(contract)) for stage, contract in zip(stages, contracts, strict=True)]
    ring = ring_of([(card.width, card.height) for card in cards], _INNER)
    at = _block_seats(blocks, contracts, ring)
    pieces = [_ring_arc(arc) for arc in ring.arcs]
    pieces += _lines(stages, contracts, ring, at)
    pieces += [_block(key, point) for key, point in at.items()]
    pieces += _centre(config)
    pieces += [card.placed(spot.x - card.width / 2, spot.y - card.height / 2) for card, spot in zip(cards, ring.spots, strict=True)]
    return _cropped(pieces, ring.spots, [point for arc in ring.arcs for point in arc])


def _stages(config: Mapping[str, Any], legend: Legend) -> list[Child]:
    """The stages in the order of the cycle; at most sixteen, the others are counted in a remark."""
    stages = config.get("stages")
    stages = {} if stages is None else stages
    if not isinstance(stages, Mapping):
        raise InvalidConfig(f"stages is a {type(stages).__name__}; a world has a mapping of stage ids to stage configs there")
    cycle = config.get("cycle")
    cycle = list(stages) if cycle is None else cycle
    if not isinstance(cycle, list | tuple):
        raise InvalidConfig(f"cycle is a {type(cycle).__name__}; a world has a list of stage ids there")
    found = []
    for name in cycle:
        if not isinstance(name, str) or name not in stages:
            raise InvalidConfig(f"cycle: {unknown_message('stage', name, map(str, stages), 'Add it to stages.')}")
        if not isinstance(stages[name], Mapping):
            raise InvalidConfig(f"stages.{name} is a {type(stages[name]).__name__}; a stage is a config, a ref or an endpoint_url")
        found.append(part(name, stages[name], stages[name]))
    idle = [str(name) for name in stages if name not in cycle]
    if idle:
        legend.remark(f"Not in the cycle, not drawn: {shortened(', '.join(idle), 80)}.")
    if len(found) > _MAX_STAGES:
        legend.remark(f"Not drawn: {len(found) - _MAX_STAGES:,} of {len(found):,} stages.")
    return found[:_MAX_STAGES]


def _blocks(config: Mapping[str, Any]) -> list[str]:
    schema = config.get("state_schema")
    count = schema.get("blocks") if isinstance(schema, Mapping) else None
    return [str(block + 1) for block in range(min(count, _MAX_BLOCKS) if isinstance(count, int) else 5)]


def _hue(contract: Contract) -> str:
    """A stage has the colour of what it writes."""
    return next((BLOCK_HUES[key] for key in contract.writes if key in BLOCK_HUES), "grey")


def _block_seats(blocks: Sequence[str], contracts: Sequence[Contract], ring: Ring) -> dict[str, Point]:
    """A seat in the middle for each block, in front of the stage that writes it where that seat is free."""
    free = seats(len(blocks), _SEAT)
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
    """A thick arc whose head ends at the last point; nothing where two cards leave no room for one."""
    if not points:
        return Markup("")
    tip = points[-1]
    shaft = [point for point in points if math.dist(point, tip) > _RING_HEAD]
    if not shaft:
        return Markup("")
    length = math.dist(shaft[-1], tip)
    way = ((tip[0] - shaft[-1][0]) / length, (tip[1] - shaft[-1][1]) / length)
    base = (tip[0] - _RING_HEAD * way[0], tip[1] - _RING_HEAD * way[1])
    line = tag("path", class_="y-ring", d="M" + "L".join(_at(point) for point in [*shaft, base]))
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


def _line(spot: Spot, block: Point, hue: str, words: str, *, write: bool = False, both: bool = False) -> Markup:
    """A write runs straight into the block; a read bends towards the middle and ends at the card."""
    if write:
        start = border_point(spot, block)
        dx, dy = start[0] - block[0], start[1] - block[1]
        length = max(1.0, (dx * dx + dy * dy) ** 0.5)
        end = (block[0] + dx / length * (_DISC + 9), block[1] + dy / length * (_DISC + 9))
        line = tag("path", class_=f"y-write y-{hue}-line", d=f"M{_at(start)}L{_at(end)}")
        return tag("g", tooltip(words), line, _head(end, (-dx / length, -dy / length), hue, 9.0))
    middle = ((spot.x * 0.42 + block[0]) / 2, (spot.y * 0.42 + block[1]) / 2)
    if both:
        middle = (middle[0] + spot.y * 0.16, middle[1] - spot.x * 0.16)
    end = border_point(spot, middle, 7.0)
    dx, dy = end[0] - middle[0], end[1] - middle[1]
    length = max(1.0, (dx * dx + dy * dy) ** 0.5)
    line = tag("path", class_=f"y-read y-{hue}-line", d=f"M{_at(block)}Q{_at(middle)} {_at(end)}")
    return tag("g", tooltip(words), line, _head(end, (dx / length, dy / length), hue, 6.5))


def _head(tail: Point, way: Point, hue: str, size: float) -> Markup:
    """A triangle that starts at ``tail`` and points along ``way``."""
    (x, y), (ux, uy) = tail, way
    corners = [(x + size * ux, y + size * uy), (x - size * 0.5 * uy, y + size * 0.5 * ux), (x + size * 0.5 * uy, y - size * 0.5 * ux)]
    return tag("path", class_=f"y-{hue}", d="M" + "L".join(_at(corner) for corner in corners) + "z")


def _block(key: str, point: Point) -> Markup:
    name = BLOCK_NAMES.get(key, "")
    pieces = [tooltip(f"state block {key}: {name}" if name else f"state block {key}"), numbered(key, _DISC, BLOCK_HUES.get(key, "grey"))]
    if name:
        width = width_of(name, 11, bold=True) + 6
        # On the side of the middle: the thick line of the writer comes from outside.
        y = _DISC + 14 if point[1] < 0 else -_DISC - 7
        pieces.append(tag("rect", class_="y-light", x=-width / 2, y=y - 11, width=width, height=15, rx=4, fill_opacity="0.85"))
        pieces.append(text(0, y, name, "y-t y-label y-strong y-soft", "middle"))
    return Picture(0, 0, tag("g", *pieces)).placed(*point)


def _centre(config: Mapping[str, Any]) -> list[Markup]:
    schema = config.get("state_schema")
    fields = schema.get("fields") if isinstance(schema, Mapping) else None
    names = shortened(", ".join(str(name) for name in fields), 30) if isinstance(fields, list | tuple | Mapping) else ""
    return [text(0, 0, "state", "y-t y-label y-soft", "middle"), text(0, 14, names, "y-t y-small y-soft", "middle")]


def _cropped(pieces: Sequence[Markup], spots: Sequence[Spot], points: Sequence[Point]) -> Picture:
    """The pieces in a picture just large enough for cards, arcs and the middle."""
    xs = [-_INNER, _INNER, *(x for x, _ in points)]
    ys = [-_INNER, _INNER, *(y for _, y in points)]
    for spot in spots:
        xs += [spot.x - spot.width / 2, spot.x + spot.width / 2]
        ys += [spot.y - spot.height / 2 - 9, spot.y + spot.height / 2]
    left, top = min(xs) - 6, min(ys) - 6
    return Picture(max(xs) + 6 - left, max(ys) + 6 - top, Picture(0, 0, join(pieces)).placed(-left, -top))


def _at(point: Point) -> str:
    return f"{number(point[0])} {number(point[1])}"
