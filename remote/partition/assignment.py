"""Assignment of nodes to parts: the user's choice, except for nodes that must run locally, each with a reason.

Three questions are answered in this module: which node runs in which part, which classes are local only, and which outputs are
transferable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from yggdrasill.errors import PartitionError, UnknownName, unknown_name
from yggdrasill.remote.comfy_ports import type_transferability
from yggdrasill.remote.partition.graph import Link, PromptGraph, Source, natural
from yggdrasill.remote.partition.loops import find_loops
from yggdrasill.remote.partition.parts import Part
from yggdrasill.remote.partition.schemas import MATCH_TYPE, NodeSchema
from yggdrasill.remote.partition.traits import HostFacts, NodeTraits, saves_files, user_file_readers

__all__ = ["Assignment", "Transfer", "Transferability", "check_parts", "local_only_reason", "skip_pass_through"]

#: Loaders of files in this server's input or output folder that have no upload socket.
_LOCAL_FILE_LOADERS = frozenset(
    "LoadLatent LoadImageDataSetFromFolder LoadImageTextDataSetFromFolder LoadVideoDataSetFromFolder LoadVideoTextDataSetFromFolder "
    "LoadTrainingDataset".split()
)
#: Output nodes whose first output is the very object of this input.
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
_OPEN = frozenset({"*", MATCH_TYPE})
_NO_FACTS = HostFacts()
_NO_TRAITS = NodeTraits()
#: Types that leave an object in each CONDITIONING (and CLIP) that is made with them.
_LEAVES_OBJECTS = frozenset({"CONTROL_NET", "GLIGEN", "HOOKS"})
_CARRIES_OBJECTS = frozenset({"CONDITIONING", "CLIP"})


def check_parts(graph: PromptGraph, parts: Sequence[Part]) -> None:
    """Check that parts have different names and nodes, and that every node in them is known.

    Raises:
        UnknownName: a part names a node that is not in the prompt.
        PartitionError: two parts share a node or a name; a class has no schema.
    """
    owner: dict[str, str] = {}
    names: set[str] = set()
    for part in parts:
        if part.name in names:
            raise PartitionError(f"Two parts are named {part.name!r}. Rename one of them.", part=part.name, nodes=sorted(part.nodes))
        names.add(part.name)
        for node_id in sorted(part.nodes, key=natural):
            if node_id not in graph.prompt:
                raise unknown_name("node", node_id, graph.prompt, f"Part {part.name!r} names it.", UnknownName)
            if node_id in owner:
                raise PartitionError(
                    f"Parts {owner[node_id]!r} and {part.name!r} both contain node {graph.label(node_id)}. Remove it from one of them.",
                    part=part.name,
                    nodes=[node_id],
                )
            owner[node_id] = part.name
            if graph.schema(node_id) is None:
                raise PartitionError(
                    f"Part {part.name!r}: no schema for the class of node {graph.label(node_id)}, neither on this server nor on the part's endpoint. "
                    "Install the node pack there.",
                    part=part.name,
                    nodes=[node_id],
                )


class Assignment:
    """Assignment of nodes to parts. ``of[node]`` is the index of the part; nodes without an entry run locally, and ``reasons[node]`` is
    why.
    """

    def __init__(self, graph: PromptGraph, transferability: Transferability, parts: Sequence[Part], host: HostFacts = _NO_FACTS) -> None:
        self.graph = graph
        self.host = host
        self.transferability = transferability
        self.parts = parts
        self.reasons: dict[str, str] = {}
        self.of: dict[str, int] = {}
        #: Nodes with a raw link input: they read the nodes behind the link.
        self.raw_link_nodes = frozenset(node for node in graph.order for link in graph.links[node] if link.schema.raw)
        self._loop_ends = frozenset(node for node in graph.order if graph.loop_role(node) is not None)
        self._readers = user_file_readers(graph, host)
        chosen = {node: index for index, part in enumerate(parts) for node in part.nodes if node in graph}
        for node_id in graph.order:
            if node_id in chosen:
                reason = self._local_only_reason(node_id, parts[chosen[node_id]].credentials)
                if reason is None:
                    self.of[node_id] = chosen[node_id]
                else:
                    self.reasons[node_id] = reason
        self._propagate_local()

    def source_in_call(self, link: Link) -> Source:
        """Return the output that a node inside a part reads on ``link``, skipping output nodes that only pass a value on."""
        return skip_pass_through(self.graph, link) if link.source in self.graph.targets else (link.source, link.slot)

    def make_local(self, nodes: Iterable[str], reason: str) -> bool:
        """Assign ``nodes`` to this server for ``reason``. Return True if any of them was in a part."""
        moved = [node for node in nodes if node in self.of]
        for node in moved:
            del self.of[node]
            self.reasons[node] = reason
        self._propagate_local()
        return bool(moved)

    def _propagate_local(self) -> None:
        """Make nodes local that need a non-transferable value from a node that cannot be copied."""
        fixed_local: set[str] = set()
        for node_id in self.graph.order:
            producer = self._local_producer(node_id, fixed_local)
            if node_id in self.of:
                if producer is None:
                    continue
                del self.of[node_id]
                self.reasons[node_id] = (
                    f"it needs an output of node {self.graph.label(producer)} that cannot be transferred, and that node runs locally"
                )
            is_local_end = node_id in self._loop_ends and node_id not in self.of
            is_bound = is_local_end or node_id in self.raw_link_nodes or not self._is_copyable(node_id)
            if producer is not None or node_id in self.reasons or is_bound:
                fixed_local.add(node_id)

    def _local_producer(self, node_id: str, fixed_local: set[str]) -> str | None:
        for link in self.graph.links[node_id]:
            source = self.source_in_call(link)
            if source[0] in fixed_local and source in self.transferability.non_transferable:
                return source[0]
        return None

    def _is_copyable(self, node_id: str) -> bool:
        return self.graph.schema(node_id) is not None and self._local_only_reason(node_id, credentials=False) is None

    def _local_only_reason(self, node_id: str, credentials: bool) -> str | None:
        schema = self.graph.schema(node_id)
        reason = local_only_reason(schema, credentials, self.host.of(schema.class_type)) if schema is not None else None
        if reason is None and node_id in self._readers:
            return f"it reads {self._readers[node_id]!r}, a file or folder of this server"
        return reason


def local_only_reason(schema: NodeSchema, credentials: bool, traits: NodeTraits = _NO_TRAITS) -> str | None:
    """Return why nodes of this class must run locally, or None."""
    if schema.class_type.startswith(_OWN_PREFIX):
        return "it belongs to this server's own graphs and endpoints"
    if schema.is_output_node:
        return "it is an output node; its files and previews belong to this server"
    if schema.uploads or traits.reads_files or schema.class_type in _LOCAL_FILE_LOADERS:
        return "it loads a file of this server"
    if traits.saves or saves_files(schema):
        return "it saves files, which belong to this server"
    if traits.stays is not None:
        return traits.stays
    if schema.needs_credentials and not credentials:
        return "it needs the user's account, and credentials are not transferred"
    return _bound_to_workflow(schema)


def _bound_to_workflow(schema: NodeSchema) -> str | None:
    """Return why nodes of this class need the whole workflow, or None. For the ends of loops there are constraints of their own."""
    is_raw = any(declared.raw for declared in schema.inputs.values())
    if schema.loop is None and "EXECUTION_LIST" in schema.hidden:
        return "it decides which nodes of the workflow run"
    if schema.loop is None and "DYNPROMPT" in schema.hidden and not is_raw:
        return "it reads the other nodes of the running workflow, which an endpoint does not have"
    return None


def skip_pass_through(graph: PromptGraph, link: Link) -> Source:
    """Return the output behind ``link`` after skipping output nodes that only pass a value on.

    A node is skipped only if it runs anyway and that value is its only link, so that lists keep their length.
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


