"""What runs where in the end: from the wanted outputs backwards, each node in its call, as a copy in another one, or here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from yggdrasill.remote.partition.assignment import Assignment
from yggdrasill.remote.partition.graph import Link, Source, natural
from yggdrasill.remote.partition.parts import Relink
from yggdrasill.remote.partition.schedule import Batch

__all__ = ["Draft", "Layout"]


@dataclass(eq=False)
class Draft:
    """A call in the making: ``own`` nodes run in it by the schedule, ``members`` are all that it needs to give its outputs."""

    part: int
    own: frozenset[str]
    inside: frozenset[str] = frozenset()
    members: set[str] = field(default_factory=set)
    ports: set[Source] = field(default_factory=set)
    used_here: set[Source] = field(default_factory=set)
    used_there: set[Source] = field(default_factory=set)

    @property
    def outputs(self) -> set[Source]:
        """What other calls or nodes here use of it."""
        return self.used_here | self.used_there


class Layout:
    """Who runs what. ``here`` are the nodes of the prompt that is left, ``drafts`` the calls that have something to do."""

    def __init__(self, assignment: Assignment, batches: Sequence[Batch], parts: Sequence[int]) -> None:
        self._assignment = assignment
        self._graph = assignment.graph
        self._transferability = assignment.transferability
        drafts = [Draft(part, frozenset(nodes)) for (_, nodes), part in zip(batches, parts, strict=True)]
        self._owner = {node: each for each in drafts for node in each.own}
        for each in drafts:
            each.inside = self._carried(each.own)
        self.here: set[str] = set()
        self.relinks: set[Relink] = set()
        self._todo: list[tuple[Draft | None, str]] = []
        for target in assignment.graph.targets:
            self._visit(None, target)
        while self._todo:
            draft, node = self._todo.pop()
            for link in self._graph.links[node]:
                if draft is None:
                    self._follow_here(link)
                else:
                    self._follow_there(draft, link)
        self.drafts = [draft for draft in drafts if draft.members]

    def owner(self, node_id: str) -> Draft | None:
        """The call whose own a node is; None if it is nobody's."""
        return self._owner.get(node_id)

    @property
    def kept(self) -> list[str]:
        """Nodes of parts that also run here."""
        return sorted((node for node in self.here if node in self._assignment.of), key=natural)

    def _carried(self, own: frozenset[str]) -> frozenset[str]:
        """``own`` and all that makes for them what cannot travel."""
        found = set(own)
        stack = list(own)
        while stack:
            for link in self._graph.links[stack.pop()]:
                source = self._assignment.inside(link)
                if source in self._transferability.heavy and source[0] not in found:
                    found.add(source[0])
                    stack.append(source[0])
        return frozenset(found)

    def _visit(self, draft: Draft | None, node_id: str) -> None:
        seen = self.here if draft is None else draft.members
        if node_id not in seen:
            seen.add(node_id)
            self._todo.append((draft, node_id))

    def _take(self, source: Source, user: Draft | None) -> None:
        """``user`` needs a value that travels to it."""
        owner = self._owner.get(source[0])
        self._visit(owner, source[0])
        if owner is not None:
            (owner.used_here if user is None else owner.used_there).add(source)

    def _follow_here(self, link: Link) -> None:
        if link.source in self._assignment.of and self._transferability.travels(link):
            self._take((link.source, link.slot), None)
        else:
            self._visit(None, link.source)

    def _follow_there(self, draft: Draft, link: Link) -> None:
        source = self._assignment.inside(link)
        if source != (link.source, link.slot):
            self.relinks.add(Relink(link.node, link.input, (link.source, link.slot), source))
        if source[0] in draft.inside:
            self._visit(draft, source[0])
        else:
            draft.ports.add(source)
            self._take(source, draft)
