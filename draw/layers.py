"""Layers of a directed graph: the column of each box and the order within a column, without pixels (Sugiyama's method).

Arcs that close a cycle are removed first; the remaining DAG is layered by longest paths. Within the layers, sweeps of the barycenter
heuristic reduce crossings. The result is deterministic: ties keep the order of the input.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence

__all__ = ["assign_layers", "back_arcs", "count_crossings", "order_layers"]

Arc = tuple[int, int]
"""Source and target, as indices."""

Segment = tuple[int, float, int, float]
"""A wire between neighbouring layers: slot and port height (0 to 1) on the left, slot and port height on the right."""


def back_arcs(count: int, arcs: Sequence[Arc]) -> frozenset[int]:
    """Return the indices of the arcs that close a cycle in a depth-first walk from the sources; empty for a DAG."""
    outgoing = _outgoing(count, arcs)
    fed = {target for source, target in arcs if source != target}
    roots = [node for node in range(count) if node not in fed] + [node for node in range(count) if node in fed]
    unseen, open_, done = 0, 1, 2
    state = [unseen] * count
    back = set()
    for root in roots:
        if state[root] != unseen:
            continue
        state[root] = open_
        path = [(root, iter(outgoing[root]))]
        while path:
            node, rest = path[-1]
            index = next(rest, None)
            if index is None:
                state[node] = done
                path.pop()
                continue
            target = arcs[index][1]
            if state[target] == open_:
                back.add(index)
            elif state[target] == unseen:
                state[target] = open_
                path.append((target, iter(outgoing[target])))
    return frozenset(back)


def assign_layers(count: int, arcs: Sequence[Arc]) -> list[int]:
    """Return the layer of each node of a DAG: its longest path from a source; a source moves right, next to its nearest target."""
    outgoing = _outgoing(count, arcs)
    waiting = [0] * count
    for _, target in arcs:
        waiting[target] += 1
    sources = [node for node in range(count) if not waiting[node]]
    layer = [0] * count
    ready = list(sources)
    for node in ready:
        for index in outgoing[node]:
            target = arcs[index][1]
            layer[target] = max(layer[target], layer[node] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    for node in sources:
        if outgoing[node]:
            layer[node] = min(layer[arcs[index][1]] for index in outgoing[node]) - 1
    return layer


def order_layers(layers: Sequence[Sequence[int]], segments: Sequence[Segment], sweeps: int = 12) -> list[list[int]]:
    """Return the slots of each layer in the order with the fewest crossings found in ``sweeps`` passes from alternating sides."""
    layer_of = {slot: index for index, layer in enumerate(layers) for slot in layer}
    by_gap: list[list[Segment]] = [[] for _ in layers]
    for segment in segments:
        by_gap[layer_of[segment[0]]].append(segment)
    order = [list(layer) for layer in layers]
    best, fewest = [list(layer) for layer in order], _crossings(order, by_gap)
    for sweep in range(sweeps):
        if not fewest:
            break
        if sweep % 2 == 0:
            for index in range(1, len(order)):
                _sort_by_barycenter(order[index - 1], order[index], [(b, tb, a, ta) for a, ta, b, tb in by_gap[index - 1]])
        else:
            for index in range(len(order) - 2, -1, -1):
                _sort_by_barycenter(order[index + 1], order[index], by_gap[index])
        crossings = _crossings(order, by_gap)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in order], crossings
    return best


def count_crossings(left: Sequence[int], right: Sequence[int], segments: Sequence[Segment]) -> int:
    """Return the number of crossing pairs of segments between two ordered layers."""
    place_left = {slot: index for index, slot in enumerate(left)}
    place_right = {slot: index for index, slot in enumerate(right)}
    ends = sorted((place_left[a] + ta, place_right[b] + tb) for a, ta, b, tb in segments)
    seen: list[float] = []
    crossings = 0
    for _, end in ends:
        crossings += len(seen) - bisect_right(seen, end)
        insort(seen, end)
    return crossings


def _outgoing(count: int, arcs: Sequence[Arc]) -> list[list[int]]:
    outgoing: list[list[int]] = [[] for _ in range(count)]
    for index, (source, _) in enumerate(arcs):
        outgoing[source].append(index)
    return outgoing


def _crossings(order: Sequence[Sequence[int]], by_gap: Sequence[Sequence[Segment]]) -> int:
    return sum(count_crossings(order[index], order[index + 1], by_gap[index]) for index in range(len(order) - 1))


def _sort_by_barycenter(fixed: Sequence[int], moving: list[int], segments: Sequence[Segment]) -> None:
    """Sort ``moving`` by the mean position of its neighbours in ``fixed``; a slot without neighbours keeps its position."""
    place = {slot: index for index, slot in enumerate(fixed)}
    pulls: dict[int, list[float]] = {}
    for slot, height, other, other_height in segments:
        pulls.setdefault(slot, []).append(place[other] + other_height - height)
    stretch = len(fixed) / max(1, len(moving))
    keys = {slot: sum(pulls[slot]) / len(pulls[slot]) if slot in pulls else index * stretch for index, slot in enumerate(moving)}
    moving.sort(key=keys.__getitem__)
