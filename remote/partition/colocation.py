"""Nodes that are given a link instead of its value look at all the nodes behind it, as loops do: they run where those run."""

from __future__ import annotations

from collections.abc import Mapping

from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.layout import Layout

__all__ = ["Colocation"]

_WHY = "it is in a loop of which not every node can run in one call"


class Colocation:
    """The sets of nodes that must not be taken apart."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._loops: list[tuple[str, frozenset[str]]] = []
        self._before: dict[str, frozenset[str]] = {}
        for node in assignment.graph.order if assignment.tied else ():
            for link in assignment.graph.links[node]:
                if link.schema.raw:
                    self._loops.append((node, frozenset(assignment.graph.between(link.source, node))))
                    self._before[node] = frozenset(assignment.graph.before(node))

    def groups(self) -> Mapping[str, frozenset[str]]:
        """For every node of a part the loops here that it comes before.

        A call of nodes that come before a loop's end and of others could be in the loop, though none of its nodes is.
        """
        here = {node: before for node, before in self._before.items() if node not in self._assignment.of}
        return {node: frozenset(end for end, before in here.items() if node in before) for node in self._assignment.of}

    def settle_assignment(self) -> bool:
        """Keep here what is in a loop with nodes of somewhere else; whether there was anything."""
        changed = False
        for _, loop in self._loops:
            if len({self._assignment.of.get(node) for node in loop}) > 1:
                changed = self._assignment.keep(loop, _WHY) or changed
        return changed

    def settle(self, layout: Layout) -> bool:
        """Keep here what is in a loop that would be in several calls, or copied; whether there was anything."""
        changed = False
        for node, loop in self._loops:
            owners = {layout.owner(each) for each in loop} - {None}
            places = [draft for draft in layout.drafts if node in draft.members]
            if len(owners) > 1 or len(places) > 1 or (places and node in layout.here):
                changed = self._assignment.keep(loop, _WHY) or changed
        return changed
