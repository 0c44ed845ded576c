"""Layout of a partition: the order of calls, and which nodes run in which call, as copies, or locally."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.graph import Link, Source, natural
from yggdrasill.remote.partition.parts import Relink

__all__ = ["CallDraft", "Dependencies", "Layout", "ScheduledCall", "schedule"]

#: Key of a call: its part, and the constraints that separate its nodes from others.
GroupKey = Hashable
ScheduledCall = tuple[GroupKey, list[str]]


@dataclass(eq=False)
class CallDraft:
    """A call under construction. ``scheduled`` nodes were assigned to it; ``members`` are all nodes that its outputs need."""

    part: int
    scheduled: frozenset[str]
    included: frozenset[str] = frozenset()
    members: set[str] = field(default_factory=set)
    ports: set[Source] = field(default_factory=set)
    used_locally: set[Source] = field(default_factory=set)
    used_by_calls: set[Source] = field(default_factory=set)

    @property
    def outputs(self) -> set[Source]:
        """Return the values that other calls or local nodes use."""
        return self.used_locally | self.used_by_calls


class Layout:
    """Final location of every node. ``local`` are the nodes of the remaining prompt, ``drafts`` the calls that have work."""

    def __init__(self, assignment: Assignment, scheduled: Sequence[ScheduledCall], parts: Sequence[int]) -> None:
        self._assignment = assignment
        self._graph = assignment.graph
        self._transferability = assignment.transferability
        drafts = [CallDraft(part, frozenset(nodes)) for (_, nodes), part in zip(scheduled, parts, strict=True)]
        self._owner = {node: each for each in drafts for node in each.scheduled}
        for each in drafts:
            each.included = self._with_non_transferable_sources(each.scheduled)
        self.local: set[str] = set()
        self.relinks: set[Relink] = set()
        self._todo: list[tuple[CallDraft | None, str]] = []
        for target in assignment.graph.targets:
            self._visit(None, target)
        while self._todo:
            draft, node = self._todo.pop()
            for link in self._graph.links[node]:
                if draft is None:
                    self._follow_local(link)
                else:
                    self._follow_in_call(draft, link)
        self.drafts = [draft for draft in drafts if draft.members]

    def owner(self, node_id: str) -> CallDraft | None:
        """Return the call that a node is scheduled in, or None."""
        return self._owner.get(node_id)

    @property
    def kept(self) -> list[str]:
        """Return the nodes of parts that also run locally."""
        return sorted((node for node in self.local if node in self._assignment.of), key=natural)

    def _with_non_transferable_sources(self, nodes: frozenset[str]) -> frozenset[str]:
        """Return ``nodes`` and all producers of the non-transferable values that they need."""
        found = set(nodes)
        stack = list(nodes)
        while stack:
            for link in self._graph.links[stack.pop()]:
                source = self._assignment.source_in_call(link)
                if source in self._transferability.non_transferable and source[0] not in found:
                    found.add(source[0])
                    stack.append(source[0])
        return frozenset(found)

    def _visit(self, draft: CallDraft | None, node_id: str) -> None:
        seen = self.local if draft is None else draft.members
        if node_id not in seen:
            seen.add(node_id)
            self._todo.append((draft, node_id))

    def _take(self, source: Source, user: CallDraft | None) -> None:
        """Record that ``user`` receives a value by transfer."""
        owner = self._owner.get(source[0])
        self._visit(owner, source[0])
        if owner is not None:
            (owner.used_locally if user is None else owner.used_by_calls).add(source)

    def _follow_local(self, link: Link) -> None:
        if link.source in self._assignment.of and self._transferability.is_transferable(link):
            self._take((link.source, link.slot), None)
        else:
            self._visit(None, link.source)

    def _follow_in_call(self, draft: CallDraft, link: Link) -> None:
        source = self._assignment.source_in_call(link)
        if source != (link.source, link.slot):
            self.relinks.add(Relink(link.node, link.input, (link.source, link.slot), source))
        if source[0] in draft.included:
            self._visit(draft, source[0])
        else:
            draft.ports.add(source)
            self._take(source, draft)


class Dependencies:
    """Dependencies between nodes, with non-transferable producers (loaders, models) treated as copied into each call that uses them.

    ``of[node]`` are the nodes whose transferable outputs it needs, directly or through such copies.
    ``replicated`` are nodes of parts without a transferable output: they are in every call that needs them.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._graph = assignment.graph
        self._transferability = assignment.transferability
        self._copied: dict[str, frozenset[str]] = {}
        self._kept: dict[str, frozenset[str]] = {}
        self.replicated = frozenset(
            node for node in assignment.of if not any(self._transferability.is_transferable(link) for link in self._graph.users[node])
        )
        self.of: dict[str, frozenset[str]] = {}
        for node_id in self._graph.order:
            local = self._local_dependencies(node_id)
            in_call = self._call_dependencies(node_id)
            self._kept[node_id], self._copied[node_id] = local, in_call
            self.of[node_id] = in_call if node_id in assignment.of else local

    def _call_dependencies(self, node_id: str) -> frozenset[str]:
        """Return the dependencies of a node that runs in a call."""
        found: set[str] = set()
        for link in self._graph.links[node_id]:
            source = self._assignment.source_in_call(link)
            if source in self._transferability.non_transferable:
                found |= self._copied[source[0]]
            else:
                found.add(source[0])
        return frozenset(found)

    def _local_dependencies(self, node_id: str) -> frozenset[str]:
        """Return the dependencies of a node that runs locally."""
        found: set[str] = set()
        for link in self._graph.links[node_id]:
            if self._transferability.is_transferable(link) or link.source not in self._assignment.of:
                found.add(link.source)
            else:
                found |= self._kept[link.source]
        return frozenset(found)


