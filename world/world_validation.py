"""The checks of a world: its ring, its stages against the state schema, its storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from yggdrasill.errors import format_options
from yggdrasill.foundation.validation import ValidationResult
from yggdrasill.stage.stage import Stage
from yggdrasill.stage.stage_validation import check_schema

if TYPE_CHECKING:
    from yggdrasill.world.world import World

__all__ = ["check_world", "cycle_problem"]


def cycle_problem(world: World, cycle: Sequence[str]) -> str | None:
    """Why ``cycle`` is no ring of this world's stages, or None."""
    if not world.stages:
        return f"world {world.world_id!r} has no stages; add some and set the cycle"
    faults = (
        (sorted({name for name in cycle if list(cycle).count(name) > 1}), "stand twice"),
        ([name for name in cycle if name not in world.stages], "are no stages"),
        ([name for name in world.stages if name not in cycle], "are left out"),
    )
    parts = [f"{names} {text}" for names, text in faults if names]
    if not parts:
        return None
    return f"world {world.world_id!r}: the cycle must name each stage exactly once ({format_options(world.stages)}); {'; '.join(parts)}"


def check_world(world: World, validate_stages: bool) -> ValidationResult:
    """Errors and warnings of a world, and of its stages if asked for."""
    result = ValidationResult()
    problem = cycle_problem(world, world.cycle)
    result.errors += [problem] if problem else []
    for stage_id, stage in world.stages.items():
        if isinstance(stage, Stage):
            result.errors += check_schema(stage_id, stage, world.state_fields)
            if validate_stages:
                result.add(stage.validate(strict=False, deep=True), stage_id)
    if world.storage is not None and (trouble := world.storage.problem(world.world_id)):
        result.errors.append(trouble)
    return result