@dataclass(frozen=True)
class Transfer:
    """Whether an output of type ``type`` is ``transferable``; ``known`` is False if only its values can tell."""

    type: str
    transferable: bool
    known: bool


class Transferability:
    """Transferability of every output of a graph, cached."""

    def __init__(self, graph: PromptGraph, host: HostFacts = _NO_FACTS) -> None:
        self._graph = graph
        self._host = host
        self._ends = {loop.start: loop.end for loop in find_loops(graph)}
        self._types: dict[Source, str] = {}
        self._transfers: dict[Source, Transfer] = {}
        self._tainted: set[str] = set()
        for node_id in graph.order:
            # No short circuit: each link is resolved, so that later queries recurse by one node at most.
            if True in [self._taints(link) for link in graph.links[node_id]]:
                self._tainted.add(node_id)
        used = {(link.source, link.slot) for links in graph.links.values() for link in links}
        #: The outputs in use that are not transferable.
        self.non_transferable = frozenset(source for source in used if not self.transfer(*source).transferable)

    def type_of(self, node_id: str, slot: int) -> str:
        """Return the type of an output. Where the class leaves it open: the type of the linked value, or ``*`` if unknown."""
        found = self._types.get((node_id, slot))
        if found is None:
            schema = self._graph.schema(node_id)
            declared = "*" if schema is None else schema.output_type(slot)
            found = self._linked_type(node_id, slot, schema) if declared in _OPEN and schema is not None else declared
            self._types[node_id, slot] = found
        return found

    def transfer(self, node_id: str, slot: int) -> Transfer:
        """Return the transferability of an output."""
        found = self._transfers.get((node_id, slot))
        if found is None:
            found = self._transfers[node_id, slot] = self._classify(node_id, slot)
        return found

    def is_transferable(self, link: Link) -> bool:
        """Return whether the value on a link is transferable."""
        return link[2:4] not in self.non_transferable

    def _classify(self, node_id: str, slot: int) -> Transfer:
        kind = self.type_of(node_id, slot)
        if _any_not_transferable(kind) or ("CONDITIONING" in kind and node_id in self._tainted):
            return Transfer(kind, transferable=False, known=True)
        if self._is_of_pack(kind):
            return Transfer(kind, transferable=False, known=False)
        if kind in _OPEN and any(
            link.slot == slot and (_not_transferable(link.schema.type) or self._is_of_pack(link.schema.type))
            for link in self._graph.users[node_id]
        ):
            return Transfer(kind, transferable=False, known=True)
        return Transfer("*" if kind in _OPEN else kind, transferable=True, known=_is_known(kind))

    def is_of_pack(self, node_id: str, slot: int) -> bool:
        """Return whether an output has a type of a node pack whose values are not known to be transferable."""
        return self._is_of_pack(self.type_of(node_id, slot))

    def _is_of_pack(self, kind: str) -> bool:
        """Return whether a type is one that no table names. Its values may be objects of a pack, of which only a run would tell."""
        return not _is_listed(kind) and any(not self._host.types.get(each.strip(), _is_listed(each)) for each in kind.split(","))

    def _linked_type(self, node_id: str, slot: int, schema: NodeSchema) -> str:
        links = self._type_links(node_id, slot, schema)
        kinds = self._carried_types(links) if node_id in self._ends else {self.type_of(link.source, link.slot) for link in links}
        return ",".join(sorted(kinds - _OPEN)) or "*"

    def _type_links(self, node_id: str, slot: int, schema: NodeSchema) -> list[Link]:
        """Return the links whose types an output of an open type has. The start of a loop also returns what its end takes for the next round."""
        template = schema.output_match[slot] if slot < len(schema.output_match) else None
        links = self._graph.links[node_id]
        if template is None:
            return [link for link in links if link.schema.type in _OPEN]
        if node_id in self._ends:
            links += self._graph.links[self._ends[node_id]]
        return [link for link in links if link.schema.match == template]

    def _carried_types(self, links: Iterable[Link]) -> set[str]:
        """Return the types of ``links``, of which some may depend on the output that is asked for."""
        kinds: set[str] = set()
        seen: set[Source] = set()
        waiting = [(link.source, link.slot) for link in links]
        while waiting:
            source = waiting.pop()
            if source in seen:
                continue
            seen.add(source)
            schema = self._graph.schema(source[0])
            declared = "*" if schema is None else schema.output_type(source[1])
            if declared not in _OPEN:
                kinds.add(declared)
            elif schema is not None:
                waiting += [(link.source, link.slot) for link in self._type_links(*source, schema)]
        return kinds

    def _taints(self, link: Link) -> bool:
        kind = self.type_of(link.source, link.slot)
        return kind in _LEAVES_OBJECTS or (link.source in self._tainted and kind in _CARRIES_OBJECTS)


@lru_cache(maxsize=4096)
def _any_not_transferable(kind: str) -> bool:
    """Return whether values of this type may be non-transferable; one such type among several is enough."""
    return any(not type_transferability(each.strip()).transferable for each in kind.split(","))


@lru_cache(maxsize=4096)
def _not_transferable(kind: str) -> bool:
    return not type_transferability(kind).transferable


@lru_cache(maxsize=4096)
def _is_listed(kind: str) -> bool:
    """Return whether each of the comma-separated types is open or named by the table of ComfyUI's types."""
    return all(each.strip() in _OPEN or type_transferability(each.strip()).known for each in kind.split(","))


@lru_cache(maxsize=4096)
def _is_known(kind: str) -> bool:
    return kind not in _OPEN and type_transferability(kind).known
