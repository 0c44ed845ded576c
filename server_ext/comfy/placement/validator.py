"""Validates and partitions posted prompts with placed parts, in place of ComfyUI's validation: ComfyUI's errors, and ours in the same form."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from yggdrasill.errors import EndpointUnreachable, PartitionError, YggdrasillError
from yggdrasill.remote.call_splitting import can_be_split
from yggdrasill.remote.partition.partitioning import partition_prompt
from yggdrasill.remote.partition.parts import PartCall, Partition
from yggdrasill.remote.partition.placement_keys import PlacedPart
from yggdrasill.remote.partition.schemas import NodeSchemas
from yggdrasill.remote.partition.traits import HostFacts
from yggdrasill.remote.placement import WHOLE, Placement
from yggdrasill.remote.preflight import gaps_of, offered_only_there
from yggdrasill.server_ext.comfy.binding import give_output_types
from yggdrasill.server_ext.comfy.inventory import normalize_model_paths
from yggdrasill.server_ext.comfy.local_facts import LocalFacts
from yggdrasill.server_ext.comfy.model_files import model_files
from yggdrasill.server_ext.comfy.object_info import read_object_info
from yggdrasill.server_ext.comfy.placement.endpoint_monitor import EndpointMonitor, EndpointState
from yggdrasill.server_ext.comfy.placement.partitioned_prompt import PartitionedPrompt, PostedPrompt
from yggdrasill.server_ext.comfy.placement.schema_cache import SchemaCache
from yggdrasill.server_ext.comfy.placement.validation_result import (
    Validate,
    ValidationResult,
    drop_file_errors,
    error_result,
    explains_errors,
    held_lines,
    lacking_error,
    needed_nodes,
)

__all__ = ["PromptValidator", "partition_leniently"]

_FRESH = 10.0
"""Seconds for which an endpoint that was up counts as up. One that was down is queried again."""
_TIMEOUT = 2.0
_MAX_AGE = 60.0
"""Age in seconds up to which the inventories of endpoints outside the placement are not queried again."""
_FACTS_TIMEOUT = 20.0
"""Seconds to wait for the capabilities of an endpoint that has reported its health: the first ones read every class and model folder."""


class PromptValidator:
    """Validates and partitions posted prompts on ComfyUI's main loop."""

    def __init__(self, monitor: EndpointMonitor, schema_cache: SchemaCache, local_facts: LocalFacts) -> None:
        self._monitor = monitor
        self._schema_cache = schema_cache
        self._local_facts = local_facts

    async def check(self, posted: PostedPrompt, validate: Validate) -> ValidationResult:
        """Return ComfyUI's validation result for a posted prompt.

        If the prompt is valid, ``posted.partitioned`` is the prompt that runs, or None if it runs unchanged.
        """
        posted.partitioned, posted.is_checked = None, True
        try:
            if posted.problem is not None:
                raise posted.problem
            return await self._check(posted, validate)
        except YggdrasillError as error:
            nodes = self._error_nodes(error, posted)
            parts = [placed.part.name for placed in posted.parts if not placed.part.nodes.isdisjoint(nodes)]
            return error_result(error, posted, nodes, parts)

    async def _check(self, posted: PostedPrompt, validate: Validate) -> ValidationResult:
        # ComfyUI's validation writes unwrapped values into the prompt, so a second validation would fail
        checked = copy.deepcopy(posted)
        inside = frozenset[str]().union(*(placed.part.nodes for placed in posted.parts))
        known = await self._states_of(posted.parts)
        lacking = self._schema_cache.missing(_classes(posted))
        if lacking and not lacking <= set(_classes({node: posted[node] for node in inside})):
            return await validate(posted)
        with held_lines() as lines:
            original: ValidationResult = (True, None, [], {}) if lacking else await validate(checked)
        refused = frozenset[str]()
        while True:
            local, wanted = (original, list(posted)) if lacking else drop_file_errors(original, inside - refused, posted)
            if not wanted:
                lines.log()
                return local
            parts = self._parts(posted, wanted, known, lacking)
            if not parts:
                return await validate(posted)
            schemas = await self._schemas(posted, lacking, known)
            if not lacking <= set(schemas):
                return await validate(posted)
            partition = partition_leniently(posted, parts, schemas, None if lacking else wanted, self._local_facts.facts())
            if not partition.calls:
                return await validate(posted)
            placements = {
                call.node_id: await self._placement(call, parts, await self._confirmed_states(call, parts, known))
                for call in partition.calls
            }
            dropped = {node: facts for node, facts in original[3].items() if node not in local[3]}
            also_refused = [await self._refused_nodes(call, placements, posted, dropped) for call in partition.calls if dropped]
            if not any(also_refused):
                break
            refused = refused.union(*also_refused)
        splittable = frozenset(call.node_id for call in partition.calls if can_be_split(call, schemas))
        calls = {call.node_id: call for call in partition.calls}
        repeated = frozenset(name for name, schema in schemas.items() if schema.repeats_output)
        prompt = _spelled_here(partition.prompt, inside)
        partitioned = PartitionedPrompt(prompt, posted, calls, placements, splittable, posted.extra_pnginfo, repeated=repeated)
        lines.log(without=wanted)
        result = await self._validate_partitioned(posted, partitioned, local, validate)
        posted.update(checked)
        return result

    async def _validate_partitioned(
        self, posted: PostedPrompt, partitioned: PartitionedPrompt, local: ValidationResult, validate: Validate
    ) -> ValidationResult:
        # a copy: the classes with types are for validation only, but values that ComfyUI unwraps are written into the shared inputs
        typed = dict(partitioned.prompt)
        give_output_types(typed, {node: [port.type for port in call.outputs] for node, call in partitioned.calls.items()})
        good, error, outputs, node_errors = await validate(typed)
        translated = {
            (partitioned.display_node(node)[0] if node in partitioned.calls else node): facts for node, facts in node_errors.items()
        }
        if good:
            posted.partitioned = partitioned
        return good, error, outputs, {**local[3], **translated}

    # -- placement ----------------------------------------------------------------------------------------------

    async def _states_of(self, parts: Iterable[PlacedPart]) -> dict[str, EndpointState]:
        names = sorted({name for placed in parts for name in placed.placement.endpoints})
        known = await self._monitor.refresh(names, max_age=_FRESH, timeout=_TIMEOUT)
        down = [name for name in names if not known[name].up]
        return {**known, **await self._monitor.refresh(down, max_age=0.5, timeout=_TIMEOUT, facts_timeout=_FACTS_TIMEOUT)}

    def _parts(
        self, posted: PostedPrompt, wanted: Collection[str], known: Mapping[str, EndpointState], lacking: set[str]
    ) -> list[PlacedPart]:
        """Return the parts that run at an endpoint: those with nodes to execute and an endpoint that is up."""
        needed = needed_nodes(posted, wanted)
        found = []
        for placed in posted.parts:
            nodes = placed.part.nodes & needed
            up = tuple(name for name in placed.placement.endpoints if known[name].up)
            if not nodes:
                continue
            can_run_locally = placed.placement.fallback == "local" and lacking.isdisjoint(_classes({node: posted[node] for node in nodes}))
            if up:
                part = replace(placed.part, nodes=nodes)
                found.append(PlacedPart(part, replace(placed.placement, endpoints=up)))
            elif not can_run_locally:
                raise _down(placed, known, nodes)
        return found

    async def _placement(self, call: PartCall, parts: Iterable[PlacedPart], known: Mapping[str, EndpointState]) -> Placement:
        """Return the placement of a call, reduced to the endpoints that have what it needs.

        Raises:
            YggdrasillError: no endpoint has; the message says what is missing or different at which.
        """
        placement = _placed_as(call, parts).placement
        missing = {name: await self._monitor.missing(name, call.prompt, timeout=_TIMEOUT) for name in placement.endpoints}
        fit = tuple(name for name, items in missing.items() if items == [])
        if not fit:
            # the others too, because one of them may have the file, perhaps since a moment ago
            others = [name for name in self._monitor.states() if name not in missing]
            refreshed = await self._monitor.refresh(
                others, max_age=_MAX_AGE, timeout=_TIMEOUT, facts_timeout=_FACTS_TIMEOUT, new_facts=True
            )
            facts = {name: state.facts for name, state in {**self._monitor.states(), **refreshed}.items()}
            raise lacking_error(call.part, missing, await asyncio.to_thread(model_files), facts)
        same_models = placement.models == "same"
        differences = {
            name: await self._monitor.difference(name, call.prompt, timeout=_TIMEOUT, compare_models=same_models) for name in fit
        }
        same = tuple(name for name in fit if differences[name] is None)
        if not same:
            raise _different(call, next(error for error in differences.values() if error is not None))
        return replace(placement, endpoints=same)

    async def _refused_nodes(
        self, call: PartCall, placements: dict[str, Placement], posted: PostedPrompt, dropped: Mapping[str, Mapping[str, Any]]
    ) -> set[str]:
        """Return the nodes of a call whose dropped errors hold at its endpoints too. Otherwise reduce its placement to those that accept it."""
        nodes = [node for node in (*call.nodes, *call.copies) if node in dropped]
        if not nodes:
            return set()
        placement = placements[call.node_id]
        offered = {
            name: {node for node in nodes if await self._offers(name, posted[node], dropped[node]["errors"])}
            for name in placement.endpoints
        }
        complete = tuple(name for name, found in offered.items() if len(found) == len(nodes))
        if complete:
            placements[call.node_id] = replace(placement, endpoints=complete)
            return set()
        return set(nodes) - max(offered.values(), key=len)

    async def _offers(self, name: str, node: Mapping[str, Any], errors: Iterable[Mapping[str, Any]]) -> bool:
        class_type = str(node["class_type"])
        local = (await read_object_info([class_type]))["nodes"].get(class_type)
        for fresh in (False, True):
            remote = await self._monitor.entry(name, class_type, timeout=_TIMEOUT, fresh=fresh)
            if remote is None or explains_errors(errors, offered_only_there(node, local, remote)):
                return True
        return False

    async def _confirmed_states(
        self, call: PartCall, parts: Iterable[PlacedPart], known: Mapping[str, EndpointState]
    ) -> Mapping[str, EndpointState]:
        """Return the states of the call's endpoints, queried again if they all lack something."""
        names = _placed_as(call, parts).placement.endpoints
        if any(gaps_of(call.prompt, known[name].facts) == {} for name in names):
            return known
        return {**known, **{name: await self._monitor.requery(name) for name in names}}

    async def _schemas(self, prompt: Mapping[str, Any], lacking: set[str], names: Iterable[str]) -> NodeSchemas:
        local = await self._schema_cache.schemas(_classes(prompt))
        return await self._monitor.schemas(names, lacking, timeout=_TIMEOUT) | local if lacking else local

    def _error_nodes(self, error: YggdrasillError, posted: PostedPrompt) -> list[str]:
        """Return the nodes on which an error is reported."""
        named = [str(node) for node in error.details.get("nodes") or () if str(node) in posted]
        return named or sorted({node for placed in posted.parts for node in placed.part.nodes}) or list(posted)[:1]


