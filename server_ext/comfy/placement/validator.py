"""Judging a posted prompt with placed parts, in the place of ComfyUI's own check: the same errors as without us, and ours in the same form."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from yggdrasill.errors import EndpointUnreachable, PartitionError, YggdrasillError
from yggdrasill.remote.comfy_ports import is_link
from yggdrasill.remote.partition.partitioning import partition_prompt
from yggdrasill.remote.partition.parts import PartCall, Partition
from yggdrasill.remote.partition.placement_keys import PlacedPart
from yggdrasill.remote.partition.schemas import NodeSchemas
from yggdrasill.remote.partition.sharing import can_be_shared
from yggdrasill.remote.placement import WHOLE, Placement
from yggdrasill.remote.preflight import gaps_of
from yggdrasill.server_ext.comfy.placement.endpoint_monitor import EndpointMonitor, EndpointState
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt, PostedPrompt
from yggdrasill.server_ext.comfy.placement.schema_cache import SchemaCache
from yggdrasill.server_ext.comfy.placement.validation_result import Validate, ValidationResult, drop_file_errors, error_result

__all__ = ["PromptValidator"]

_FRESH = 10.0
"""An endpoint that was up so many seconds ago is taken to be up; one that was not is asked again."""
_TIMEOUT = 2.0


class PromptValidator:
    """Checks and partitions posted prompts, on ComfyUI's main loop."""

    def __init__(self, monitor: EndpointMonitor, schema_cache: SchemaCache) -> None:
        self._monitor = monitor
        self._schema_cache = schema_cache

    async def check(self, posted: PostedPrompt, validate: Validate) -> ValidationResult:
        """What ComfyUI is to answer to whoever posted the prompt; if it is good, ``posted.partitioned`` is what runs, None for the prompt itself."""
        posted.partitioned = None
        try:
            if posted.problem is not None:
                raise posted.problem
            return await self._check(posted, validate)
        except YggdrasillError as error:
            return error_result(error, posted, self._standing(error, posted))

    async def _check(self, posted: PostedPrompt, validate: Validate) -> ValidationResult:
        # ComfyUI's check writes what it unwraps into the prompt, and would not know it again
        checked = copy.deepcopy(posted)
        inside = frozenset[str]().union(*(placed.part.nodes for placed in posted.parts))
        known = await self._states_of(posted.parts)
        lacking = self._schema_cache.missing(_classes(posted))
        if lacking and not lacking <= set(_classes({node: posted[node] for node in inside})):
            return await validate(posted)
        if lacking:
            own: ValidationResult = True, None, [], {}
            wanted: Collection[str] = list(posted)
        else:
            own, wanted = drop_file_errors(await validate(checked), inside)
            if not wanted:
                return own
        parts = self._parts(posted, wanted, known, lacking)
        if not parts:
            return await validate(posted)
        schemas = await self._schemas(posted, lacking, known)
        if not lacking <= set(schemas):
            return await validate(posted)
        partition = _partitioned_as_far_as_it_goes(posted, parts, schemas, None if lacking else wanted)
        if not partition.calls:
            return await validate(posted)
        placements = {call.node_id: self._placement(call, parts, await self._fresh_enough(call, parts, known)) for call in partition.calls}
        shareable = frozenset(call.node_id for call in partition.calls if can_be_shared(call, schemas))
        partitioned = PartitionedPrompt(partition.prompt, posted, {call.node_id: call for call in partition.calls}, placements, shareable)
        answer = await self._partitioned(posted, partitioned, own, validate)
        posted.update(checked)
        return answer

    async def _partitioned(
        self, posted: PostedPrompt, partitioned: PartitionedPrompt, own: ValidationResult, validate: Validate
    ) -> ValidationResult:
        good, error, outputs, node_errors = await validate(partitioned.prompt)
        told = {(partitioned.display_node(node)[0] if node in partitioned.calls else node): facts for node, facts in node_errors.items()}
        if good:
            posted.partitioned = partitioned
        return good, error, outputs, {**own[3], **told}

    # -- where --------------------------------------------------------------------------------------------------

    async def _states_of(self, parts: Iterable[PlacedPart]) -> dict[str, EndpointState]:
        names = sorted({name for placed in parts for name in placed.placement.endpoints})
        known = await self._monitor.refresh(names, max_age=_FRESH, timeout=_TIMEOUT)
        down = [name for name in names if not known[name].up]
        return {**known, **await self._monitor.refresh(down, max_age=0.5, timeout=_TIMEOUT)}

    def _parts(
        self, posted: PostedPrompt, wanted: Collection[str], known: Mapping[str, EndpointState], lacking: set[str]
    ) -> list[PlacedPart]:
        """The parts that do run elsewhere: those with something to do, and an endpoint that is up."""
        needed = _needed(posted, wanted)
        found = []
        for placed in posted.parts:
            nodes = placed.part.nodes & needed
            up = tuple(name for name in placed.placement.endpoints if known[name].up)
            if not nodes:
                continue
            here = placed.placement.fallback == "local" and lacking.isdisjoint(_classes({node: posted[node] for node in nodes}))
            if up:
                part = replace(placed.part, nodes=nodes)
                found.append(PlacedPart(part, replace(placed.placement, endpoints=up)))
            elif not here:
                raise _down(placed, known, nodes)
        return found

    def _placement(self, call: PartCall, parts: Iterable[PlacedPart], known: Mapping[str, EndpointState]) -> Placement:
        """Where a call can run: those of its part's endpoints that have what it needs.

        Raises:
            YggdrasillError: none has; it says what is missing where.
        """
        placement = _placed_as(call, parts).placement
        gaps = {name: gaps_of(call.prompt, known[name].facts) for name in placement.endpoints}
        fit = tuple(name for name, missing in gaps.items() if missing == {})
        if fit:
            return replace(placement, endpoints=fit)
        raise _lacking(call, gaps)

    async def _fresh_enough(
        self, call: PartCall, parts: Iterable[PlacedPart], known: Mapping[str, EndpointState]
    ) -> Mapping[str, EndpointState]:
        """What the call's endpoints have; asked again before one is said to lack something."""
        names = _placed_as(call, parts).placement.endpoints
        if any(gaps_of(call.prompt, known[name].facts) == {} for name in names):
            return known
        return {**known, **{name: await self._monitor.requery(name) for name in names}}

    async def _schemas(self, prompt: Mapping[str, Any], lacking: set[str], names: Iterable[str]) -> NodeSchemas:
        own = await self._schema_cache.schemas(_classes(prompt))
        return await self._monitor.schemas(names, lacking, timeout=_TIMEOUT) | own if lacking else own

    def _standing(self, error: YggdrasillError, posted: PostedPrompt) -> list[str]:
        """The nodes to say an error on."""
        named = [str(node) for node in error.details.get("nodes") or () if str(node) in posted]
        return named or [min(placed.part.nodes) for placed in posted.parts[:1]] or list(posted)[:1]


