"""Composes stages and worlds: each function takes configs and returns a new one, as `to_config` of the level would."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, format_options
from yggdrasill.server_ext.comfy.levels.building import build, checked_level
from yggdrasill.server_ext.comfy.levels.graph_composing import child_ids
from yggdrasill.server_ext.comfy.levels.host_paths import read_mapping
from yggdrasill.server_ext.comfy.levels.wires import Wire, read_lines, read_wires
from yggdrasill.stage import Stage
from yggdrasill.stage.contract import CONTEXT_SOURCES, PortMapping, StateKey, state_key
from yggdrasill.world import World
from yggdrasill.world.world import CANONICAL_CYCLE

__all__ = ["NO_ROLE", "make_stage", "make_world"]

NO_ROLE = "none"
_ID_FIELDS = ("pipeline_id", "graph_id")


def make_stage(
    stage_id: str,
    role: str,
    pipelines: Sequence[Mapping[str, Any]],
    *,
    names: str = "",
    lines: str = "",
    reads: str = "",
    writes: str = "",
    condition: str = "",
    conditions: str = "",
    carry: bool = True,
) -> dict[str, Any]:
    """Return the config of a stage.

    ``lines`` connect pipelines with each other, and state blocks (1 to 5, fields, ``action``, ``content``) with their ports:
    ``2 -> a.configuration``, ``a.artifacts -> 3``. ``reads`` and ``writes`` are the blocks of the state contract; if blank, those in the lines.
    ``condition`` is the execution condition of the stage; ``conditions`` has those of single pipelines, one ``name: condition`` per line.

    Raises:
        InvalidArgument, InvalidEdge, DuplicateName, InvalidConfig, InvalidStructure
    """
    if not pipelines:
        raise InvalidArgument("The stage has no pipelines. Link at least one.")
    ids = child_ids(pipelines, names, _ID_FIELDS, "pipeline")
    guards = _conditions(conditions, ids)
    stage = Stage(stage_id.strip() or "stage", role=None if role in ("", NO_ROLE) else role)
    for pipeline, name in zip(pipelines, ids, strict=True):
        checked_level(pipeline, "pipeline", "graph")
        stage.add_pipeline(build(pipeline), name, condition=guards.get(name))
    wires = read_wires(lines, ids, "pipeline")
    for wire in wires:
        if wire.source and wire.target:
            stage.add_edge(wire.source, wire.source_port, wire.target, wire.target_port)
    inputs = [PortMapping(_block(wire.source_port, wire), wire.target, wire.target_port) for wire in wires if not wire.source]
    outputs = [PortMapping(_block(wire.target_port, wire), wire.source, wire.source_port) for wire in wires if not wire.target]
    stage.set_state_contract(
        _blocks(reads) or _unique(inputs),
        _blocks(writes) or _unique(outputs),
        inputs if wires else None,
        outputs if wires else None,
        carry=carry,
    )
    stage.set_execution_condition(_condition(condition))
    stage.validate(strict=True)
    return dict(stage.to_config())


def _block(name: str, wire: Wire) -> StateKey:
    if not name:
        raise InvalidArgument(f"{wire.line!r} does not name a state block. Use 1 to 5, the name of a field, action or content.")
    return state_key(name)


def _blocks(text: str) -> list[StateKey]:
    return [state_key(part.strip()) for part in text.split(",") if part.strip()]


def _unique(mapping: Sequence[PortMapping]) -> list[StateKey]:
    """Return the state blocks of a mapping, numbers in order and then fields, without sources that are not state blocks."""
    keys = {entry.block for entry in mapping} - set(CONTEXT_SOURCES)
    return sorted(keys, key=lambda key: (isinstance(key, str), key))


def _condition(text: str) -> str | list[StateKey] | None:
    condition = text.strip()
    if not condition:
        return None
    return _blocks(condition) if "," in condition or condition.isdecimal() else condition


def _conditions(text: str, ids: Collection[str]) -> dict[str, str | list[StateKey] | None]:
    found = {}
    for line in read_lines(text):
        name, colon, condition = (part.strip() for part in line.partition(":"))
        if not colon or name not in ids:
            raise InvalidArgument(
                f"{line!r} is not a condition of a pipeline. Write 'name: condition' with one of the names {format_options(ids)}."
            )
        found[name] = _condition(condition)
    return found


def make_world(
    world_id: str,
    stages: Sequence[Mapping[str, Any]],
    *,
    names: str = "",
    cycle: str = "",
    seed: int = -1,
    description: str = "",
    initial_world: str = "",
    fields: str = "",
) -> dict[str, Any]:
    """Return the config of a world of ``stages``.

    A blank ``cycle`` is the canonical one if every role is present, else the order of the stages. ``initial_world`` and ``fields`` are YAML: the
    initial content, and the extra fields of the state with their types.

    Raises:
        InvalidArgument, DuplicateName, InvalidConfig
    """
    if not stages:
        raise InvalidArgument("The world has no stages. Link at least one.")
    world = World(world_id.strip() or "world", description=description, seed=None if seed < 0 else seed)
    for stage, name in zip(stages, child_ids(stages, names, ("stage_id",), "stage"), strict=True):
        checked_level(stage, "stage")
        world.add_stage(build(stage), name)
    world.set_state_schema(_fields(read_mapping(fields, "fields")))
    world.set_initial_world(read_mapping(initial_world, "initial world"))
    ids = [name.strip() for name in cycle.split(",") if name.strip()]
    if ids:
        world.set_cycle(ids)
    elif sorted(world.role_of(stage) for stage in world.stages) == sorted(CANONICAL_CYCLE):
        world.set_canonical_cycle()
    else:
        world.set_cycle(list(world.stages))
    world.validate(strict=True, deep=True)
    return dict(world.to_config())


def _fields(fields: Mapping[str, Any]) -> dict[str, str]:
    for name, dtype in fields.items():
        if not isinstance(dtype, str):
            raise InvalidConfig(f"The fields of a state must be 'name: type' lines such as 'mood: text'; {name!r} has {dtype!r}.")
    return {str(name): dtype for name, dtype in fields.items()}
