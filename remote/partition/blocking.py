"""Blocked values: one on any port of a placed node blocks the whole node, so a call takes only what would be blocked all together."""

from __future__ import annotations

from collections.abc import Mapping

from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.graph import Link, PromptGraph, Source
from yggdrasill.remote.partition.layout import Draft, Layout

__all__ = ["Blocking"]

Origins = frozenset[Source]
_NONE: Origins = frozenset()
_IN_PART = "some values of a list that it takes or gives may be blocked, and a placed node is blocked by one of them"
_APART = "a value it does not need may be blocked, and would block its whole call"


class Blocking:
    """Which outputs may be blocked, and by which nodes; from the classes that are known to give blockers."""

    def __init__(self, graph: PromptGraph) -> None:
        self._graph = graph
        self.possible = any(self._may_block(node) for node in graph.order)
        #: Per node: the origins whose blockers may reach its inputs, and those that then block it for certain.
        self._may: dict[str, Origins] = dict.fromkeys(graph.order, _NONE)
        self._will: dict[str, Origins] = dict.fromkeys(graph.order, _NONE)
        self._mapped: set[str] = set()
        self._partly: set[str] = set()
        #: Per part: origins outside of a call that its outputs do not share.
        self._apart: dict[int, set[Source]] = {}
        if self.possible:
            for node in graph.order:
                self._read(node)

    def groups(self, assignment: Assignment) -> Mapping[str, Origins]:
        """For every node of a part what may block a call with it; nodes of one call have the same.

        A node that only such nodes use goes with them: if they are blocked, nobody uses what it makes.
        """
        found: dict[str, Origins] = {}
        for node in reversed(self._graph.order):
            part = assignment.of.get(node)
            if part is None:
                continue
            mine = self._may[node] & frozenset(self._apart.get(part, ()))
            users = {link.node for link in self._graph.users[node]}
            around = {found[user] for user in users if assignment.of.get(user) == part}
            if len(around) == 1 and all(assignment.of.get(user) == part for user in users) and mine <= min(around):
                mine = around.pop()
            found[node] = mine
        return found

    def settle(self, assignment: Assignment, layout: Layout) -> bool:
        """Set apart, or keep here, what a blocker would stop that it does not stop here; whether there was anything."""
        if not self.possible:
            return False
        changed = False
        for draft in layout.drafts:
            changed = self._settle_lists(assignment, draft) or changed
            changed = self._settle_outputs(assignment, draft) or changed
        return changed

    # -- what is known of a prompt ------------------------------------------------------------------------------

    def _may_block(self, node: str) -> bool:
        schema = self._graph.schema(node)
        return schema is not None and schema.may_block

    def _read(self, node: str) -> None:
        links = [link for link in self._graph.links[node] if not link.schema.raw]
        self._may[node] = _NONE.union(*(self._on(self._may, link.source, link.slot) for link in links))
        self._will[node] = _NONE.union(*(self._on(self._will, link.source, link.slot) for link in links if not link.schema.lazy))
        schema = self._graph.schema(node)
        if schema is not None and schema.input_is_list:
            return
        if any(self._gives_list(link) for link in links):
            self._mapped.add(node)
        if any(self._is_partial(link.source, link.slot) for link in links):
            self._partly.add(node)

    def _on(self, known: Mapping[str, Origins], node: str, slot: int) -> Origins:
        """The origins of what may stand on an output."""
        return known[node] | {(node, slot)} if self._may_block(node) else known[node]

    def _gives_list(self, link: Link) -> bool:
        schema = self._graph.schema(link.source)
        return link.source in self._mapped or (schema is not None and schema.gives_list(link.slot))

    def _is_partial(self, node: str, slot: int) -> bool:
        """Whether some values on an output may be blocked, and others not."""
        schema = self._graph.schema(node)
        several = node in self._mapped or (schema is not None and schema.gives_list(slot))
        return node in self._partly or (several and self._may_block(node))

    # -- what it means for calls --------------------------------------------------------------------------------

    def _settle_lists(self, assignment: Assignment, draft: Draft) -> bool:
        partial = {source for source in draft.ports if self._is_partial(*source)}
        mapped = {node for node, slot in draft.outputs if self._is_partial(node, slot)}
        for member in draft.members if partial else ():
            schema = self._graph.schema(member)
            if (
                schema is not None
                and not schema.input_is_list
                and any(assignment.inside(link) in partial for link in self._graph.links[member])
            ):
                mapped |= self._users_at_home(assignment, draft, member)
        return assignment.keep(mapped, _IN_PART)

    def _users_at_home(self, assignment: Assignment, draft: Draft, node: str) -> set[str]:
        """A node if it is the part's own; of a copy those it is made for."""
        found: set[str] = set()
        stack, seen = [node], {node}
        while stack:
            member = stack.pop()
            if assignment.of.get(member) == draft.part:
                found.add(member)
                continue
            fresh = {link.node for link in self._graph.users[member] if link.node in draft.members} - seen
            seen |= fresh
            stack += fresh
        return found

    def _settle_outputs(self, assignment: Assignment, draft: Draft) -> bool:
        blockers = _NONE.union(*(self._on(self._may, node, slot) for node, slot in draft.ports))
        apart = self._apart.setdefault(draft.part, set())
        changed = False
        for node in sorted({node for node, _ in draft.outputs}):
            missing = blockers - self._will[node]
            if missing <= apart:
                changed = (bool(missing) and assignment.keep(self._lazy_ways(assignment, draft, missing) or {node}, _APART)) or changed
            else:
                apart |= missing
                changed = True
        return changed

    def _lazy_ways(self, assignment: Assignment, draft: Draft, origins: Origins) -> set[str]:
        """The part's own lazy nodes in a call that may ask for what ``origins`` block."""
        return {
            link.node
            for member in draft.members
            if assignment.of.get(member) == draft.part
            for link in self._graph.links[member]
            if link.schema.lazy and not origins.isdisjoint(self._on(self._may, link.source, link.slot))
        }
