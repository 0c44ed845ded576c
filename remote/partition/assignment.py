"""Which nodes run in which part: the user's choice, less those that have to stay here, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from yggdrasill.errors import PartitionError, UnknownName, unknown_name
from yggdrasill.remote.partition.graph import Link, PromptGraph, Source, natural
from yggdrasill.remote.partition.local_only import before_savers, reason_to_stay
from yggdrasill.remote.partition.parts import Part
from yggdrasill.remote.partition.transferability import Transferability

__all__ = ["Assignment", "check_parts"]


def check_parts(graph: PromptGraph, parts: Sequence[Part]) -> None:
    """Return if the parts can be told apart and every node of theirs is known.

    Raises:
        UnknownName: a part names a node that the prompt has not. PartitionError: two parts share a node or a name; a class has no schema.
    """
    owner: dict[str, str] = {}
    names: set[str] = set()
    for part in parts:
        if part.name in names:
            raise PartitionError(f"two parts are named {part.name!r}; give one another name", part=part.name, nodes=sorted(part.nodes))
        names.add(part.name)
        for node_id in sorted(part.nodes, key=natural):
            if node_id not in graph.prompt:
                raise unknown_name("node", node_id, graph.prompt, f"Part {part.name!r} names it.", UnknownName)
            if node_id in owner:
                raise PartitionError(
                    f"parts {owner[node_id]!r} and {part.name!r} both have node {graph.label(node_id)}; take it out of one of them",
                    part=part.name,
                    nodes=[node_id],
                )
            owner[node_id] = part.name
            if graph.schema(node_id) is None:
                raise PartitionError(
                    f"part {part.name!r}: nothing is known of the class of node {graph.label(node_id)}, neither here nor where the part is to run; "
                    "install the node pack there",
                    part=part.name,
                    nodes=[node_id],
                )


class Assignment:
    """``of`` says the index of the part in which a node runs; a node that is not there runs here. ``reasons`` tells why it does."""

    def __init__(self, graph: PromptGraph, transferability: Transferability, parts: Sequence[Part]) -> None:
        self.graph = graph
        self.transferability = transferability
        self.parts = parts
        self.reasons: dict[str, str] = {}
        self.of: dict[str, int] = {}
        #: Nodes that are given a link itself: they look at the nodes behind it.
        self.tied = frozenset(node for node in graph.order for link in graph.links[node] if link.schema.raw)
        chosen = {node: index for index, part in enumerate(parts) for node in part.nodes if node in graph}
        for node_id in graph.order:
            if node_id in chosen:
                schema = graph.schema(node_id)
                reason = reason_to_stay(schema, parts[chosen[node_id]].credentials) if schema is not None else None
                if reason is None:
                    self.of[node_id] = chosen[node_id]
                else:
                    self.reasons[node_id] = reason
        self._settle()

    def inside(self, link: Link) -> Source:
        """Where a node that runs in a part takes the value on ``link`` from: from before output nodes that only pass it on."""
        return before_savers(self.graph, link) if link.source in self.graph.targets else (link.source, link.slot)

    def keep(self, nodes: Iterable[str], reason: str) -> bool:
        """Let nodes run here; whether any did not before."""
        moved = [node for node in nodes if node in self.of]
        for node in moved:
            del self.of[node]
            self.reasons[node] = reason
        self._settle()
        return bool(moved)

    def _settle(self) -> None:
        """Keep here what needs a value that cannot travel from a node that cannot be copied."""
        grounded: set[str] = set()
        for node_id in self.graph.order:
            holder = self._holder(node_id, grounded)
            if node_id in self.of:
                if holder is None:
                    continue
                del self.of[node_id]
                self.reasons[node_id] = (
                    f"it needs what node {self.graph.label(holder)} makes, which cannot travel, and that node stays here"
                )
            if holder is not None or node_id in self.reasons or node_id in self.tied or not self._copies(node_id):
                grounded.add(node_id)

    def _holder(self, node_id: str, grounded: set[str]) -> str | None:
        for link in self.graph.links[node_id]:
            source = self.inside(link)
            if source[0] in grounded and source in self.transferability.heavy:
                return source[0]
        return None

    def _copies(self, node_id: str) -> bool:
        schema = self.graph.schema(node_id)
        return schema is not None and reason_to_stay(schema, credentials=False) is None
