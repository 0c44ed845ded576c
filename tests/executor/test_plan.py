"""Plans: the exact order for many shapes, cycles against a brute-force reference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.executor import make_plan
from yggdrasill.executor.plan import strong_components

#: Shape -> (nodes in the order given, edges, plan). A cycle prints as ``representative(ids in order)``.
GOLDEN = {
    "nothing": ("", "", ""),
    "one node": ("a", "", "a"),
    "no edges keeps the order given": ("c a b", "", "c a b"),
    "chain": ("a b c", "ab bc", "a b c"),
    "chain given backwards": ("c b a", "ab bc", "a b c"),
    "diamond": ("a b c d", "ab ac bd cd", "a b c d"),
    "diamond given in another order": ("d c b a", "ab ac bd cd", "a b c d"),
    "fan out": ("a b c d", "ab ac ad", "a b c d"),
    "fan in": ("d a b c", "ad bd cd", "a b c d"),
    "two chains": ("a x b y", "ab xy", "a x b y"),
    "long and short way": ("a b c d", "ab bc cd ad", "a b c d"),
    "double edge": ("a b", "ab ab", "a b"),
    "self loop": ("a", "aa", "a(a)"),
    "self loop in a chain": ("a b c", "ab bb bc", "a b(b) c"),
    "ring": ("c b a", "ab bc ca", "a(a b c)"),
    "ring with a way in and a way out": ("z r q i", "iq qr rq rz", "i q(q r) z"),
    "two rings in a row": ("a b c d", "ab ba bc cd dc", "a(a b) c(c d)"),
    "two rings apart": ("d c b a", "ab ba cd dc", "c(c d) a(a b)"),
    "rings that share a node are one": ("a b c", "ab ba bc cb", "a(a b c)"),
    "ring inside a ring": ("a b c d", "ab bc cb cd da", "a(a b c d)"),
    "figure of eight with a tail": ("t e f g", "ef fe eg ge gt", "e(e f g) t"),
    "ring beside a chain": ("a x y b", "ab xy yx", "a x(x y) b"),
    "everything to everything": ("c a b", "aa ab ac ba bb bc ca cb cc", "a(a b c)"),
    "diamond of rings": ("s m n o p e", "sm mn nm so op po ne pe", "s m(m n) o(o p) e"),
}


def written(nodes: list[str], edges: list[tuple[str, str]]) -> str:
    steps = make_plan(nodes, edges).steps
    return " ".join(step[1] if step[0] == "node" else f"{step[1][0]}({' '.join(step[1][1])})" for step in steps)


@pytest.mark.parametrize("shape", GOLDEN)
def test_the_order_of_this_shape_is_exactly_this(shape: str) -> None:
    nodes, edges, plan = GOLDEN[shape]
    assert written(nodes.split(), [(text[0], text[1]) for text in edges.split()]) == plan


def test_a_plan_gives_its_cycles_and_orders_them_as_told() -> None:
    plan = make_plan("abc", [("a", "b"), ("b", "a")], lambda ids: sorted(ids, reverse=True))
    assert plan.steps == (("cycle", ("a", ("b", "a"))), ("node", "c"))
    assert plan.cycles == [("b", "a")]
    assert make_plan("ab", [("a", "b")]).cycles == []


@st.composite
def relations(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    nodes = draw(st.permutations([f"n{number:02}" for number in range(draw(st.integers(1, 9)))]))
    pairs = st.tuples(st.sampled_from(nodes), st.sampled_from(nodes))
    return list(nodes), draw(st.lists(pairs, max_size=16))


def closure(nodes: list[str], edges: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Which node leads to which, by Warshall's triple loop."""
    leads = set(edges)
    for middle in nodes:
        leads |= {(a, b) for a in nodes for b in nodes if (a, middle) in leads and (middle, b) in leads}
    return leads


@settings(max_examples=150, deadline=None)
@given(relations())
def test_any_graph_is_ordered_and_its_cycles_are_found(relation: tuple[list[str], list[tuple[str, str]]]) -> None:
    nodes, edges = relation
    leads = closure(nodes, edges)
    place: dict[str, int] = {}
    for number, step in enumerate(make_plan(nodes, edges).steps):
        if step[0] == "node":
            assert (step[1], step[1]) not in leads
            place[step[1]] = number
        else:
            representative, ids = step[1]
            assert list(ids) == sorted(ids)
            assert representative == ids[0]
            assert {other for other in nodes if (ids[0], other) in leads and (other, ids[0]) in leads} == set(ids)
            place |= dict.fromkeys(ids, number)
    assert sorted(place) == sorted(nodes)
    assert all(place[source] <= place[target] for source, target in edges)
    assert all(place[source] < place[target] for source, target in edges if (target, source) not in leads)


def test_components_of_a_long_ring_and_a_long_chain_need_no_recursion() -> None:
    count = 20_000
    ring = [[(number + 1) % count] for number in range(count)]
    assert [len(component) for component in strong_components(ring)] == [count]
    chain = [[number + 1] for number in range(count - 1)] + [[]]
    assert len(strong_components(chain)) == count
