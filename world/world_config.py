"""Models of a world's config, and conversion between a world and its config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from yggdrasill.errors import InvalidConfig, MissingFile, unknown_message
from yggdrasill.foundation.config import BuildOptions, is_ref, open_config, read_model, resolve_ref
from yggdrasill.foundation.kinds import build_child, place_child
from yggdrasill.foundation.schemas import StrictModel
from yggdrasill.world.storage import WorldStorage

if TYPE_CHECKING:
    from yggdrasill.world.world import World

__all__ = ["RemoteStageModel", "SchemaModel", "StorageModel", "WorldModel", "world_from_config", "world_to_config"]

AnyWorld = TypeVar("AnyWorld", bound="World")


class SchemaModel(StrictModel):
    """State schema: five blocks, and extra fields by name, with dtypes if it is a mapping."""

    blocks: Literal[5] = 5
    fields: list[str] | dict[str, str] | None = None


class StorageModel(StrictModel):
    """Storage of snapshots; ``rotation`` is another name of ``max_snapshots``."""

    state_dir: str
    naming_template: str | None = None
    max_snapshots: int | None = None
    rotation: int | None = None
    load_last_state: bool = False


class RemoteStageModel(StrictModel):
    """A stage that another endpoint serves."""

    endpoint_url: str
    graph_id: str | None = None


class WorldModel(StrictModel):
    """A world's config, ``schema_version`` 2.0."""

    schema_version: str = "2.0"
    world_id: str = "world"
    description: str = ""
    seed: int | None = None
    cycle: list[str]
    stages: dict[str, dict[str, Any]]
    state_schema: SchemaModel = Field(default_factory=SchemaModel)
    initial_world: dict[str, Any] = Field(default_factory=dict)
    storage: StorageModel | None = None
    checkpoint_ref: str | None = None
    tags: list[str] = Field(default_factory=list)
    frozen_stages: list[str] = Field(default_factory=list)


def world_to_config(world: World) -> dict[str, Any]:
    """Return the config of a world."""
    config: dict[str, Any] = {"schema_version": world.schema_version, "world_id": world.world_id, "description": world.description}
    if world.seed is not None:
        config["seed"] = world.seed
    config["cycle"] = list(world.cycle)
    config["stages"] = {stage_id: stage.to_config() for stage_id, stage in world.stages.items()}
    config["state_schema"] = {"blocks": 5, **({"fields": dict(world.state_fields)} if world.state_fields else {})}
    config["initial_world"] = copy.deepcopy(world.initial_world)
    if world.storage is not None:
        config["storage"] = world.storage.to_config()
    if world.checkpoint_ref is not None:
        config["checkpoint_ref"] = world.checkpoint_ref
    frozen = [stage_id for stage_id in world.stages if not world.is_trainable(stage_id)]
    return {**config, **({"tags": list(world.tags)} if world.tags else {}), **({"frozen_stages": frozen} if frozen else {})}


def world_from_config(cls: type[AnyWorld], config: Mapping[str, Any], options: BuildOptions, validate: bool) -> AnyWorld:
    """Build a world from its config; arguments as for `World.from_config`."""
    document, where, here = open_config(cls, config, options)
    base = None if here.base_dir is None else Path(here.base_dir)
    model = read_model(WorldModel, document, where)
    checkpoint = None if model.checkpoint_ref is None else _absolute(model.checkpoint_ref, base)
    world = cls(model.world_id, description=model.description, seed=model.seed, tags=model.tags, checkpoint_ref=checkpoint)
    if stray := sorted(set(model.frozen_stages) - set(model.stages)):
        raise InvalidConfig(f"{where}, frozen_stages: {unknown_message('stage', stray[0], model.stages)}")
    for stage_id, entry in model.stages.items():
        world.add_stage(
            _stage(stage_id, entry, f"{where}, stages.{stage_id}", here), stage_id, trainable=stage_id not in model.frozen_stages
        )
    world.set_state_schema(model.state_schema.fields or {})
    world.set_initial_world(_initial_world(model.initial_world, where, here))
    if model.storage is not None:
        storage = {**model.storage.model_dump(exclude_none=True), "state_dir": _absolute(model.storage.state_dir, base)}
        world.set_storage(WorldStorage.from_config(storage))
    world.set_cycle(model.cycle)
    if checkpoint is not None:
        world.load_from_checkpoint(checkpoint_path=checkpoint)
    if validate:
        world.validate(strict=True, deep=True)
    return world


def _stage(stage_id: str, entry: Mapping[str, Any], where: str, options: BuildOptions) -> Any:
    if "endpoint_url" in entry:
        remote = read_model(RemoteStageModel, dict(entry), where)
        facts = {"endpoint_url": remote.endpoint_url, "graph_id": remote.graph_id or stage_id, "stage": True}
        return place_child(stage_id, facts, options)
    config, base = resolve_ref(entry, options.base_dir, where, options.allow_ref)
    placed = place_child(stage_id, {"stage_config": config, "graph_id": stage_id}, options, base)
    if placed is not None:
        return placed
    return build_child(config, options.below(stage_id, base), "stage")


def _absolute(path: str, base: Path | None) -> str:
    """Return an absolute path; in a config file it is relative to that file."""
    return path if base is None or "://" in path else str((base / path).resolve())


def _initial_world(parts: Mapping[str, Any], where: str, options: BuildOptions) -> dict[str, Any]:
    """Return the parts by name: each is a text, a value, or a ``ref`` to a text file or config document that contains it."""
    resolved = {}
    for name, part in parts.items():
        if is_ref(part) and str(part["ref"]).lower().endswith((".txt", ".md")):
            resolved[name] = _read_text(part["ref"], f"{where}, initial_world.{name}", options)
        else:
            resolved[name] = resolve_ref(part, options.base_dir, f"{where}, initial_world.{name}", options.allow_ref)[0]
    return resolved


def _read_text(path: Any, where: str, options: BuildOptions) -> str:
    if not options.allow_ref:
        raise InvalidConfig(f"{where}: 'ref' is not allowed in a config that comes over a network; send the text inline")
    file = (Path() if options.base_dir is None else Path(options.base_dir)) / str(path)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingFile(f"{where}: 'ref' names {str(file)!r}, which cannot be read: {error}", path=str(file)) from None