def partition_leniently(
    prompt: Mapping[str, Any], parts: Iterable[PlacedPart], schemas: NodeSchemas, wanted: Collection[str] | None, host: HostFacts
) -> Partition:
    """Partition the prompt. If nodes that only ``*`` places cannot be partitioned, they run locally instead."""
    named = [placed.part for placed in parts]
    try:
        return partition_prompt(prompt, named, schemas, wanted, host)
    except PartitionError as error:
        if error.details.get("part") != WHOLE or not any(part.name == WHOLE for part in named):
            raise
        return partition_prompt(prompt, [part for part in named if part.name != WHOLE], schemas, wanted, host)


def _spelled_here(prompt: Mapping[str, Any], inside: frozenset[str]) -> dict[str, Any]:
    """Return a prompt whose nodes of placed parts, which run here too, name files as this ComfyUI spells them."""
    copies = {node: {**prompt[node], "inputs": dict(prompt[node]["inputs"])} for node in prompt if node in inside}
    normalize_model_paths(copies)
    return {**prompt, **copies}


def _classes(prompt: Mapping[str, Any]) -> list[str]:
    return [str(node["class_type"]) for node in prompt.values() if isinstance(node, Mapping) and "class_type" in node]


def _placed_as(call: PartCall, parts: Iterable[PlacedPart]) -> PlacedPart:
    named = [placed for placed in parts if placed.part.name == call.part]
    inside = set(call.nodes) | set(call.copies)
    return next((placed for placed in named if not placed.part.nodes.isdisjoint(inside)), named[0])


