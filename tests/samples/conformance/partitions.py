"""Parts that are partitioned out of a template, and the check that the computation is unchanged, both in structure and when run.

Runs use `samples.comfy_interpreter`, where a node's outputs are hashes of its inputs: equal results mean equal computations.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from samples.comfy_interpreter import Interpreter, short_hash
from samples.conformance.node_sets import random_sets
from samples.conformance.templates import Template
from yggdrasill.errors import InvalidConfig, PartitionError
from yggdrasill.remote.comfy_ports import is_link, type_transferability
from yggdrasill.remote.partition import NodeSchema, NodeSchemas, Part, Partition, partition_prompt, restore_prompt
from yggdrasill.remote.partition.named_parts import GROUP, SUBGRAPH, named_parts
from yggdrasill.remote.partition.placement_keys import parts_of
from yggdrasill.remote.placement import Placement

__all__ = ["AMBIGUOUS", "NOTHING_LEAVES", "OVERLAP", "Attempt", "Made", "attempts", "check_refusal", "reason_of", "wanted_of"]

AMBIGUOUS, OVERLAP, NOTHING_LEAVES = "the title is ambiguous", "groups overlap", "no node can leave the server"
_OPEN = frozenset({"*", "COMFY_MATCHTYPE_V3"})
#: Output nodes that give what they were given.
_PASS = {
    **dict.fromkeys("PreviewImage SaveAnimatedPNG SaveAnimatedWEBP SaveImage SaveImageAdvanced SaveWEBM".split(), "images"),
    **dict.fromkeys("PreviewAudio SaveAudio SaveAudioAdvanced SaveAudioMP3 SaveAudioOpus".split(), "audio"),
    "MaskPreview": "mask",
    "SaveLatent": "samples",
    "SaveSVGNode": "svg",
    "SaveText": "text",
    "SaveVideo": "video",
}
_MANY = 4


@dataclass(frozen=True)
class Attempt:
    """Parts of a template to be partitioned, how they were chosen, and the error if the names were refused."""

    kind: str
    parts: tuple[Part, ...]
    refusal: InvalidConfig | None = None


def attempts(template: Template) -> Iterator[Attempt]:
    """Yield each subgraph, each group, all subgraphs on separate endpoints, all groups on one, and random node sets."""
    found = [part for part in named_parts(template.workflow, template.prompt) if part.nodes]
    for kind in (SUBGRAPH, GROUP):
        names = sorted({part.instance_name for part in found if part.kind == kind})
        for name in names:
            yield _named(template, f"a {kind}", {name: 0})
        if len(names) > 1:
            yield _named(template, f"all {kind}s", {name: number for number, name in enumerate(names)})
    chance = random.Random(zlib.crc32(template.name.encode()))
    for kind, sets in random_sets(template.prompt, chance, _MANY):
        trusted = chance.random() < 0.5
        yield Attempt(kind, tuple(Part(f"set {number}", nodes, credentials=trusted) for number, nodes in enumerate(sets)))


def _named(template: Template, kind: str, names: Mapping[str, int]) -> Attempt:
    extra = {"extra_pnginfo": {"workflow": template.workflow}}
    try:
        naming = parts_of(template.prompt, extra, {name: Placement((f"e{number}",)) for name, number in names.items()}, ())
    except InvalidConfig as error:
        return Attempt(kind, (), error)
    return Attempt(kind, tuple(placed.part for placed in naming.parts))


def reason_of(error: PartitionError | InvalidConfig) -> str:
    """Return the kind of a refusal, or raise AssertionError for an unexpected one."""
    words = {"is ambiguous": AMBIGUOUS, "neither lies inside the other": OVERLAP, "can run on an endpoint": NOTHING_LEAVES}
    found = [reason for text, reason in words.items() if text in error.message]
    assert len(found) == 1, error.message
    return found[0]


# -- the same computation ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heavy:
    """A value that is not transferable."""

    name: str


class Made:
    """A template's prompt, run with the interpreter's functions."""

    def __init__(self, schemas: NodeSchemas) -> None:
        self.schemas = schemas
        self._functions = {name: _function(schema) for name, schema in schemas.items()}
        lazy = {name: [socket for socket, facts in schema.inputs.items() if facts.lazy] for name, schema in schemas.items()}
        self._asked = {name: partial(_all_of, sockets) for name, sockets in lazy.items() if sockets}

    def run(self, prompt: Mapping[str, Any]) -> Interpreter:
        """Run all output nodes."""
        return Interpreter(prompt, self.schemas, self._functions, self._asked, _is_stuck).run()

    def check(self, template: Template, local: Interpreter, parts: Sequence[Part]) -> Partition:
        """Partition, and raise AssertionError if the computation differs. Raises `PartitionError`."""
        partition = partition_prompt(template.prompt, parts, self.schemas)
        plugged = restore_prompt(partition)
        assert set(wanted_of(template.prompt, self.schemas)) <= set(plugged)
        assert plugged == {node: template.prompt[node] for node in plugged}
        remote = self.run(partition.prompt)
        assert remote.results == local.results
        assert set(remote.calls) == set(local.calls)
        own = [node for call in partition.calls for node in call.nodes]
        assert len(own) == len(set(own))
        assert set(own) <= frozenset().union(*(part.nodes for part in parts))
        return partition


def wanted_of(prompt: Mapping[str, Any], schemas: NodeSchemas) -> list[str]:
    """Return the nodes that output nodes need, in the order of their ids."""
    ahead = [node for node, facts in prompt.items() if facts["class_type"] in schemas and schemas[facts["class_type"]].is_output_node]
    found = set(ahead)
    while ahead:
        for value in prompt[ahead.pop()]["inputs"].values():
            if is_link(value) and value[0] not in found:
                found.add(value[0])
                ahead.append(value[0])
    return sorted(found)


def _all_of(sockets: list[str], given: Mapping[str, Any]) -> list[str]:
    """Return the lazy inputs that a node requests: all."""
    return sockets


def _function(schema: NodeSchema) -> Callable[..., tuple[Any, ...]]:
    def made(**values: Any) -> tuple[Any, ...]:
        if schema.class_type in _PASS and len(schema.outputs) == 1:
            return (values[_PASS[schema.class_type]],)
        return tuple(_value(schema, slot, values) for slot in range(len(schema.outputs)))

    return made


def _value(schema: NodeSchema, slot: int, values: Mapping[str, Any]) -> Any:
    kind, name = schema.outputs[slot], short_hash(schema.class_type, slot, values)
    if kind in _OPEN and _is_stuck(list(values.values())):
        return Heavy(name)
    if schema.is_list_output(slot):
        return [_single(kind, short_hash(name, number)) for number in range(2)]
    return _single(kind, name)


def _single(kind: str, name: str) -> Any:
    return name if kind in _OPEN or type_transferability(kind).transferable else Heavy(name)


def _is_stuck(value: Any) -> bool:
    return isinstance(value, Heavy) or (isinstance(value, (list, tuple)) and any(map(_is_stuck, value)))


# -- refusals ---------------------------------------------------------------------------------------------------


def check_refusal(error: PartitionError, prompt: Mapping[str, Any], parts: Sequence[Part], schemas: NodeSchemas) -> None:
    """Raise AssertionError if a node of the refused part could have been partitioned out with a transferable output.

    A node must stay if it is bound to the server, linked to such a node by a value that is not transferable, or needed for such a value.
    """
    wanted = set(wanted_of(prompt, schemas))
    part = next(part for part in parts if part.name == error.details["part"])
    nodes = part.nodes & wanted
    links = list(_links(prompt, wanted, schemas))
    # the part's endpoint may use the account for nodes of the part, but no node that is paid for is repeated for it
    bound = {node for node in wanted if _is_bound(schemas[prompt[node]["class_type"]], part.credentials and node in part.nodes)}
    while more := {node for node, source, kind in links if source in bound and not _leaves(kind)} - bound:
        bound |= more
    free = nodes - bound
    while kept := {source for node, source, kind in links if source in free and node not in free and not _leaves(kind)}:
        free -= kept
    for node, source, kind in links:
        back = source in free and node not in free and _leaves(kind)
        assert not back or kind in _OPEN or kind == "CONDITIONING", f"{source} could run elsewhere: {node} takes its {kind}"


def _links(prompt: Mapping[str, Any], wanted: set[str], schemas: NodeSchemas) -> Iterator[tuple[str, str, str]]:
    for node in wanted:
        for value in prompt[node]["inputs"].values():
            if is_link(value):
                yield node, value[0], schemas[prompt[value[0]]["class_type"]].output_type(value[1])


def _leaves(kind: str) -> bool:
    """Return whether values of a type are transferred; those of types that no table names are not."""
    found = [type_transferability(each) for each in kind.split(",")]
    return all(each.transferable and (each.known or each.type in _OPEN) for each in found)


def _is_bound(schema: NodeSchema, trusted: bool) -> bool:
    return schema.is_output_node or schema.uploads or (schema.needs_credentials and not trusted)
