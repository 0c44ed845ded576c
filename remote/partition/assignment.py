"""Assignment of nodes to parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from yggdrasill.errors import PartitionError, UnknownName, unknown_name
from yggdrasill.remote.comfy_ports import type_transferability
from yggdrasill.remote.partition.graph import Link, PromptGraph, Source, natural
from yggdrasill.remote.partition.parts import Part
from yggdrasill.remote.partition.schemas import MATCH_TYPE, NodeSchema

__all__ = ["Assignment", "Transfer", "Transferability", "check_parts", "local_only_reason", "skip_pass_through"]


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
        self.raw_link_nodes = frozenset(node for node in graph.order for link in graph.links[node] if link.schema.raw)
        chosen = {node: index for index, part in enumerate(parts) for node in part.nodes if node in graph}
        for node_id in graph.order:
            if node_id in chosen:
                schema = graph.schema(node_id)
                reason = local_only_reason(schema, parts[chosen[node_id]].credentials) if schema is not None else None
                if reason is None:
                    self.of[node_id] = chosen[node_id]
                else:
                    self.reasons[node_id] = reason
        self._propagate_local()

    def source_in_call(self, link: Link) -> Source:
        """Where a node that runs in a part takes the value on ``link`` from: from before output nodes that only pass it on."""
        return skip_pass_through(self.graph, link) if link.source in self.graph.targets else (link.source, link.slot)

    def make_local(self, nodes: Iterable[str], reason: str) -> bool:
        """Let nodes run here; whether any did not before."""
        moved = [node for node in nodes if node in self.of]
        for node in moved:
            del self.of[node]
            self.reasons[node] = reason
        self._propagate_local()
        return bool(moved)

    def _propagate_local(self) -> None:
        """Keep here what needs a value that cannot travel from a node that cannot be copied."""
        fixed_local: set[str] = set()
        for node_id in self.graph.order:
            producer = self._local_producer(node_id, fixed_local)
            if node_id in self.of:
                if producer is None:
                    continue
                del self.of[node_id]
                self.reasons[node_id] = (
                    f"it needs what node {self.graph.label(producer)} makes, which cannot travel, and that node stays here"
                )
            if producer is not None or node_id in self.reasons or node_id in self.raw_link_nodes or not self._is_copyable(node_id):
                fixed_local.add(node_id)

    def _local_producer(self, node_id: str, fixed_local: set[str]) -> str | None:
        for link in self.graph.links[node_id]:
            source = self.source_in_call(link)
            if source[0] in fixed_local and source in self.transferability.non_transferable:
                return source[0]
        return None

    def _is_copyable(self, node_id: str) -> bool:
        schema = self.graph.schema(node_id)
        return schema is not None and local_only_reason(schema, credentials=False) is None


#: Loaders whose files are in this server's input or output folder, though no socket of theirs uploads one.
_LOCAL_FILE_LOADERS = frozenset(
    "LoadLatent LoadImageDataSetFromFolder LoadImageTextDataSetFromFolder LoadVideoDataSetFromFolder LoadVideoTextDataSetFromFolder "
    "LoadTrainingDataset".split()
)
#: Output nodes whose first output is what came in by this input, the same object.
_PASS_THROUGH = {
    **dict.fromkeys("PreviewImage SaveAnimatedPNG SaveAnimatedWEBP SaveImage SaveImageAdvanced SaveWEBM".split(), "images"),
    **dict.fromkeys("PreviewAudio SaveAudio SaveAudioAdvanced SaveAudioMP3 SaveAudioOpus".split(), "audio"),
    "MaskPreview": "mask",
    "SaveLatent": "samples",
    "SaveSVGNode": "svg",
    "SaveText": "text",
    "SaveVideo": "video",
}
_OWN_PREFIX = "Yggdrasill"


def local_only_reason(schema: NodeSchema, credentials: bool) -> str | None:
    """Why a node of this class is not partitioned; None if it may be."""
    if schema.class_type.startswith(_OWN_PREFIX):
        return "it belongs to this server's own graphs and endpoints"
    if schema.is_output_node:
        return "it is an output node, and its files and previews belong here"
    if schema.uploads or schema.class_type in _LOCAL_FILE_LOADERS:
        return "it loads a file of this server"
    if schema.needs_credentials and not credentials:
        return "it needs the user's account, which does not travel"
    return None


def skip_pass_through(graph: PromptGraph, link: Link) -> Source:
    """Where the value on ``link`` comes from if the output nodes that only pass it on are skipped.

    A node is skipped only if it runs anyway and if nothing but that value is linked to it, so that lists keep their length.
    """
    node_id, slot = link.source, link.slot
    while slot == 0 and node_id in graph.targets:
        name = _PASS_THROUGH.get(graph.class_of(node_id))
        links = graph.links[node_id]
        if name is None or len(links) != 1 or links[0].input != name:
            break
        schema = graph.schema(node_id)
        declared = schema.input(name) if schema is not None else None
        if schema is None or declared is None or declared.type != schema.output_type(0):
            break
        node_id, slot = links[0].source, links[0].slot
    return node_id, slot


_OPEN = frozenset({"*", MATCH_TYPE})
#: Types that leave an object behind in each CONDITIONING (and CLIP) that is made with them.
_LEAVES_OBJECTS = frozenset({"CONTROL_NET", "GLIGEN", "HOOKS"})
_CARRIES_OBJECTS = frozenset({"CONDITIONING", "CLIP"})


@dataclass(frozen=True)
class Transfer:
    """Whether an output of type ``type`` travels; ``known`` is false where only its values will tell."""

    type: str
    transferable: bool
    known: bool


class Transferability:
    """Answers for every output of a graph, and remembers the answers."""

    def __init__(self, graph: PromptGraph) -> None:
        self._graph = graph
        self._types: dict[Source, str] = {}
        self._transfers: dict[Source, Transfer] = {}
        self._tainted: set[str] = set()
        for node_id in graph.order:
            # each link is asked, so that no later question goes deeper than one node
            if True in [self._taints(link) for link in graph.links[node_id]]:
                self._tainted.add(node_id)
        used = {(link.source, link.slot) for links in graph.links.values() for link in links}
        #: The outputs that cannot travel, of those that are used.
        self.non_transferable = frozenset(source for source in used if not self.transfer(*source).transferable)

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
        found = self._transfers.get((node_id, slot))
        if found is None:
            found = self._transfers[node_id, slot] = self._classify(node_id, slot)
        return found

    def is_transferable(self, link: Link) -> bool:
        """Whether the value on a link does."""
        return link[2:4] not in self.non_transferable

    def _classify(self, node_id: str, slot: int) -> Transfer:
        kind = self.type_of(node_id, slot)
        if _any_not_transferable(kind) or ("CONDITIONING" in kind and node_id in self._tainted):
            return Transfer(kind, transferable=False, known=True)
        if kind in _OPEN and any(link.slot == slot and _not_transferable(link.schema.type) for link in self._graph.users[node_id]):
            return Transfer(kind, transferable=False, known=True)
        return Transfer("*" if kind in _OPEN else kind, transferable=True, known=_is_known(kind))

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
def _any_not_transferable(kind: str) -> bool:
    """Whether values of this type may be such that cannot travel: one of several types that cannot is enough."""
    return any(not type_transferability(each.strip()).transferable for each in kind.split(","))


@lru_cache(maxsize=4096)
def _not_transferable(kind: str) -> bool:
    return not type_transferability(kind).transferable


@lru_cache(maxsize=4096)
def _is_known(kind: str) -> bool:
    return kind not in _OPEN and type_transferability(kind).known
