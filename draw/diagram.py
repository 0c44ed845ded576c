"""Boxes with ports, pills for external inputs and outputs, and the wires between them: the drawing of graphs, pipelines and stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from yggdrasill.draw.config import Connection
from yggdrasill.draw.layout import Box, PlacedBox, Route, Wire, arrange
from yggdrasill.draw.legend import Badge, draw_badge
from yggdrasill.draw.svg import Markup, Picture, join, number, shorten, tag, text, text_width, tooltip

__all__ = ["Item", "Pill", "draw_diagram", "loop_sample"]

_ROW = 17.0
_PORTS = 16
_PILL = 22.0
_FRAME = 10.0
_CORNER = 8.0
_HEAD = 6.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Item:
    """A box: its texts, its ports, and the picture of its inside, if it is shown."""

    id: str
    title: str
    subtitle: str
    hue: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    note: str = ""
    inside: Picture | None = None
    badge: Badge | None = None
    closed: bool = False

    def port_row(self, port: str, *, out: bool) -> int:
        """Return the row of a port; ports after the sixteenth share the last row."""
        ports = self.outputs if out else self.inputs
        return min(ports.index(port), _PORTS - 1) if port in ports else 0


@dataclass(frozen=True)
class Pill:
    """An external input or output, and the ports it feeds or reads."""

    name: str
    ends: tuple[tuple[str, str], ...]
    hue: str = "grey"


def draw_diagram(
    items: Sequence[Item],
    links: Sequence[Connection],
    inputs: Sequence[Pill] = (),
    outputs: Sequence[Pill] = (),
    *,
    loop: str = "loop",
    compact: bool = False,
) -> Picture:
    """Return the picture of boxes and links; ``loop`` is the label of cycles; ``compact`` omits ports and pills."""
    face = _BoxStyle(compact)
    by_id = {item.id: item for item in items}
    pills = [] if compact else [(f"in {place}", pill, 1.0) for place, pill in enumerate(inputs)]
    pills += [] if compact else [(f"out {place}", pill, 0.0) for place, pill in enumerate(outputs)]
    boxes = [Box(f"box {item.id}", *face.size(item)) for item in items]
    boxes += [Box(key, text_width(shorten(pill.name, 26), 11, bold=True) + 22, _PILL, align) for key, pill, align in pills]
    wires, looks = _wires(face, by_id, links, pills)
    layout = arrange(boxes, wires, layer_gap=34.0 if compact else 74.0)
    drawn = [
        _draw_wire(route, hue, head=not compact or route.back or layout.boxes[wire.target].layer > 0, label=tooltip(words))
        for route, wire, (hue, words) in zip(layout.routes, wires, looks, strict=True)
    ]
    drawn += [_draw_item(face, item, layout.boxes[f"box {item.id}"]) for item in items]
    drawn += [_draw_pill(pill, layout.boxes[key], entering=key.startswith("in ")) for key, pill, _ in pills]
    drawn += _loops(wires, layout.routes, "" if compact else loop)
    badges = any(item.badge for item in items)
    top = 9.0 if badges else 1.0
    bottom = 10.0 if not compact and any(route.back for route in layout.routes) else 1.0
    return Picture(layout.width + 2, layout.height + top + bottom, Picture(0, 0, join(drawn)).placed(1, top))


def _wires(
    face: _BoxStyle, items: dict[str, Item], links: Sequence[Connection], pills: Sequence[tuple[str, Pill, float]]
) -> tuple[list[Wire], list[tuple[str, str]]]:
    """Return the wires of links and pills, and the hue and tooltip of each; compact boxes have one wire per pair."""
    wires, looks, seen = [], [], set()
    for link in links:
        source, target = items[link.source], items[link.target]
        wire = Wire(
            f"box {source.id}",
            f"box {target.id}",
            face.port_y(source, link.source_port, out=True),
            face.port_y(target, link.target_port, out=False),
        )
        if wire not in seen:
            seen.add(wire)
            wires.append(wire)
            looks.append((source.hue, f"{link.source}.{link.source_port} → {link.target}.{link.target_port}"))
    for key, pill, align in pills:
        for part, port in pill.ends:
            if align:
                wires.append(Wire(key, f"box {part}", _PILL / 2, face.port_y(items[part], port, out=False), 0.2))
                looks.append((pill.hue, f"{pill.name} → {part}.{port}"))
            else:
                wires.append(Wire(f"box {part}", key, face.port_y(items[part], port, out=True), _PILL / 2, 0.2))
                looks.append((items[part].hue, f"{part}.{port} → {pill.name}"))
    return wires, looks


def _draw_item(face: _BoxStyle, item: Item, at: PlacedBox) -> Markup:
    width, height = at.width, at.height
    dashed = " y-dashed" if item.closed else ""
    outline = f"y-box y-{item.hue}-line{dashed}"
    fill = f"y-{item.hue}-tint" if face.compact else ""
    radius = 6.0 if face.compact else 9.0
    pieces = [tooltip(f"{item.title} ({item.subtitle})" if item.subtitle else item.title)]
    pieces.append(tag("rect", class_=f"{outline} {fill}".strip(), width=width, height=height, rx=radius))
    if face.compact:
        x, anchor = (width / 2, "middle") if item.inside is None else (_FRAME, None)
        pieces.append(text(x, face.header(item) - 7, _title(item), "y-t y-small y-strong y-ink", anchor))
    else:
        pieces += _header(face, item, width)
        pieces += _ports(face, item, width)
    if item.inside is not None:
        x = (width - item.inside.width) / 2
        pieces.append(item.inside.placed(x, height - _FRAME - item.inside.height))
    if item.badge is not None:
        badge = draw_badge(item.badge)
        pieces.append(badge.placed(width - badge.width - 10, -8.5))
    return Picture(width, height, tag("g", *pieces)).placed(at.x, at.y)


def _header(face: _BoxStyle, item: Item, width: float) -> list[Markup]:
    bottom = face.header(item)
    inner = number(width - 19.2)
    band = f"M.6 {number(bottom)}V9.6a9 9 0 0 1 9-9h{inner}a9 9 0 0 1 9 9V{number(bottom)}z"
    if not face.rows(item) and item.inside is None:
        band = f"M.6 {number(bottom - 9.6)}V9.6a9 9 0 0 1 9-9h{inner}a9 9 0 0 1 9 9V{number(bottom - 9.6)}a9 9 0 0 1-9 9h-{inner}a9 9 0 0 1-9-9z"
    pieces = [tag("path", class_=f"y-{item.hue}-tint", d=band), text(13, 20, _title(item), "y-t y-name y-ink")]
    y = 34.0
    if item.subtitle:
        pieces.append(text(13, y, _subtitle(item), f"y-code y-{item.hue}"))
        y += 14
    if item.note:
        pieces.append(text(13, y, shorten(item.note, 40), "y-t y-small y-soft"))
    return pieces


def _ports(face: _BoxStyle, item: Item, width: float) -> list[Markup]:
    pieces = []
    for ports, out in ((item.inputs, False), (item.outputs, True)):
        x, label_x, anchor = (width, width - 10, "end") if out else (0.0, 10.0, None)
        for place, port in enumerate(ports[:_PORTS]):
            y = face.header(item) + 6.0 + _ROW * (place + 0.5)
            last = place == _PORTS - 1 and len(ports) > _PORTS
            words = f"and {len(ports) - _PORTS + 1:,} more" if last else shorten(port, 22)
            pieces.append(tag("circle", class_=f"y-{item.hue}", cx=x, cy=y, r=3))
            pieces.append(text(label_x, y + 3.8, words, "y-t y-label y-soft", anchor))
    return pieces


def _draw_pill(pill: Pill, at: PlacedBox, *, entering: bool) -> Markup:
    shape = tag("rect", class_=f"y-box y-{pill.hue}-tint y-{pill.hue}-line", width=at.width, height=at.height, rx=at.height / 2)
    label = text(at.width / 2, 15, shorten(pill.name, 26), f"y-t y-label y-strong y-{pill.hue}", "middle")
    words = f"{'input' if entering else 'output'} {pill.name}"
    return Picture(at.width, at.height, tag("g", tooltip(words), shape, label)).placed(at.x, at.y)


def _loops(wires: Sequence[Wire], routes: Sequence[Route], words: str) -> list[Markup]:
    """Return one mark per pair of boxes with a back wire, on the lowest of its wires."""
    lowest: dict[tuple[str, str], tuple[float, float]] = {}
    for wire, route in zip(wires, routes, strict=True):
        if route.back:
            right, left = route.points[2], route.points[3]
            middle = ((right[0] + left[0]) / 2, right[1])
            lowest[wire.source, wire.target] = max(lowest.get((wire.source, wire.target), middle), middle, key=lambda point: point[1])
    return [_loop_badge(x, y, words) for x, y in lowest.values()] if words else []


def _title(item: Item) -> str:
    return shorten(item.title, 34)


def _subtitle(item: Item) -> str:
    return shorten(item.subtitle, 40, keep_end=item.closed)


@dataclass
class _BoxStyle:
    """The style of boxes: with ports, or compact for the inside of another box."""

    compact: bool
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)

    def header(self, item: Item) -> float:
        """Return the height of the part above ports and inside."""
        if self.compact:
            return 22.0 + 9.0 * (item.badge is not None)
        return 30.0 + 14.0 * bool(item.subtitle) + 14.0 * bool(item.note)

    def rows(self, item: Item) -> int:
        """Return the number of rows of ports."""
        return 0 if self.compact else min(_PORTS, max(len(item.inputs), len(item.outputs)))

    def size(self, item: Item) -> tuple[float, float]:
        """Return the width and height of the box."""
        badge = 30.0 + draw_badge(item.badge).width if item.badge else 0.0
        title = text_width(_title(item), 10, bold=True) + 20 if self.compact else text_width(_title(item), 13, bold=True) + 28
        width = max(title, badge, 40.0 if self.compact else 118.0)
        height = self.header(item)
        if not self.compact:
            width = max(width, text_width(_subtitle(item), 10, mono=True) + 26, text_width(shorten(item.note, 40), 10) + 26)
            sides = [
                max((text_width(shorten(port, 22), 11) for port in ports[:_PORTS]), default=0.0) for ports in (item.inputs, item.outputs)
            ]
            width = max(width, sum(sides) + 20 + 24 * all(sides))
            height += self.rows(item) * _ROW + (8.0 if self.rows(item) else 0.0)
        if item.inside is not None:
            width = max(width, item.inside.width + 2 * _FRAME)
            height += item.inside.height + _FRAME + (4.0 if self.compact else 0.0)
        return width, height

    def port_y(self, item: Item, port: str, *, out: bool) -> float:
        """Return the distance of a port from the upper edge of its box."""
        if self.compact or not self.rows(item):
            return self.size(item)[1] / 2
        return self.header(item) + 6.0 + _ROW * (item.port_row(port, out=out) + 0.5)


def _draw_wire(route: Route, hue: str, *, head: bool = True, label: Markup | None = None) -> Markup:
    """Return one wire with its arrow head; ``label`` is its tooltip."""
    *before, (x, y) = route.points
    points = [*before, (x - _HEAD if head else x, y)]
    if route.back:
        line = tag("path", class_="y-loop-wire", d=_square(points))
        tip = _arrow_head(x, y, "y-loop")
    else:
        line = tag("path", class_=f"y-wire y-{hue}-line", d=_smooth(points))
        tip = _arrow_head(x, y, f"y-{hue}")
    return tag("g", *([label] if label else []), line, *([tip] if head else []))


def _arrow_head(x: float, y: float, class_: str) -> Markup:
    """Return a small triangle that points right, with its tip at ``x``, ``y``."""
    return tag("path", class_=class_, d=f"M{number(x)} {number(y)}l-7.5 -4v8z")


def _loop_badge(x: float, y: float, words: str) -> Markup:
    """Return the mark of a loop, centred on ``x``, ``y``: a turning arrow and ``words``."""
    width = text_width(words, 10, bold=True) + 28
    left = x - width / 2
    pill = tag("rect", class_="y-loop-badge y-rule", x=left, y=y - 8.5, width=width, height=17, rx=8.5)
    turn = f"M{number(left + 15.2)} {number(y - 2.6)}a4 4 0 1 0 0.6 3.6"
    arc = tag("path", class_="y-loop-wire", d=turn, stroke_dasharray="none", style="stroke-dasharray:none")
    tip = tag("path", class_="y-loop", d=f"M{number(left + 17.2)} {number(y - 5.6)}v5h-5z")
    return join([pill, arc, tip, text(left + 21, y + 3.6, words, "y-t y-small y-strong y-loop")])


def loop_sample() -> Picture:
    """Return the legend's entry for wires that close a loop."""
    line = tag("path", class_="y-loop-wire", d="M0 8.5h26")
    return Picture(32 + text_width("closes a loop", 11), 17, join([line, text(32, 12.5, "closes a loop", "y-t y-label y-soft")]))


def _smooth(points: Sequence[Point]) -> str:
    """Return a path that is horizontal at each point and curved between points of different height."""
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
    """Return a path of straight lines with rounded corners."""
    path = f"M{number(points[0][0])} {number(points[0][1])}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        enter, leave = _point_towards(corner, before), _point_towards(corner, after)
        path += f"L{number(enter[0])} {number(enter[1])}Q{number(corner[0])} {number(corner[1])} {number(leave[0])} {number(leave[1])}"
    return path + f"L{number(points[-1][0])} {number(points[-1][1])}"


def _point_towards(corner: Point, other: Point) -> Point:
    """Return the point at most a corner radius away from ``corner``, in the direction of ``other``."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = abs(dx) + abs(dy)
    share = min(_CORNER, length / 2) / length if length else 0.0
    return corner[0] + dx * share, corner[1] + dy * share
