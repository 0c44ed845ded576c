"""Constraints that keep a partitioned prompt equivalent to the local one: loops, lazy inputs and blocked values.

Each class has ``groups()``, which separates nodes that must not share a call, and ``enforce()``, which makes nodes local
where separation is not enough and returns whether it changed anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.graph import Link, PromptGraph, Source
from yggdrasill.remote.partition.layout import CallDraft, Layout
from yggdrasill.remote.partition.loops import Loop, find_loops

__all__ = ["ALWAYS", "Blocking", "Colocation", "CoreLoops", "LazyCondition", "LazyInputs", "covers"]

_LOOP_REASON = "it is in a loop whose nodes cannot all run in one call"
_END_REASON = "it begins or ends a loop whose nodes do not all run in one call"
_SHARED_REASON = "it shares state with other nodes of the workflow, and they do not all run in one call"
_SINGLE_REASON = (
    "it may return other values each time or is paid for, its values cannot be transferred, and nodes outside its call use them"
)
#: A set of lazy inputs (node, input); the condition holds if at least one of them is requested.
LazyCondition = frozenset[tuple[str, str]]
ALWAYS: LazyCondition = frozenset({("", "")})
_LAZY_REASON = "it requests inputs only if it needs them, and an input that it may request is computed outside its part"
Origins = frozenset[Source]
_NONE: Origins = frozenset()
_LIST_REASON = "some values of a list that it takes or returns may be blocked, and one blocked value blocks a whole placed node"
_UNNEEDED_REASON = "a value that it does not need may be blocked, which would block its whole call"


class Colocation:
    """Sets of nodes that must run together.

    A node that receives a link instead of its value reads all nodes behind it, as loops do; it must run where they run. Nodes that share
    state of a process run in one call. A node that may return other values each time, or that is paid for, runs once if its values are of a
    pack's type.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        graph = assignment.graph
        self._loops: list[tuple[str, frozenset[str]]] = []
        self._before: dict[str, frozenset[str]] = {}
        for node in graph.order if assignment.raw_link_nodes else ():
            for link in graph.links[node]:
                if link.schema.raw:
                    loop = frozenset(graph.between(link.source, node))
                    if assignment.host.of(graph.class_of(node)).with_outputs:
                        body = loop - {node}
                        loop |= {target for target in graph.targets if not body.isdisjoint(user.source for user in graph.links[target])}
                    self._loops.append((node, loop))
                    self._before[node] = frozenset(graph.before(node))
        self._sharing: dict[str, list[str]] = {}
        for node in graph.order:
            word = assignment.host.of(graph.class_of(node)).keep_together
            if word is not None:
                self._sharing.setdefault(word, []).append(node)
        self._single = [node for node in graph.order if self._runs_once(node)]

    def _runs_once(self, node: str) -> bool:
        schema, users = self._assignment.graph.schema(node), self._assignment.graph.users[node]
        once = schema is not None and (schema.asks_again or schema.needs_credentials)
        return once and any(self._assignment.transferability.is_of_pack(node, link.slot) for link in users)

    def groups(self) -> Mapping[str, frozenset[str]]:
        """Map every node of a part to the local loops that it precedes.

        A call that mixes nodes before a loop's end with other nodes could lie inside the loop although none of its nodes does.
        """
        local_ends = {node: before for node, before in self._before.items() if node not in self._assignment.of}
        return {node: frozenset(end for end, before in local_ends.items() if node in before) for node in self._assignment.of}

    def enforce_assignment(self) -> bool:
        """Make loops local whose nodes are assigned to different places. Return whether anything changed."""
        changed = False
        for _, loop in self._loops:
            if len({self._assignment.of.get(node) for node in loop}) > 1:
                changed = self._assignment.make_local(loop, _LOOP_REASON) or changed
        return changed

    def enforce(self, layout: Layout) -> bool:
        """Make nodes local that would be split between calls, or copied. Return whether anything changed."""
        changed = False
        for nodes in self._sharing.values():
            if len(nodes) > 1 and len({place for node in nodes for place in _places(layout, node)}) > 1:
                changed = self._assignment.make_local(nodes, _SHARED_REASON) or changed
        for node in self._single:
            if len(_places(layout, node)) > 1:
                changed = self._assignment.make_local([node], _SINGLE_REASON) or changed
        for node, loop in self._loops:
            owners = {layout.owner(each) for each in loop} - {None}
            places = [draft for draft in layout.drafts if node in draft.members]
            if len(owners) > 1 or len(places) > 1 or (places and node in layout.local):
                changed = self._assignment.make_local(loop, _LOOP_REASON) or changed
        return changed


