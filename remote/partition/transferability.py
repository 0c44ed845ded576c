"""Which outputs of a prompt can travel: by the declared type, by what a reroute or a switch is linked to, by what made it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from yggdrasill.remote.comfy_types import can_travel
from yggdrasill.remote.partition.graph import Link, PromptGraph, Source
from yggdrasill.remote.partition.schemas import MATCH_TYPE, NodeSchema

__all__ = ["Transfer", "Transferability"]

_OPEN = frozenset({"*", MATCH_TYPE})
#: Types that leave an object behind in each CONDITIONING (and CLIP) that is made with them.
_LEAVES_OBJECTS = frozenset({"CONTROL_NET", "GLIGEN", "HOOKS"})
_CARRIES_OBJECTS = frozenset({"CONDITIONING", "CLIP"})


@dataclass(frozen=True)
class Transfer:
    """Whether an output of type ``type`` travels; ``known`` is false where only its values will tell."""

    type: str
    travels: bool
    known: bool


class Transferability:
    """Answers for every output of a graph, and remembers the answers."""

    def __init__(self, graph: PromptGraph) -> None:
        self._graph = graph
        self._types: dict[Source, str] = {}
        self._journeys: dict[Source, Transfer] = {}
        self._tainted: set[str] = set()
        for node_id in graph.order:
            # each link is asked, so that no later question goes deeper than one node
            if True in [self._taints(link) for link in graph.links[node_id]]:
                self._tainted.add(node_id)
        used = {(link.source, link.slot) for links in graph.links.values() for link in links}
        #: The outputs that cannot travel, of those that are used.
        self.heavy = frozenset(source for source in used if not self.transfer(*source).travels)

    def type_of(self, node_id: str, slot: int) -> str:
        """The type of an output: where the class leaves it open, that of what is linked to it; ``*`` if nothing tells."""
        found = self._types.get((node_id, slot))
        if found is None:
            schema = self._graph.schema(node_id)
            declared = "*" if schema is None else schema.output_type(slot)
            found = self._linked_type(node_id, slot, schema) if declared in _OPEN and schema is not None else declared
            self._types[node_id, slot] = found
        return found

    def transfer(self, node_id: str, slot: int) -> Transfer:
        """Whether the output travels."""
        found = self._journeys.get((node_id, slot))
        if found is None:
            found = self._journeys[node_id, slot] = self._judge(node_id, slot)
        return found

    def travels(self, link: Link) -> bool:
        """Whether the value on a link does."""
        return link[2:4] not in self.heavy

    def _judge(self, node_id: str, slot: int) -> Transfer:
        kind = self.type_of(node_id, slot)
        if _stays(kind) or ("CONDITIONING" in kind and node_id in self._tainted):
            return Transfer(kind, travels=False, known=True)
        if kind in _OPEN and any(link.slot == slot and _must_stay(link.schema.type) for link in self._graph.users[node_id]):
            return Transfer(kind, travels=False, known=True)
        return Transfer("*" if kind in _OPEN else kind, travels=True, known=_known(kind))

    def _linked_type(self, node_id: str, slot: int, schema: NodeSchema) -> str:
        template = schema.output_match[slot] if slot < len(schema.output_match) else None
        links = self._graph.links[node_id]
        if template is not None:
            sources = [link for link in links if link.schema.match == template]
        else:
            sources = [link for link in links if link.schema.type in _OPEN]
        kinds = {self.type_of(link.source, link.slot) for link in sources} - _OPEN
        return ",".join(sorted(kinds)) if kinds else "*"

    def _taints(self, link: Link) -> bool:
        kind = self.type_of(link.source, link.slot)
        return kind in _LEAVES_OBJECTS or (link.source in self._tainted and kind in _CARRIES_OBJECTS)


@lru_cache(maxsize=4096)
def _stays(kind: str) -> bool:
    """Whether values of this type may be such that cannot travel: one of several types that cannot is enough."""
    return any(not can_travel(each.strip()).travels for each in kind.split(","))


@lru_cache(maxsize=4096)
def _must_stay(kind: str) -> bool:
    return not can_travel(kind).travels


@lru_cache(maxsize=4096)
def _known(kind: str) -> bool:
    return kind not in _OPEN and can_travel(kind).known