def schedule(assignment: Assignment, dependencies: Dependencies, group_keys: Mapping[str, GroupKey]) -> list[ScheduledCall]:
    """Return calls in an order in which each needs only earlier ones; nodes with one key share a call where possible, so calls are few.

    ``group_keys`` contains the nodes of parts that are not replicated.
    """
    users: dict[str, list[str]] = {}
    missing: dict[str, int] = {}
    for node in assignment.graph.order:
        if node not in dependencies.replicated:
            wanted = dependencies.of[node]
            missing[node] = len(wanted)
            for source in wanted:
                users.setdefault(source, []).append(node)
    scheduled = _Queue(missing, users, group_keys).run()
    _delay_to_users(scheduled, users)
    return [batch for batch in scheduled if batch[1]]


class _Queue:
    """Queue of ready nodes. Ready local nodes run at once; others wait with the nodes of their key until that call is emitted."""

    def __init__(self, missing: dict[str, int], users: Mapping[str, Sequence[str]], group_keys: Mapping[str, GroupKey]) -> None:
        self._missing = missing
        self._users = users
        self._group_keys = group_keys
        self._left: dict[GroupKey, int] = {}
        for node in missing:
            if node in group_keys:
                self._left[group_keys[node]] = self._left.get(group_keys[node], 0) + 1
        self._waiting: dict[GroupKey, list[str]] = {key: [] for key in self._left}

    def run(self) -> list[ScheduledCall]:
        """Return all calls."""
        scheduled: list[ScheduledCall] = []
        self._release([node for node, count in self._missing.items() if count == 0])
        while self._left:
            key = max(self._left, key=lambda each: (len(self._waiting[each]) == self._left[each], len(self._waiting[each])))
            batch, self._waiting[key] = self._waiting[key], []
            self._left[key] -= len(batch)
            if not self._left[key]:
                del self._left[key]
            scheduled.append((key, batch))
            self._release(self._arrived(batch, key))
        return scheduled

    def _arrived(self, nodes: Sequence[str], key: GroupKey) -> list[str]:
        """Count a call's values for users with other keys; users with the same key counted them while they waited."""
        ready = []
        for node in nodes:
            for user in self._users.get(node, ()):
                if self._group_keys.get(user) != key:
                    self._missing[user] -= 1
                    if not self._missing[user]:
                        ready.append(user)
        return ready

    def _release(self, ready: list[str]) -> None:
        while ready:
            node = ready.pop()
            key = self._group_keys.get(node)
            if key is not None:
                self._waiting[key].append(node)
            for user in self._users.get(node, ()):
                if key is None or self._group_keys.get(user) == key:
                    self._missing[user] -= 1
                    if not self._missing[user]:
                        ready.append(user)


def _delay_to_users(scheduled: Sequence[ScheduledCall], users: Mapping[str, Sequence[str]]) -> None:
    """Move each node that only a later call with its key needs into that call, so that its value is not transferred."""
    place = {node: index for index, (_, nodes) in enumerate(scheduled) for node in nodes}
    for index in reversed(range(len(scheduled))):
        key, nodes = scheduled[index]
        later = [place.get(user, -1) for node in nodes for user in users.get(node, ())]
        if not later or max(later) <= index:
            continue
        for node in _users_first(nodes, users):
            targets = [place.get(user, -1) for user in users.get(node, ())]
            if targets and min(targets) > index and all(scheduled[target][0] == key for target in targets):
                place[node] = min(targets)
                scheduled[min(targets)][1].append(node)
        nodes[:] = [node for node in nodes if place[node] == index]


def _users_first(nodes: Sequence[str], users: Mapping[str, Sequence[str]]) -> list[str]:
    among = set(nodes)
    done: dict[str, None] = {}
    for first in nodes:
        stack = [first]
        while stack:
            node = stack[-1]
            pending = next((user for user in users.get(node, ()) if user in among and user not in done), None) if node not in done else None
            if pending is not None:
                stack.append(pending)
            else:
                done[node] = None
                stack.pop()
    return list(done)