def _down(placed: PlacedPart, known: Mapping[str, EndpointState], nodes: Iterable[str]) -> YggdrasillError:
    names = placed.placement.endpoints
    reasons = {name: _short_reason(name, known[name].reason) for name in names}
    if len(names) > 1:
        what = f"none of its endpoints is up ({'; '.join(f'{name!r}: {reason}' for name, reason in reasons.items())}). Start one"
    else:
        what = f"endpoint {names[0]!r} is not up: {reasons[names[0]]}. Start it"
    return EndpointUnreachable(
        f"Part {placed.part.name!r} cannot run: {what}, place the part on another endpoint, or allow a local run with 'fallback: local'.",
        nodes=sorted(nodes),
        endpoints=list(names),
    )


def _short_reason(name: str, reason: str | None) -> str:
    """Return why an endpoint is not up, without its name and without advice."""
    return (reason or "it has not answered yet").removeprefix(f"endpoint {name!r}: ").partition("; ")[0]


def _different(call: PartCall, error: YggdrasillError) -> YggdrasillError:
    """Return ``error`` with the nodes that it is about."""
    classes = set(error.details.get("classes") or ())
    nodes = [node_id for node_id, node in call.prompt.items() if node["class_type"] in classes]
    named = error.details.get("node_id")
    error.details["nodes"] = nodes or ([named] if named is not None else sorted(call.nodes))
    return error