class CoreLoops:
    """Keeps start and end of each loop of ComfyUI's own kind local, unless one call has the whole loop.

    The nodes of a body may run in calls of their own. ComfyUI checks the loops of the remaining prompt and of each call as it checks those of
    the user's prompt.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._loops = find_loops(assignment.graph)

    def groups(self) -> Mapping[str, frozenset[str]]:
        """Map every node of a part to the local loops that execute it, by start.

        A call that joins nodes of different loops, or of a loop and of no loop, would let values leave a body past its end.
        """
        of = self._assignment.of
        around = [loop for loop in self._loops if loop.start not in of]
        return {node: frozenset(loop.start for loop in around if node in loop.body) for node in of}

    def enforce_assignment(self) -> bool:
        """Make the ends of loops local whose nodes are assigned to different places. Return whether anything changed."""
        changed = False
        for loop in self._loops:
            if len({self._assignment.of.get(node) for node in loop.nodes}) > 1:
                changed = self._make_local(loop) or changed
        return changed

    def enforce(self, layout: Layout) -> bool:
        """Make the ends of loops local of which no call has all nodes. Return whether anything changed."""
        changed = False
        for loop in self._loops:
            drafts = [draft for draft in layout.drafts if loop.start in draft.members or loop.end in draft.members]
            is_whole = len(drafts) == 1 and loop.nodes <= drafts[0].members and layout.local.isdisjoint(loop.nodes)
            if drafts and not is_whole:
                changed = self._make_local(loop) or changed
        return changed

    def _make_local(self, loop: Loop) -> bool:
        return self._assignment.make_local((loop.start, loop.end), _END_REASON)


def _places(layout: Layout, node: str) -> set[int]:
    """Return the numbers of the calls in which a node runs, and -1 if it runs locally."""
    return {number for number, draft in enumerate(layout.drafts) if node in draft.members} | ({-1} if node in layout.local else set())


def covers(one: LazyCondition, other: LazyCondition) -> bool:
    """Return True if a node with condition ``one`` runs in every case in which a node with condition ``other`` runs."""
    return one == ALWAYS or (other != ALWAYS and other <= one)


class LazyInputs:
    """Lazy conditions of a local run: ``of[node]`` is the condition under which the node runs."""

    def __init__(self, graph: PromptGraph) -> None:
        self._graph = graph
        self.lazy = any(link.schema.lazy for links in graph.links.values() for link in links)
        self.of: dict[str, LazyCondition] = dict.fromkeys(graph.order, ALWAYS)
        if self.lazy:
            for node_id in reversed(graph.order):
                self.of[node_id] = ALWAYS if node_id in graph.targets else self._condition_from_users(node_id)

    def _condition_from_users(self, node_id: str) -> LazyCondition:
        requested: set[tuple[str, str]] = set()
        for link in self._graph.users[node_id]:
            if link.schema.lazy:
                requested.add((link.node, link.input))
            elif self.of[link.node] == ALWAYS:
                return ALWAYS
            else:
                requested |= self.of[link.node]
        # A node that runs only under a condition already in the set adds nothing by requesting the input.
        return frozenset(each for each in requested if not self.of[each[0]] <= requested - {each})

    def groups(self, assignment: Assignment) -> Mapping[str, LazyCondition]:
        """Map every node of a part to the condition under which its call runs.

        A node that is only requested by lazy inputs of its own part joins them: laziness is preserved inside a call.
        """
        found: dict[str, LazyCondition] = {}
        for node_id in reversed(self._graph.order):
            part = assignment.of.get(node_id)
            if part is None:
                continue
            condition = self.of[node_id]
            requesters = {requester for requester, _ in condition} if condition != ALWAYS else set()
            joined = {found[requester] for requester in requesters if assignment.of.get(requester) == part}
            inner = requesters and all(assignment.of.get(requester) == part for requester in requesters) and len(joined) == 1
            found[node_id] = joined.pop() if inner else condition
        return found

    def enforce(self, assignment: Assignment, layout: Layout) -> bool:
        """Make lazy nodes local whose calls would compute values that may not be requested. Return whether anything changed."""
        if not self.lazy:
            return False
        responsible: set[str] = set()
        for draft in layout.drafts:
            for node_id in self._maybe_unneeded(draft):
                responsible |= self._responsible(assignment, draft, node_id)
        return assignment.make_local(responsible, _LAZY_REASON)

    def eager(self, layout: Layout) -> set[str]:
        """Return the nodes whose values calls take although a local run might not request them."""
        return {node for draft in layout.drafts for node in self._maybe_unneeded(draft)} if self.lazy else set()

    def _maybe_unneeded(self, draft: CallDraft) -> Iterable[str]:
        """Yield inputs and outputs of a call that local lazy evaluation might have skipped although the call itself runs."""
        outputs = {node for node, _ in draft.outputs}
        lazy_inputs = [self.of[node] for node in outputs]
        call_condition = ALWAYS if ALWAYS in lazy_inputs else frozenset().union(*lazy_inputs)
        for node in sorted(outputs | {node for node, _ in draft.ports}):
            if not covers(self.of[node], call_condition):
                yield node

    def _responsible(self, assignment: Assignment, draft: CallDraft, node_id: str) -> set[str]:
        """Return the lazy nodes of the part that may leave a node behind one of the call's ports unrequested."""
        condition = set(self.of[node_id])
        for member in draft.members:
            if any(assignment.source_in_call(link)[0] == node_id for link in self._graph.links[member]):
                condition |= self.of[member]
        return {
            requester
            for requester, _ in condition
            if assignment.of.get(requester) == draft.part and not any(_is_copied(assignment, link) for link in self._graph.users[requester])
        }


