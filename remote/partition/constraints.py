"""Constraints"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.graph import Link, PromptGraph, Source
from yggdrasill.remote.partition.layout import CallDraft, Layout

__all__ = ["ALWAYS", "Blocking", "Colocation", "LazyCondition", "LazyInputs", "covers"]

_LOOP_REASON = "it is in a loop of which not every node can run in one call"


class Colocation:
    """The sets of nodes that must not be taken apart."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._loops: list[tuple[str, frozenset[str]]] = []
        self._before: dict[str, frozenset[str]] = {}
        for node in assignment.graph.order if assignment.raw_link_nodes else ():
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

    def enforce_assignment(self) -> bool:
        """Keep here what is in a loop with nodes of somewhere else; whether there was anything."""
        changed = False
        for _, loop in self._loops:
            if len({self._assignment.of.get(node) for node in loop}) > 1:
                changed = self._assignment.make_local(loop, _LOOP_REASON) or changed
        return changed

    def enforce(self, layout: Layout) -> bool:
        """Keep here what is in a loop that would be in several calls, or copied; whether there was anything."""
        changed = False
        for node, loop in self._loops:
            owners = {layout.owner(each) for each in loop} - {None}
            places = [draft for draft in layout.drafts if node in draft.members]
            if len(owners) > 1 or len(places) > 1 or (places and node in layout.local):
                changed = self._assignment.make_local(loop, _LOOP_REASON) or changed
        return changed


#: The lazy inputs (node, input) of which one must be asked for.
LazyCondition = frozenset[tuple[str, str]]
ALWAYS: LazyCondition = frozenset({("", "")})
_LAZY_REASON = "it asks for inputs only when it needs them, and what it may ask for is made outside of its part"


def covers(one: LazyCondition, other: LazyCondition) -> bool:
    """Whether what runs on demand ``one`` runs whenever what runs on demand ``other`` does."""
    return one == ALWAYS or (other != ALWAYS and other <= one)


class LazyInputs:
    """``of[node]`` is the demand on which a node runs, were all of them here."""

    def __init__(self, graph: PromptGraph) -> None:
        self._graph = graph
        self.lazy = any(link.schema.lazy for links in graph.links.values() for link in links)
        self.of: dict[str, LazyCondition] = dict.fromkeys(graph.order, ALWAYS)
        if self.lazy:
            for node_id in reversed(graph.order):
                self.of[node_id] = ALWAYS if node_id in graph.targets else self._condition_from_users(node_id)

    def _condition_from_users(self, node_id: str) -> LazyCondition:
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

    def groups(self, assignment: Assignment) -> Mapping[str, LazyCondition]:
        """For every node of a part the demand on which a call with it runs.

        What only lazy inputs of the same part ask for goes with these: there it is as lazy as here.
        """
        found: dict[str, LazyCondition] = {}
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

    def enforce(self, assignment: Assignment, layout: Layout) -> bool:
        """Keep lazy nodes here whose calls would compute what nobody asks for; whether there were any."""
        if not self.lazy:
            return False
        responsible: set[str] = set()
        for draft in layout.drafts:
            for node_id in self._maybe_unneeded(draft):
                responsible |= self._responsible(assignment, draft, node_id)
        return assignment.make_local(responsible, _LAZY_REASON)

    def eager(self, layout: Layout) -> set[str]:
        """The nodes whose values calls take although nobody might ask for them."""
        return {node for draft in layout.drafts for node in self._maybe_unneeded(draft)} if self.lazy else set()

    def _maybe_unneeded(self, draft: CallDraft) -> Iterable[str]:
        """Nodes behind ports of a call that might not be asked for when the call is."""
        outputs = {node for node, _ in draft.outputs}
        lazy_inputs = [self.of[node] for node in outputs]
        whole = ALWAYS if ALWAYS in lazy_inputs else frozenset().union(*lazy_inputs)
        for node in sorted(outputs | {node for node, _ in draft.ports}):
            if not covers(self.of[node], whole):
                yield node

    def _responsible(self, assignment: Assignment, draft: CallDraft, node_id: str) -> set[str]:
        """The lazy nodes of the part because of which a node behind one of its ports might not be asked for."""
        demand = set(self.of[node_id])
        for member in draft.members:
            if any(assignment.source_in_call(link)[0] == node_id for link in self._graph.links[member]):
                demand |= self.of[member]
        return {
            asker
            for asker, _ in demand
            if assignment.of.get(asker) == draft.part and not any(_is_copied(assignment, link) for link in self._graph.users[asker])
        }


def _is_copied(assignment: Assignment, link: Link) -> bool:
    return link.node in assignment.of and not assignment.transferability.is_transferable(link)


Origins = frozenset[Source]
_NONE: Origins = frozenset()
_LIST_REASON = "some values of a list that it takes or gives may be blocked, and a placed node is blocked by one of them"
_UNNEEDED_REASON = "a value it does not need may be blocked, and would block its whole call"


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

    def enforce(self, assignment: Assignment, layout: Layout) -> bool:
        """Set apart, or keep here, what a blocker would stop that it does not stop here; whether there was anything."""
        if not self.possible:
            return False
        changed = False
        for draft in layout.drafts:
            changed = self._enforce_lists(assignment, draft) or changed
            changed = self._enforce_outputs(assignment, draft) or changed
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
        return link.source in self._mapped or (schema is not None and schema.is_list_output(link.slot))

    def _is_partial(self, node: str, slot: int) -> bool:
        """Whether some values on an output may be blocked, and others not."""
        schema = self._graph.schema(node)
        several = node in self._mapped or (schema is not None and schema.is_list_output(slot))
        return node in self._partly or (several and self._may_block(node))

    # -- what it means for calls --------------------------------------------------------------------------------

    def _enforce_lists(self, assignment: Assignment, draft: CallDraft) -> bool:
        partial = {source for source in draft.ports if self._is_partial(*source)}
        mapped = {node for node, slot in draft.outputs if self._is_partial(node, slot)}
        for member in draft.members if partial else ():
            schema = self._graph.schema(member)
            if (
                schema is not None
                and not schema.input_is_list
                and any(assignment.source_in_call(link) in partial for link in self._graph.links[member])
            ):
                mapped |= self._assigned_users(assignment, draft, member)
        return assignment.make_local(mapped, _LIST_REASON)

    def _assigned_users(self, assignment: Assignment, draft: CallDraft, node: str) -> set[str]:
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

    def _enforce_outputs(self, assignment: Assignment, draft: CallDraft) -> bool:
        blockers = _NONE.union(*(self._on(self._may, node, slot) for node, slot in draft.ports))
        apart = self._apart.setdefault(draft.part, set())
        changed = False
        for node in sorted({node for node, _ in draft.outputs}):
            missing = blockers - self._will[node]
            if missing <= apart:
                changed = (
                    bool(missing)
                    and assignment.make_local(self._lazy_nodes_reading(assignment, draft, missing) or {node}, _UNNEEDED_REASON)
                ) or changed
            else:
                apart |= missing
                changed = True
        return changed

    def _lazy_nodes_reading(self, assignment: Assignment, draft: CallDraft, origins: Origins) -> set[str]:
        """The part's own lazy nodes in a call that may ask for what ``origins`` block."""
        return {
            link.node
            for member in draft.members
            if assignment.of.get(member) == draft.part
            for link in self._graph.links[member]
            if link.schema.lazy and not origins.isdisjoint(self._on(self._may, link.source, link.slot))
        }