def _partitioned_as_far_as_it_goes(
    posted: PostedPrompt, parts: Iterable[PlacedPart], schemas: NodeSchemas, wanted: Collection[str] | None
) -> Partition:
    """The partition. Of what nobody named, but ``*`` sends away with all the rest, what cannot go is no error: it runs here."""
    named = [placed.part for placed in parts]
    try:
        return partition_prompt(posted, named, schemas, wanted)
    except PartitionError as error:
        if error.details.get("part") != WHOLE or not any(part.name == WHOLE for part in named):
            raise
        return partition_prompt(posted, [part for part in named if part.name != WHOLE], schemas, wanted)


def _classes(prompt: Mapping[str, Any]) -> list[str]:
    return [str(node["class_type"]) for node in prompt.values() if isinstance(node, Mapping) and "class_type" in node]


def _needed(prompt: Mapping[str, Any], wanted: Collection[str]) -> set[str]:
    """``wanted`` and all that they depend on."""
    found: set[str] = set()
    waiting = [node for node in wanted if node in prompt]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [value[0] for value in prompt[node].get("inputs", {}).values() if is_link(value) and value[0] in prompt]
    return found


def _placed_as(call: PartCall, parts: Iterable[PlacedPart]) -> PlacedPart:
    named = [placed for placed in parts if placed.part.name == call.part]
    inside = set(call.nodes) | set(call.copies)
    return next((placed for placed in named if not placed.part.nodes.isdisjoint(inside)), named[0])


def _down(placed: PlacedPart, known: Mapping[str, EndpointState], nodes: Iterable[str]) -> YggdrasillError:
    names = placed.placement.endpoints
    said = "; ".join(f"{name!r}: {known[name].reason or 'it has not answered yet'}" for name in names)
    return EndpointUnreachable(
        f"part {placed.part.name!r} runs at {' or '.join(map(repr, names))}, and none of these is up ({said}). Start one, place the part "
        "elsewhere, or let it run here then, with 'fallback: local'",
        nodes=sorted(nodes),
        endpoints=list(names),
    )


def _lacking(call: PartCall, gaps: Mapping[str, Mapping[str, list[str]] | None]) -> YggdrasillError:
    from yggdrasill.errors import MissingFile, UnknownBlockType

    told, nodes = [], set[str]()
    for name, missing in gaps.items():
        if missing is None:
            told.append(f"endpoint {name!r} is no ComfyUI with this extension")
            continue
        nodes |= set(missing)
        words = sorted({word for words in missing.values() for word in words})
        told.append(f"endpoint {name!r} lacks {', '.join(words)}")
    kind = UnknownBlockType if "node class" in "".join(told) else MissingFile
    return kind(f"part {call.part!r} cannot run: {'; '.join(told)}. Bring it there, or place the part elsewhere", nodes=sorted(nodes))
