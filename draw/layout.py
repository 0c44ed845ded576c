"""Coordinates of boxes and wires, from left to right; a wire is a list of points for a smooth curve.

Pure geometry; `yggdrasill.draw.layers` computes the columns and their order. A wire that spans several layers has a dummy slot in
each layer in between, so that it passes the boxes without touching them; a wire that closes a cycle runs back below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from yggdrasill.draw.layers import Segment, assign_layers, back_arcs, order_layers

__all__ = ["Box", "Layout", "PlacedBox", "Route", "Wire", "arrange"]

_BOX_GAP = 26.0
_WIRE_GAP = 12.0
_LANE = 12.0
_COLUMN = 8.0
_PASSES = 8
_DUMMY_BUDGET = 20_000

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box to place; ``align`` is its position in a wider layer: 0 left, 0.5 in the middle, 1 right."""

    id: str
    width: float
    height: float
    align: float = 0.5


@dataclass(frozen=True)
class Wire:
    """A wire from the right side of one box to the left side of another, at heights below their upper edges.

    ``pull`` is the weight with which it aligns the two boxes.
    """

    source: str
    target: str
    source_y: float
    target_y: float
    pull: float = 1.0


@dataclass(frozen=True)
class PlacedBox:
    """The position of a box: its upper left corner, its size and its layer."""

    x: float
    y: float
    width: float
    height: float
    layer: int


@dataclass(frozen=True)
class Route:
    """The path of one wire. A ``back`` wire closes a cycle and has right angles; others are horizontal at each point."""

    points: tuple[Point, ...]
    back: bool


@dataclass(frozen=True)
class Layout:
    """Every box by id, one route per wire in the order of the wires, and the total size, from 0, 0."""

    boxes: dict[str, PlacedBox]
    routes: tuple[Route, ...]
    width: float
    height: float


def arrange(boxes: Sequence[Box], wires: Sequence[Wire], *, layer_gap: float = 74.0) -> Layout:
    """Place boxes with distinct ids and wires between them; takes time nearly linear in boxes and wires."""
    if not boxes:
        return Layout({}, (), 0.0, 0.0)
    return _LayoutState(boxes, wires, layer_gap).layout()


@dataclass
class _Slot:
    """A box, or the point where a long wire passes, in its layer."""

    height: float
    box: Box | None = None
    y: float = 0.0


