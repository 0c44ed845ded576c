"""A pipeline's config: its models, and pipeline <-> config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from yggdrasill.errors import InvalidConfig
from yggdrasill.foundation.config import BuildOptions, open_config, read_model, resolve_ref
from yggdrasill.foundation.contract import build_foreign, default_resolver
from yggdrasill.foundation.edges import ExposedPort
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.graph_config import EdgeModel, StrictModel, edge_to_config

if TYPE_CHECKING:
    from yggdrasill.pipeline.dag import Dag
    from yggdrasill.pipeline.pipeline import Pipeline

__all__ = [
    "ChildModel",
    "EntryModel",
    "ExposedModel",
    "PipelineModel",
    "build_graph",
    "built_children",
    "pipeline_from_config",
    "pipeline_to_config",
    "place_child",
]

AnyPipeline = TypeVar("AnyPipeline", bound="Pipeline")
AnyChild = TypeVar("AnyChild", bound="ChildModel")


class ChildModel(StrictModel):
    """A child in a config: its own config stands there, at ``ref``, or at ``endpoint_url`` under ``graph_id``."""

    ref: str | None = None
    endpoint_url: str | None = None
    graph_id: str | None = None
    trainable: bool = True


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


def place_child(child_id: str, entry: Mapping[str, Any], options: BuildOptions, base_dir: Any = None) -> Any | None:
    """What the resolver runs at this place, or None to build it here; a url in the config always needs a resolver."""
    if base_dir is not None:
        entry = {**entry, "base_dir": base_dir}
    resolver = options.endpoints
    if resolver is None and entry.get("endpoint_url") is not None:
        resolver = default_resolver()
    placed = None if resolver is None else resolver.resolve((*options.path, child_id), entry)
    if placed is None and entry.get("endpoint_url") is not None:
        placed = default_resolver().resolve((*options.path, child_id), entry)
    return placed


def built_children(
    level: type[Dag],
    entries: Iterable[AnyChild],
    where: str,
    options: BuildOptions,
    build: Callable[[Mapping[str, Any], BuildOptions], Any],
) -> Iterator[tuple[AnyChild, Any]]:
    """The entries of a config of this level, each with its child: what the resolver runs there, else what ``build`` makes."""
    key = f"{level.child_word}_config"
    for number, entry in enumerate(entries):
        child_id = getattr(entry, level.child_id_field)
        config, base = _entry_config(entry, key, f"{where}, {level.child_word}s[{number}]", options)
        facts = {key: config, "endpoint_url": entry.endpoint_url, "graph_id": entry.graph_id or child_id}
        placed = place_child(child_id, {name: value for name, value in facts.items() if value}, options, base)
        yield entry, build(config, options.below(child_id, base)) if placed is None else placed


def _entry_config(entry: ChildModel, key: str, where: str, options: BuildOptions) -> tuple[dict[str, Any], Any]:
    """The inline config of an entry that names exactly one of ``key``, ``ref`` and ``endpoint_url``, and its base folder."""
    given = [name for name in (key, "ref", "endpoint_url") if getattr(entry, name) is not None]
    if len(given) != 1:
        raise InvalidConfig(f"{where} needs exactly one of {key!r}, 'ref' and 'endpoint_url'; it has {given or 'none'}")
    if given[0] == "endpoint_url":
        return {}, options.base_dir
    value = {"ref": entry.ref} if entry.ref is not None else getattr(entry, key)
    config, base = resolve_ref(value, options.base_dir, f"{where}.{given[0]}", options.allow_ref)
    return config, base


def pipeline_to_config(pipeline: Pipeline) -> dict[str, Any]:
    """The config of a pipeline."""
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
    """Build a pipeline; arguments as `Pipeline.from_config`."""
    document, where, here = open_config(cls, config, options)
    model = read_model(PipelineModel, document, where)
    pipeline = cls(model.pipeline_id, metadata=copy.deepcopy(model.metadata))
    for entry, graph in built_children(cls, model.graphs, where, here, build_graph):
        pipeline.add_graph(graph, entry.pipeline_node_id, trainable=entry.trainable)
    for edge in model.edges:
        pipeline.add_edge(edge.source_node, edge.source_port, edge.target_node, edge.target_port)
    for entries, output in ((model.exposed_inputs, False), (model.exposed_outputs, True)):
        for exposed in entries:
            pipeline.add_exposed_port(ExposedPort(exposed.pipeline_node_id, exposed.port_name, exposed.name), output=output)
    if validate:
        pipeline.validate(strict=True, deep=True)
    return pipeline


def build_graph(config: Mapping[str, Any], options: BuildOptions) -> Any:
    """A graph, or a pipeline used as one, from its config."""
    from yggdrasill.pipeline.pipeline import Pipeline

    document, base = resolve_ref(config, options.base_dir, "graph config", options.allow_ref)
    if isinstance(document, Mapping) and not {"graphs", "pipeline_id"}.isdisjoint(document):
        return Pipeline._build(document, options.at(base))
    foreign = build_foreign(document) if isinstance(document, Mapping) else None
    return Graph._build(document, options.at(base)) if foreign is None else foreign
