"""Layers and their orders: cycles are cut, arcs lead to later layers, crossings are counted correctly and never increased."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.draw.layers import assign_layers, back_arcs, count_crossings, order_layers

Arcs = list[tuple[int, int]]


@st.composite
def graphs(draw: st.DrawFn, *, acyclic: bool = False) -> tuple[int, Arcs]:
    count = draw(st.integers(1, 12))
    node = st.integers(0, count - 1)
    arcs = draw(st.lists(st.tuples(node, node), max_size=30))
    return count, [(min(arc), max(arc)) for arc in arcs if arc[0] != arc[1]] if acyclic else arcs


def _reaches(count: int, arcs: Arcs, start: int) -> set[int]:
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        for source, target in arcs:
            if source == node and target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_every_back_arc_closes_a_cycle_and_without_them_there_is_none(graph: tuple[int, Arcs]) -> None:
    count, arcs = graph
    back = back_arcs(count, arcs)
    kept = [arc for index, arc in enumerate(arcs) if index not in back]
    assert all(arcs[index][0] in _reaches(count, arcs, arcs[index][1]) for index in back)
    assert not any(source in _reaches(count, kept, target) for source, target in kept)


@settings(max_examples=60, deadline=None)
@given(graphs(acyclic=True))
def test_a_dag_has_no_back_arc_and_every_arc_leads_to_a_later_layer(graph: tuple[int, Arcs]) -> None:
    count, arcs = graph
    assert not back_arcs(count, arcs)
    layers = assign_layers(count, arcs)
    assert all(layers[source] < layers[target] for source, target in arcs)
    assert set(layers) == set(range(max(layers) + 1))


def test_a_source_is_next_to_the_node_it_feeds() -> None:
    assert assign_layers(5, [(0, 1), (1, 2), (2, 3), (4, 3)]) == [0, 1, 2, 3, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_crossings_are_the_pairs_that_change_sides(pairs: Arcs) -> None:
    left, right = list(range(6)), [10 + index for index in range(6)]
    segments = [(a, 0.0, 10 + b, 0.0) for a, b in pairs]
    crossed = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(pairs, 2))
    assert count_crossings(left, right, segments) == crossed


def test_ordering_untangles_what_can_be_untangled() -> None:
    layers = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    segments = [(0, 0.5, 5, 0.5), (1, 0.5, 4, 0.5), (2, 0.5, 3, 0.5), (5, 0.5, 7, 0.5), (4, 0.5, 8, 0.5), (3, 0.5, 6, 0.5)]
    order = order_layers(layers, segments)
    gaps = ([segments[:3], segments[3:]], list(pairwise(order)))
    assert [count_crossings(left, right, gap) for gap, (left, right) in zip(*gaps, strict=True)] == [0, 0]
