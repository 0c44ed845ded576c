"""Models of a stage's config, and conversion between a stage and its config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from yggdrasill.foundation.config import BuildOptions, open_config, read_model
from yggdrasill.foundation.graph_config import edge_to_config
from yggdrasill.foundation.kinds import build_children
from yggdrasill.foundation.schemas import ChildModel, EdgeModel, StrictModel

if TYPE_CHECKING:
    from yggdrasill.stage.stage import Stage

__all__ = ["ContractModel", "EntryModel", "MappedModel", "StageModel", "stage_from_config", "stage_to_config"]

AnyStage = TypeVar("AnyStage", bound="Stage")
Key = int | str


class MappedModel(StrictModel):
    """Entry of a mapping: a block or field, and a port."""

    block: Key
    stage_node_id: str
    port: str


class ContractModel(StrictModel):
    """A stage's state contract."""

    input_blocks: list[Key] = Field(default_factory=list)
    output_blocks: list[Key] = Field(default_factory=list)
    mapping_input: list[MappedModel] | None = None
    mapping_output: list[MappedModel] | None = None
    carry: bool = True


class EntryModel(ChildModel):
    """A pipeline in a stage's config: exactly one of ``pipeline_config``, ``ref`` and ``endpoint_url``."""

    stage_node_id: str
    pipeline_config: dict[str, Any] | None = None
    condition: str | list[Key] | None = None


class StageModel(StrictModel):
    """A stage's config, ``schema_version`` 1.0."""

    schema_version: str = "1.0"
    stage_id: str = "stage"
    role: Literal["philosopher", "author", "environment", "architect", "creator"] | None = None
    pipelines: list[EntryModel] = Field(default_factory=list)
    edges: list[EdgeModel] = Field(default_factory=list)
    state_contract: ContractModel = Field(default_factory=ContractModel)
    execution_condition: str | list[Key] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


def stage_to_config(stage: Stage) -> dict[str, Any]:
    """Return the config of a stage."""
    pipelines = []
    for node_id, pipeline in stage.pipelines.items():
        config = pipeline.to_config()
        entry = {"stage_node_id": node_id, **(config if "endpoint_url" in config else {"pipeline_config": config})}
        if node_id in stage.pipeline_conditions:
            entry["condition"] = stage.pipeline_conditions[node_id].to_config()
        pipelines.append({**entry, "trainable": stage.is_trainable(node_id)})
    config = {"schema_version": stage.schema_version, "stage_id": stage.stage_id}
    if stage.role is not None:
        config["role"] = stage.role
    config["pipelines"] = pipelines
    config["edges"] = [edge_to_config(edge) for edge in stage.get_edges()]
    config["state_contract"] = stage.contract.to_config()
    if stage.execution_condition is not None:
        config["execution_condition"] = stage.execution_condition.to_config()
    return {**config, "metadata": copy.deepcopy(stage.metadata)} if stage.metadata else config


def stage_from_config(cls: type[AnyStage], config: Mapping[str, Any], options: BuildOptions, validate: bool) -> AnyStage:
    """Build a stage from its config; arguments as for `Stage.from_config`."""
    document, where, here = open_config(cls, config, options)
    model = read_model(StageModel, document, where)
    stage = cls(model.stage_id, role=model.role, metadata=copy.deepcopy(model.metadata))
    for entry, pipeline in build_children(cls, model.pipelines, where, here):
        stage.add_pipeline(pipeline, entry.stage_node_id, condition=entry.condition, trainable=entry.trainable)
    for edge in model.edges:
        stage.add_edge(edge.source_node, edge.source_port, edge.target_node, edge.target_port)
    contract = model.state_contract
    stage.set_state_contract(
        contract.input_blocks,
        contract.output_blocks,
        None if contract.mapping_input is None else [entry.model_dump() for entry in contract.mapping_input],
        None if contract.mapping_output is None else [entry.model_dump() for entry in contract.mapping_output],
        carry=contract.carry,
    )
    stage.set_execution_condition(model.execution_condition)
    if validate:
        stage.validate(strict=True, deep=True)
    return stage
