"""When a node runs: always, or only if one of certain lazy inputs is asked for; and calls in which that comes out as it would here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.graph import Link, PromptGraph
from yggdrasill.remote.partition.layout import Draft, Layout

__all__ = ["ALWAYS", "Demand", "LazyInputs", "covers"]

#: The lazy inputs (node, input) of which one must be asked for.
Demand = frozenset[tuple[str, str]]
ALWAYS: Demand = frozenset({("", "")})
_WHY = "it asks for inputs only when it needs them, and what it may ask for is made outside of its part"


def covers(one: Demand, other: Demand) -> bool:
    """Whether what runs on demand ``one`` runs whenever what runs on demand ``other`` does."""
    return one == ALWAYS or (other != ALWAYS and other <= one)


class LazyInputs:
    """``of[node]`` is the demand on which a node runs, were all of them here."""

    def __init__(self, graph: PromptGraph) -> None:
        self._graph = graph
        self.lazy = any(link.schema.lazy for links in graph.links.values() for link in links)
        self.of: dict[str, Demand] = dict.fromkeys(graph.order, ALWAYS)
        if self.lazy:
            for node_id in reversed(graph.order):
                self.of[node_id] = ALWAYS if node_id in graph.targets else self._asked_by_users(node_id)

    def _asked_by_users(self, node_id: str) -> Demand:
        asked: set[tuple[str, str]] = set()
        for link in self._graph.users[node_id]:
            if link.schema.lazy:
                asked.add((link.node, link.input))
            elif self.of[link.node] == ALWAYS:
                return ALWAYS
            else:
                asked |= self.of[link.node]
        # who only runs on a demand that is here already adds nothing by asking
        return frozenset(each for each in asked if not self.of[each[0]] <= asked - {each})

    def groups(self, assignment: Assignment) -> Mapping[str, Demand]:
        """For every node of a part the demand on which a call with it runs.

        What only lazy inputs of the same part ask for goes with these: there it is as lazy as here.
        """
        found: dict[str, Demand] = {}
        for node_id in reversed(self._graph.order):
            part = assignment.of.get(node_id)
            if part is None:
                continue
            demand = self.of[node_id]
            askers = {asker for asker, _ in demand} if demand != ALWAYS else set()
            around = {found[asker] for asker in askers if assignment.of.get(asker) == part}
            inner = askers and all(assignment.of.get(asker) == part for asker in askers) and len(around) == 1
            found[node_id] = around.pop() if inner else demand
        return found

    def settle(self, assignment: Assignment, layout: Layout) -> bool:
        """Keep lazy nodes here whose calls would compute what nobody asks for; whether there were any."""
        if not self.lazy:
            return False
        blamed: set[str] = set()
        for draft in layout.drafts:
            for node_id in self._unasked(draft):
                blamed |= self._blamed(assignment, draft, node_id)
        return assignment.keep(blamed, _WHY)

    def eager(self, layout: Layout) -> set[str]:
        """The nodes whose values calls take although nobody might ask for them."""
        return {node for draft in layout.drafts for node in self._unasked(draft)} if self.lazy else set()

    def _unasked(self, draft: Draft) -> Iterable[str]:
        """Nodes behind ports of a call that might not be asked for when the call is."""
        outputs = {node for node, _ in draft.outputs}
        lazy_inputs = [self.of[node] for node in outputs]
        whole = ALWAYS if ALWAYS in lazy_inputs else frozenset().union(*lazy_inputs)
        for node in sorted(outputs | {node for node, _ in draft.ports}):
            if not covers(self.of[node], whole):
                yield node

    def _blamed(self, assignment: Assignment, draft: Draft, node_id: str) -> set[str]:
        """The lazy nodes of the part because of which a node behind one of its ports might not be asked for."""
        demand = set(self.of[node_id])
        for member in draft.members:
            if any(assignment.inside(link)[0] == node_id for link in self._graph.links[member]):
                demand |= self.of[member]
        return {
            asker
            for asker, _ in demand
            if assignment.of.get(asker) == draft.part and not any(_is_copied(assignment, link) for link in self._graph.users[asker])
        }


def _is_copied(assignment: Assignment, link: Link) -> bool:
    return link.node in assignment.of and not assignment.transferability.travels(link)