def _is_copied(assignment: Assignment, link: Link) -> bool:
    return link.node in assignment.of and not assignment.transferability.is_transferable(link)


class Blocking:
    """Outputs that may be blocked, with the nodes that block them, derived from the classes marked ``may_block``.

    A blocked value on any port of a placed node blocks the whole node, so all nodes of a call must be blocked together.
    """

    def __init__(self, graph: PromptGraph) -> None:
        self._graph = graph
        self.possible = any(self._may_block(node) for node in graph.order)
        #: Per node: the origins whose blockers may reach its inputs, and those that certainly block it.
        self._may: dict[str, Origins] = dict.fromkeys(graph.order, _NONE)
        self._will: dict[str, Origins] = dict.fromkeys(graph.order, _NONE)
        self._mapped: set[str] = set()
        self._partly: set[str] = set()
        #: Per part: origins outside a call that not all of its outputs share.
        self._separated: dict[int, set[Source]] = {}
        if self.possible:
            for node in graph.order:
                self._read(node)

    def groups(self, assignment: Assignment) -> Mapping[str, Origins]:
        """Map every node of a part to the origins that may block its call; the nodes of one call have equal sets.

        A node that is only used by such nodes joins them: if they are blocked, its outputs are unused.
        """
        found: dict[str, Origins] = {}
        for node in reversed(self._graph.order):
            part = assignment.of.get(node)
            if part is None:
                continue
            origins = self._may[node] & frozenset(self._separated.get(part, ()))
            users = {link.node for link in self._graph.users[node]}
            joined = {found[user] for user in users if assignment.of.get(user) == part}
            if len(joined) == 1 and all(assignment.of.get(user) == part for user in users) and origins <= min(joined):
                origins = joined.pop()
            found[node] = origins
        return found

    def enforce(self, assignment: Assignment, layout: Layout) -> bool:
        """Separate nodes, or make them local, where a blocker would stop more than in a local run. Return whether anything changed."""
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

    def _on(self, origins: Mapping[str, Origins], node: str, slot: int) -> Origins:
        """Return the origins of the blockers that may be on an output."""
        return origins[node] | {(node, slot)} if self._may_block(node) else origins[node]

    def _gives_list(self, link: Link) -> bool:
        schema = self._graph.schema(link.source)
        return link.source in self._mapped or (schema is not None and schema.is_list_output(link.slot))

    def _is_partial(self, node: str, slot: int) -> bool:
        """Return whether some values on an output may be blocked and others not."""
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
        """Return the node itself if the part has it; for a copy, the nodes that it is made for."""
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
        separated = self._separated.setdefault(draft.part, set())
        changed = False
        for node in sorted({node for node, _ in draft.outputs}):
            missing = blockers - self._will[node]
            if missing <= separated:
                changed = (
                    bool(missing)
                    and assignment.make_local(self._lazy_nodes_reading(assignment, draft, missing) or {node}, _UNNEEDED_REASON)
                ) or changed
            else:
                separated |= missing
                changed = True
        return changed

    def _lazy_nodes_reading(self, assignment: Assignment, draft: CallDraft, origins: Origins) -> set[str]:
        """Return the part's lazy nodes in a call that may request what ``origins`` block."""
        return {
            link.node
            for member in draft.members
            if assignment.of.get(member) == draft.part
            for link in self._graph.links[member]
            if link.schema.lazy and not origins.isdisjoint(self._on(self._may, link.source, link.slot))
        }