@dataclass
class _LayoutState:
    """The intermediate results of `arrange`."""

    boxes: Sequence[Box]
    wires: Sequence[Wire]
    layer_gap: float
    slots: list[_Slot] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    pulls: list[float] = field(default_factory=list)
    chains: dict[int, list[int]] = field(default_factory=dict)

    def layout(self) -> Layout:
        index = {box.id: place for place, box in enumerate(self.boxes)}
        arcs = [(index[wire.source], index[wire.target]) for wire in self.wires]
        back = back_arcs(len(self.boxes), arcs)
        self.layer = assign_layers(len(self.boxes), [arc for place, arc in enumerate(arcs) if place not in back])
        layers = self._make_slots(arcs, back)
        self.order = order_layers(layers, self.segments)
        self._set_heights()
        self._set_columns(arcs, back)
        routes = self._make_routes(arcs, back)
        return self._move_to_origin(routes)

    def _make_slots(self, arcs: Sequence[tuple[int, int]], back: frozenset[int]) -> list[list[int]]:
        """Fill slots and segments; return the slots of each layer."""
        layers: list[list[int]] = [[] for _ in range(max(self.layer) + 1)]
        for place, box in enumerate(self.boxes):
            self.slots.append(_Slot(box.height, box))
            layers[self.layer[place]].append(place)
        budget = _DUMMY_BUDGET
        for number, (source, target) in enumerate(arcs):
            if number in back:
                continue
            wire = self.wires[number]
            between = range(self.layer[source] + 1, self.layer[target])
            # Beyond the budget, a long wire is drawn straight across, so that the number of slots is bounded.
            chain = [] if len(between) > budget else [len(self.slots) + step for step in range(len(between))]
            budget -= len(chain)
            for slot, layer in zip(chain, between, strict=False):
                self.slots.append(_Slot(0.0))
                layers[layer].append(slot)
            self.chains[number] = chain
            if chain or not between:
                ends = [source, *chain, target]
                exits = [wire.source_y / max(1.0, self.boxes[source].height), *[0.5] * len(chain)]
                entries = [*[0.5] * len(chain), wire.target_y / max(1.0, self.boxes[target].height)]
                self.segments += zip(ends, exits, ends[1:], entries, strict=False)
                self.pulls += [wire.pull] * (len(chain) + 1)
        return layers

    def _set_heights(self) -> None:
        """Set the y of every slot: near the height of its neighbours, without overlaps, in the order of its layer."""
        left: dict[int, list[tuple[int, float, float]]] = {}
        right: dict[int, list[tuple[int, float, float]]] = {}
        for (a, exit_, b, entry), pull in zip(self.segments, self.pulls, strict=True):
            drop = exit_ * self.slots[a].height - entry * self.slots[b].height
            weight = pull * (1.0 + 3.0 * (self.slots[a].box is None) + 3.0 * (self.slots[b].box is None))
            right.setdefault(a, []).append((b, -drop, weight))
            left.setdefault(b, []).append((a, drop, weight))
        for layer in self.order:
            self._spread(layer, {})
        both = {slot: left.get(slot, []) + right.get(slot, []) for slot in (*left, *right)}
        for turn in range(_PASSES):
            pulls, layers = (left, self.order) if turn % 2 == 0 else (right, self.order[::-1])
            for layer in layers:
                self._spread(layer, pulls)
        for layer in self.order:
            self._spread(layer, both)

    def _spread(self, layer: Sequence[int], pulls: dict[int, list[tuple[int, float, float]]]) -> None:
        """Set the heights nearest to the wanted ones that keep order and gaps: least squares by pooling adjacent violators."""
        offsets, wanted = [0.0], []
        for slot, after in zip(layer, [*layer[1:], None], strict=True):
            found = pulls.get(slot)
            total = sum(weight for _, _, weight in found) if found else 1.0
            goal = sum((self.slots[other].y + drop) * weight for other, drop, weight in found) / total if found else self.slots[slot].y
            wanted.append((goal - offsets[-1], total if found else 0.05))
            boxes = self.slots[slot].box is not None or (after is not None and self.slots[after].box is not None)
            offsets.append(offsets[-1] + self.slots[slot].height + (_BOX_GAP if boxes else _WIRE_GAP))
        pools: list[tuple[float, float, int]] = []
        for goal, weight in wanted:
            pool = (goal, weight, 1)
            while pools and pools[-1][0] >= pool[0]:
                value, before, size = pools.pop()
                both = before + pool[1]
                pool = ((value * before + pool[0] * pool[1]) / both, both, size + pool[2])
            pools.append(pool)
        levels = [value for value, _, size in pools for _ in range(size)]
        for slot, level, offset in zip(layer, levels, offsets, strict=False):
            self.slots[slot].y = level + offset

    def _set_columns(self, arcs: Sequence[tuple[int, int]], back: frozenset[int]) -> None:
        """Set the left edge and width of every layer, with room in the gaps for the back wires."""
        self.widths = [
            max((box.width for box in (self.slots[slot].box for slot in layer) if box is not None), default=0.0) for layer in self.order
        ]
        extra = [0.0] * (len(self.widths) + 1)
        for number in back:
            extra[self.layer[arcs[number][1]]] += _COLUMN
            extra[self.layer[arcs[number][0]] + 1] += _COLUMN
        self.lefts, x = [], extra[0] + (_COLUMN if extra[0] else 0.0)
        for layer, width in enumerate(self.widths):
            self.lefts.append(x)
            x += width + (self.layer_gap if layer + 1 < len(self.widths) else 0.0) + extra[layer + 1]
        self.width = x + (_COLUMN if extra[-1] else 0.0)

    def _placed(self, slot: int) -> PlacedBox:
        box, layer = self.boxes[slot], self.layer[slot]
        x = self.lefts[layer] + (self.widths[layer] - box.width) * box.align
        return PlacedBox(x, self.slots[slot].y, box.width, box.height, layer)

    def _make_routes(self, arcs: Sequence[tuple[int, int]], back: frozenset[int]) -> list[Route]:
        routes = {
            number: self._forward(self.wires[number], self._placed(source), self._placed(target), self.chains[number])
            for number, (source, target) in enumerate(arcs)
            if number not in back
        }
        floors = [max(self.slots[slot].y + self.slots[slot].height for slot in layer) for layer in self.order]
        leaving, entering = [0] * len(floors), [0] * len(floors)
        # Short loops first, so that they are nested inside long ones.
        for number in sorted(back, key=lambda wire: (self.layer[arcs[wire][0]] - self.layer[arcs[wire][1]], wire)):
            wire, begin, end = self.wires[number], self._placed(arcs[number][0]), self._placed(arcs[number][1])
            spanned = range(end.layer, begin.layer + 1)
            lane = max(floors[layer] for layer in spanned) + _LANE
            for layer in spanned:
                floors[layer] = lane
            leaving[begin.layer] += 1
            entering[end.layer] += 1
            right = self.lefts[begin.layer] + self.widths[begin.layer] + _COLUMN * leaving[begin.layer] + 4
            left = self.lefts[end.layer] - _COLUMN * entering[end.layer] - 8
            out_y, in_y = begin.y + wire.source_y, end.y + wire.target_y
            corners = ((right, out_y), (right, lane), (left, lane), (left, in_y))
            routes[number] = Route(((begin.x + begin.width, out_y), *corners, (end.x, in_y)), back=True)
        return [routes[number] for number in range(len(arcs))]

    def _forward(self, wire: Wire, source: PlacedBox, target: PlacedBox, chain: Sequence[int]) -> Route:
        start, end = source.y + wire.source_y, target.y + wire.target_y
        points = [(source.x + source.width, start), (self.lefts[source.layer] + self.widths[source.layer], start)]
        for layer, slot in enumerate(chain, source.layer + 1):
            points += [(self.lefts[layer], self.slots[slot].y), (self.lefts[layer] + self.widths[layer], self.slots[slot].y)]
        points += [(self.lefts[target.layer], end), (target.x, end)]
        return Route(tuple(point for place, point in enumerate(points) if not place or point != points[place - 1]), back=False)

    def _move_to_origin(self, routes: Sequence[Route]) -> Layout:
        placed = {box.id: self._placed(slot) for slot, box in enumerate(self.boxes)}
        ys = [y for route in routes for _, y in route.points] + [box.y for box in placed.values()]
        top = min(ys)
        bottom = max([*ys, *(box.y + box.height for box in placed.values())])
        moved = {key: PlacedBox(box.x, box.y - top, box.width, box.height, box.layer) for key, box in placed.items()}
        shifted = tuple(Route(tuple((x, y - top) for x, y in route.points), route.back) for route in routes)
        return Layout(moved, shifted, self.width, bottom - top)
