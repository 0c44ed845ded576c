"""Loops of ComfyUI's own kind: a start node, an end node, and the body between them, which ComfyUI copies for every iteration.

ComfyUI checks before a run that each end closes one start, and that no value leaves a body except through the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from yggdrasill.remote.partition.graph import PromptGraph, reached

__all__ = ["Loop", "find_loops"]


class Loop(NamedTuple):
    """A paired loop. ``body`` are the nodes that an iteration executes; the bodies of loops inside it are part of it."""

    start: str
    end: str
    body: frozenset[str]

    @property
    def nodes(self) -> frozenset[str]:
        """Return body, start and end."""
        return self.body | {self.start, self.end}


def find_loops(graph: PromptGraph) -> tuple[Loop, ...]:
    """Return the loops of a prompt, inner ones before outer ones, or none if the pairs are not clear, which ComfyUI refuses.

    An end closes the nearest open start before it: the one that comes after all other starts whose values reach the end.
    """
    starts = {node for node in graph.order if graph.loop_role(node) == "start"}
    ends = [node for node in graph.order if graph.loop_role(node) == "end"]
    if not starts or not ends:
        return ()

    def sources(node: str) -> Iterable[str]:
        return (link.source for link in graph.links[node])

    def users(node: str) -> Iterable[str]:
        return (link.node for link in graph.users[node])

    after = {start: reached(users(start), users) for start in starts}
    found = []
    # `order` has an inner end before the outer one, because the inner one is among its sources
    for end in ends:
        reaching = reached(sources(end), sources, starts) & starts
        nearest = [start for start in reaching if all(other == start or start in after[other] for other in reaching)]
        if len(nearest) != 1:
            return ()
        (start,) = nearest
        starts.remove(start)
        found.append(Loop(start, end, frozenset(reached(users(start), users, {end}) - {end})))
    return tuple(found)
