"""Models of a pipeline's config, and conversion between a pipeline and its config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from yggdrasill.foundation.config import BuildOptions, open_config, read_model
from yggdrasill.foundation.edges import ExposedPort
from yggdrasill.foundation.graph_config import edge_to_config
from yggdrasill.foundation.kinds import build_children
from yggdrasill.foundation.schemas import ChildModel, EdgeModel, StrictModel

if TYPE_CHECKING:
    from yggdrasill.pipeline.pipeline import Pipeline

__all__ = ["EntryModel", "ExposedModel", "PipelineModel", "pipeline_from_config", "pipeline_to_config"]

AnyPipeline = TypeVar("AnyPipeline", bound="Pipeline")


class EntryModel(ChildModel):
    """A graph in a pipeline's config: exactly one of ``graph_config``, ``ref`` and ``endpoint_url``."""

    pipeline_node_id: str
    graph_config: dict[str, Any] | None = None


class ExposedModel(StrictModel):
    """An exposed port in a pipeline's config."""

    pipeline_node_id: str
    port_name: str
    name: str | None = None


class PipelineModel(StrictModel):
    """A pipeline's config, ``schema_version`` 1.0."""

    schema_version: str = "1.0"
    pipeline_id: str = "pipeline"
    graphs: list[EntryModel] = Field(default_factory=list)
    edges: list[EdgeModel] = Field(default_factory=list)
    exposed_inputs: list[ExposedModel] = Field(default_factory=list)
    exposed_outputs: list[ExposedModel] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)


def pipeline_to_config(pipeline: Pipeline) -> dict[str, Any]:
    """Return the config of a pipeline."""
    graphs = []
    for node_id, graph in pipeline.graphs.items():
        config = graph.to_config()
        body = config if "endpoint_url" in config else {"graph_config": config}
        graphs.append({"pipeline_node_id": node_id, **body, "trainable": pipeline.is_trainable(node_id)})
    config = {
        "schema_version": pipeline.schema_version,
        "pipeline_id": pipeline.pipeline_id,
        "graphs": graphs,
        "edges": [edge_to_config(edge) for edge in pipeline.get_edges()],
        "exposed_inputs": [entry.to_config("pipeline_node_id") for entry in pipeline.exposed_inputs],
        "exposed_outputs": [entry.to_config("pipeline_node_id") for entry in pipeline.exposed_outputs],
    }
    return {**config, "metadata": copy.deepcopy(pipeline.metadata)} if pipeline.metadata else config


def pipeline_from_config(cls: type[AnyPipeline], config: Mapping[str, Any], options: BuildOptions, validate: bool) -> AnyPipeline:
    """Build a pipeline from its config; arguments as for `Pipeline.from_config`."""
    document, where, here = open_config(cls, config, options)
    model = read_model(PipelineModel, document, where)
    pipeline = cls(model.pipeline_id, metadata=copy.deepcopy(model.metadata))
    for entry, graph in build_children(cls, model.graphs, where, here):
        pipeline.add_graph(graph, entry.pipeline_node_id, trainable=entry.trainable)
    for edge in model.edges:
        pipeline.add_edge(edge.source_node, edge.source_port, edge.target_node, edge.target_port)
    for entries, output in ((model.exposed_inputs, False), (model.exposed_outputs, True)):
        for exposed in entries:
            pipeline.add_exposed_port(ExposedPort(exposed.pipeline_node_id, exposed.port_name, exposed.name), output=output)
    if validate:
        pipeline.validate(strict=True, deep=True)
    return pipeline
