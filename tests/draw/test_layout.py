"""Coordinates: boxes do not overlap, wires begin and end at their boxes and avoid all others."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.draw.layout import Box, Layout, PlacedBox, Wire, arrange

Drawing = tuple[list[Box], list[Wire]]


@st.composite
def drawings(draw: st.DrawFn, *, acyclic: bool = False) -> Drawing:
    sizes = draw(st.lists(st.tuples(st.integers(20, 300), st.integers(20, 200)), min_size=1, max_size=10))
    boxes = [Box(str(index), width, height, draw(st.sampled_from([0.0, 0.5, 1.0]))) for index, (width, height) in enumerate(sizes)]
    place = st.integers(0, len(boxes) - 1)
    wires = []
    for source, target, share in draw(st.lists(st.tuples(place, place, st.floats(0, 1)), max_size=20)):
        ends = (min(source, target), max(source, target)) if acyclic else (source, target)
        if not acyclic or source != target:
            wires.append(Wire(str(ends[0]), str(ends[1]), boxes[ends[0]].height * share, boxes[ends[1]].height * share))
    return boxes, wires


def _inside(box: PlacedBox, x: float, y: float) -> bool:
    return box.x + 0.01 < x < box.x + box.width - 0.01 and box.y + 0.01 < y < box.y + box.height - 0.01


@settings(max_examples=60, deadline=None)
@given(drawings())
def test_boxes_do_not_overlap_and_lie_in_the_picture(drawing: Drawing) -> None:
    layout = arrange(*drawing)
    for one, other in combinations(layout.boxes.values(), 2):
        apart = one.x + one.width <= other.x + 0.01 or other.x + other.width <= one.x + 0.01
        assert apart or one.y + one.height <= other.y + 0.01 or other.y + other.height <= one.y + 0.01
    points = [point for route in layout.routes for point in route.points]
    points += [(box.x + box.width * side, box.y + box.height * side) for box in layout.boxes.values() for side in (0, 1)]
    assert all(-0.01 <= x <= layout.width + 0.01 and -0.01 <= y <= layout.height + 0.01 for x, y in points)


@settings(max_examples=60, deadline=None)
@given(drawings())
def test_every_wire_runs_from_the_right_side_of_its_source_to_the_left_side_of_its_target(drawing: Drawing) -> None:
    boxes, wires = drawing
    layout = arrange(boxes, wires)
    for wire, route in zip(wires, layout.routes, strict=True):
        source, target = layout.boxes[wire.source], layout.boxes[wire.target]
        assert route.points[0] == pytest.approx((source.x + source.width, source.y + wire.source_y))
        assert route.points[-1] == pytest.approx((target.x, target.y + wire.target_y))


@settings(max_examples=60, deadline=None)
@given(drawings())
def test_no_level_or_upright_piece_of_a_wire_runs_through_a_box(drawing: Drawing) -> None:
    layout = arrange(*drawing)
    for (x, y), (to_x, to_y) in (piece for route in layout.routes for piece in pairwise(route.points)):
        if x == to_x or y == to_y:
            points = [(x + (to_x - x) * step / 20, y + (to_y - y) * step / 20) for step in range(21)]
            assert not any(_inside(box, *point) for box in layout.boxes.values() for point in points)


@settings(max_examples=100, deadline=None)
@given(drawings())
def test_wires_bend_only_between_the_layers(drawing: Drawing) -> None:
    layout = arrange(*drawing)
    for route in layout.routes:
        for (x, y), (to_x, to_y) in pairwise(route.points):
            if not route.back and abs(y - to_y) > 0.01:
                assert not any(box.x + 0.01 < to_x and x < box.x + box.width - 0.01 for box in layout.boxes.values())


@settings(max_examples=60, deadline=None)
@given(drawings(acyclic=True))
def test_a_dag_runs_from_left_to_right(drawing: Drawing) -> None:
    boxes, wires = drawing
    layout = arrange(boxes, wires)
    for wire, route in zip(wires, layout.routes, strict=True):
        assert not route.back
        assert layout.boxes[wire.source].layer < layout.boxes[wire.target].layer
        assert [x for x, _ in route.points] == sorted(x for x, _ in route.points)


def test_a_wire_that_closes_a_cycle_runs_back_below_the_boxes() -> None:
    boxes = [Box("a", 100, 50), Box("b", 100, 80)]
    layout = arrange(boxes, [Wire("a", "b", 20, 20), Wire("b", "a", 40, 40)])
    assert [route.back for route in layout.routes] == [False, True]
    assert max(y for _, y in layout.routes[1].points) > max(box.y + box.height for box in layout.boxes.values())


def test_a_chain_is_drawn_level() -> None:
    boxes = [Box(name, 100, 40) for name in "abcd"]
    layout = arrange(boxes, [Wire(left, right, 20, 20) for left, right in pairwise("abcd")])
    assert {box.y for box in layout.boxes.values()} == {0.0}


def test_no_boxes_give_an_empty_layout() -> None:
    assert arrange([], []) == Layout({}, (), 0.0, 0.0)
