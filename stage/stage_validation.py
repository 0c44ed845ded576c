"""The checks of a stage: its contract against the ports of its pipelines, and what leads where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from yggdrasill.errors import format_options
from yggdrasill.foundation.ports import dtypes_fit
from yggdrasill.stage.contract import CONTEXT_SOURCES, PortMapping, StateKey
from yggdrasill.stage.state import BLOCKS

if TYPE_CHECKING:
    from yggdrasill.stage.stage import Stage

__all__ = ["check_contract", "check_reach", "check_schema"]


def check_contract(stage: Stage) -> Iterator[str]:
    """Errors: a contracted block without a port, a mapping to no port, a required input nothing feeds."""
    contract = stage.contract
    sides: tuple[tuple[Literal["input", "output"], tuple[StateKey, ...], list[PortMapping]], ...] = (
        ("input", contract.input_blocks, stage.input_mapping()),
        ("output", contract.output_blocks, stage.output_mapping()),
    )
    for kind, blocks, mapping in sides:
        mapped = {entry.block for entry in mapping}
        for block in blocks:
            if block not in mapped:
                yield f"contract {kind} {block!r} has no pipeline port; map it to one, or add a pipeline with such an {kind}"
        for entry in mapping:
            if entry.stage_node_id not in stage.pipelines:
                yield f"contract {kind} {entry.block!r} names pipeline {entry.stage_node_id!r}; there is {format_options(stage.pipelines, near=entry.stage_node_id)}"
                continue
            side = stage.ports(entry.stage_node_id, kind)
            if entry.port not in side:
                yield f"contract {kind} {entry.block!r} names port {entry.stage_node_id}.{entry.port}; its {kind}s are {format_options(side, near=entry.port)}"
            if entry.block not in blocks and entry.block not in CONTEXT_SOURCES:
                yield f"{kind} mapping uses {entry.block!r}, which is not among the contract's {kind} blocks {list(blocks)}"
            if kind == "output" and entry.block == "action":
                yield "an action is given from outside; no output can be mapped to it"
    fed = {(e.target_node, e.target_port) for e in stage.get_edges()} | {(e.stage_node_id, e.port) for e in stage.input_mapping()}
    for child in stage.pipelines:
        for port in stage.ports(child, "input").values():
            if not port.optional and (child, port.name) not in fed:
                yield f"pipeline {child!r}, input {port.name!r} is required and nothing feeds it; map a block to it or connect it"


def check_reach(stage: Stage) -> Iterator[str]:
    """Warnings: a pipeline whose outputs go nowhere."""
    used = {edge.source_node for edge in stage.get_edges()} | {entry.stage_node_id for entry in stage.output_mapping()}
    for child in stage.pipelines:
        if child not in used:
            yield f"pipeline {child!r} leads to no state block"


def check_schema(stage_id: str, stage: Stage, fields: Mapping[str, str]) -> Iterator[str]:
    """Errors of a stage against a world's state schema: blocks and fields it lacks, and fields of another dtype."""
    known = {*BLOCKS, *fields, *CONTEXT_SOURCES}
    conditions = [stage.execution_condition, *stage.pipeline_conditions.values()]
    required = [key for condition in conditions if condition is not None for key in condition.required]
    for block in dict.fromkeys((*stage.contract.input_blocks, *stage.contract.output_blocks, *required)):
        if block not in known:
            yield f"stage {stage_id!r} uses {block!r}, which is not in the state schema; it has {format_options(map(str, known))}"
    for entry in (*stage.get_state_input_spec(), *stage.get_state_output_spec()):
        declared = fields.get(entry["block"], "any")
        if not dtypes_fit(declared, entry["dtype"]):
            place = f"{entry['stage_node_id']}.{entry['port']}"
            yield f"stage {stage_id!r}: state field {entry['block']!r} is {declared!r}, port {place} is {entry['dtype']!r}"
