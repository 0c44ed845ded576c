"""The ring of a world: cards clear of each other and of the middle, arcs clear of the cards, clockwise."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.draw.world import CardBox, border_point, fit_ring

_sizes = st.lists(st.tuples(st.integers(100, 400), st.integers(60, 300)), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(_sizes)
def test_cards_neither_overlap_nor_reach_into_the_middle(sizes: list[tuple[float, float]]) -> None:
    ring = fit_ring(sizes, 190.0)
    for one, other in combinations(ring.spots, 2):
        assert abs(one.x - other.x) >= (one.width + other.width) / 2 or abs(one.y - other.y) >= (one.height + other.height) / 2
    for spot in ring.spots:
        nearest = (max(abs(spot.x) - spot.width / 2, 0), max(abs(spot.y) - spot.height / 2, 0))
        assert math.hypot(*nearest) >= 190.0


@settings(max_examples=40, deadline=None)
@given(_sizes)
def test_arcs_lie_between_the_cards_they_join(sizes: list[tuple[float, float]]) -> None:
    ring = fit_ring(sizes, 190.0)
    assert len(ring.arcs) == len(sizes)
    for index, arc in enumerate(ring.arcs):
        ends = (ring.spots[index], ring.spots[(index + 1) % len(sizes)])
        assert not any(end.contains(point, 0.0) for end in ends for point in arc)


def test_the_ring_starts_at_the_top_and_turns_clockwise() -> None:
    top, right, bottom, left = fit_ring([(100, 60)] * 4, 190.0).spots
    assert top.y < 0 < bottom.y
    assert left.x < 0 < right.x
    assert (top.x, right.y) == pytest.approx((0, 0))


@pytest.mark.parametrize("towards, found", [((100, 0), (20, 0)), ((0, -50), (0, -10)), ((40, 20), (20, 10)), ((0, 0), (0, 0))])
def test_a_line_leaves_a_card_on_its_border(towards: tuple[float, float], found: tuple[float, float]) -> None:
    assert border_point(CardBox(0, 0, 40, 20), towards) == pytest.approx(found)
