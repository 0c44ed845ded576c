"""The checks of a stage: its role, and its contract against the ports of its pipelines and against a state schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from yggdrasill.errors import unknown_message
from yggdrasill.foundation.ports import dtypes_fit
from yggdrasill.stage.conditions import WORLD_UPDATE, Condition, canonical_condition
from yggdrasill.stage.contract import CONTEXT_SOURCES, PortMapping, StateKey
from yggdrasill.stage.state import BLOCKS

if TYPE_CHECKING:
    from yggdrasill.stage.stage import Stage

__all__ = ["check_contract", "check_reach", "check_role", "check_schema"]


def check_contract(stage: Stage) -> Iterator[str]:
    """Yield errors: a contracted block without a port, a mapping that cannot work, a required input without a source."""
    contract, inputs, outputs = stage.contract, stage.input_mapping(), stage.output_mapping()
    sides: tuple[tuple[Literal["input", "output"], tuple[StateKey, ...], list[PortMapping]], ...] = (
        ("input", contract.input_blocks, inputs),
        ("output", contract.output_blocks, outputs),
    )
    for kind, blocks, mapping in sides:
        mapped = {entry.block for entry in mapping}
        for block in blocks:
            if block not in mapped:
                yield f"contract {kind} {block!r} has no pipeline port; map it to one, or add a pipeline with such an {kind}"
        for entry in mapping:
            where = f"contract {kind} {entry.block!r}"
            if entry.stage_node_id not in stage.pipelines:
                yield f"{where}: {unknown_message('pipeline', entry.stage_node_id, stage.pipelines)}"
                continue
            side = stage.ports(entry.stage_node_id, kind)
            if entry.port not in side:
                yield f"{where}: pipeline {entry.stage_node_id!r}: {unknown_message(kind, entry.port, side)}"
            if entry.block not in blocks and entry.block not in CONTEXT_SOURCES:
                yield f"{kind} mapping uses {entry.block!r}, which is not among the contract's {kind} blocks {list(blocks)}"
            if kind == "output" and entry.block == "action":
                yield "an action comes from outside; no output can be mapped to it"
    yield from _repeated(inputs, outputs)
    fed = {(e.target_node, e.target_port) for e in stage.get_edges()} | {(e.stage_node_id, e.port) for e in inputs}
    for child in stage.pipelines:
        for port in stage.ports(child, "input").values():
            if not port.optional and (child, port.name) not in fed:
                yield f"pipeline {child!r}, input {port.name!r} is required and has no source; map a block to it or connect it"


def _repeated(inputs: list[PortMapping], outputs: list[PortMapping]) -> Iterator[str]:
    """Yield errors: two blocks that feed one port, or two ports that write one block; the last would win silently."""
    for (child, port), count in Counter((entry.stage_node_id, entry.port) for entry in inputs).items():
        if count > 1:
            blocks = [entry.block for entry in inputs if (entry.stage_node_id, entry.port) == (child, port)]
            yield f"input mapping: port {child}.{port} is fed by {count} entries, {blocks}; map one block to it"
    for block, count in Counter(entry.block for entry in outputs).items():
        if count > 1:
            ports = [f"{entry.stage_node_id}.{entry.port}" for entry in outputs if entry.block == block]
            yield f"output mapping: {block!r} is written by {count} ports, {ports}; map one port to it"


def check_reach(stage: Stage) -> Iterator[str]:
    """Yield warnings: a pipeline whose outputs are not used, and a mapping that an edge into the same port hides."""
    used = {edge.source_node for edge in stage.get_edges()} | {entry.stage_node_id for entry in stage.output_mapping()}
    for child in stage.pipelines:
        if child not in used:
            yield f"pipeline {child!r} leads to no state block"
    # A mapping is the fallback of an edge from a pipeline that may be skipped, as from World update to Development.
    sources = {(edge.target_node, edge.target_port): edge.source_node for edge in stage.get_edges()}
    for entry in stage.input_mapping():
        source = sources.get((entry.stage_node_id, entry.port))
        if source is not None and _always(stage.guard(source)):
            yield (
                f"input mapping: port {entry.stage_node_id}.{entry.port} is fed by {entry.block!r} and by an edge from {source!r}, "
                "which always runs, so the block is not used; remove one of them"
            )


def check_role(stage: Stage, role: str) -> Iterator[str]:
    """Yield warnings: what the canonical cycle requires of a stage with ``role``, and this stage does not have."""
    canonical, given = canonical_condition(role), stage.condition
    if canonical is not None:
        if given is None:
            yield f"the id is that of a role, but the stage has no role, so it always runs; set the role {role!r} or an execution condition"
        elif not given.is_callable and not given.equals(canonical, stage.contract.output_blocks):
            yield (
                f"the execution condition is {given.to_config()!r}; a stage with role {role!r} runs when blocks "
                f"{list(canonical.required)} are filled and its output block is empty (condition {role!r})"
            )
    elif role == "environment":
        if not _always(given):
            yield "the stage has an execution condition; a stage with role 'environment' always runs, so that Development opens the next state"
        guards = [stage.guard(child) for child in stage.pipelines]
        if not any(guard is not None and _requires_all(guard) for guard in guards):
            yield (
                f"World update is missing: no pipeline requires all five blocks; add a pipeline {WORLD_UPDATE!r}, or give one "
                f"the condition {WORLD_UPDATE!r}"
            )
        if not any(map(_always, guards)):
            yield "Development is missing: no pipeline runs always; add a pipeline 'development_of_the_world' without a condition"


def _always(condition: Condition | None) -> bool:
    return condition is None or condition.given == "always"


def _requires_all(guard: Condition) -> bool:
    return set(BLOCKS) <= set(guard.required)


def check_schema(stage_id: str, stage: Stage, fields: Mapping[str, str]) -> Iterator[str]:
    """Yield errors of a stage against a world's state schema: unknown blocks and fields, and fields of another dtype."""
    known = {*BLOCKS, *fields, *CONTEXT_SOURCES}
    conditions = [stage.execution_condition, *stage.pipeline_conditions.values()]
    required = [key for condition in conditions if condition is not None for key in condition.required]
    for block in dict.fromkeys((*stage.contract.input_blocks, *stage.contract.output_blocks, *required)):
        if block not in known:
            yield f"stage {stage_id!r}: {unknown_message('block or field', block, map(str, known), 'Add it to the state schema.')}"
    for entry in (*stage.get_state_input_spec(), *stage.get_state_output_spec()):
        declared = fields.get(entry["block"], "any")
        if not dtypes_fit(declared, entry["dtype"]):
            port = f"{entry['stage_node_id']}.{entry['port']}"
            yield f"stage {stage_id!r}: state field {entry['block']!r} is {declared!r}, port {port} is {entry['dtype']!r}"
