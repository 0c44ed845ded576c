"""A graph's config: its models, and graph <-> config. Ports are not stored: blocks declare them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from yggdrasill.foundation.config import BuildOptions, at, is_ref, open_config, read_model, resolve_ref
from yggdrasill.foundation.edges import Edge, ExposedPort
from yggdrasill.foundation.node import Node

if TYPE_CHECKING:
    from yggdrasill.foundation.graph import Graph

__all__ = ["EdgeModel", "ExposedModel", "GraphModel", "NodeModel", "StrictModel", "edge_to_config", "graph_from_config", "graph_to_config"]

AnyGraph = TypeVar("AnyGraph", bound="Graph")


class StrictModel(BaseModel):
    """A config model: unknown keys and wrong types are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EdgeModel(StrictModel):
    """An edge in a config."""

    source_node: str
    source_port: str
    target_node: str
    target_port: str


class NodeModel(StrictModel):
    """A node in a config. Nodes of one graph with the same ``block_id``, type and config have one block."""

    node_id: str
    block_type: str
    block_id: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    trainable: bool = True


class ExposedModel(StrictModel):
    """An exposed port in a config."""

    node_id: str
    port_name: str
    name: str | None = None


class GraphModel(StrictModel):
    """A graph's config, ``schema_version`` 1.0."""

    schema_version: str = "1.0"
    graph_id: str = "graph"
    graph_kind: Literal["diffusion", "llm", "vlm", "data", "generic"] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    nodes: list[NodeModel] = Field(default_factory=list)
    edges: list[EdgeModel] = Field(default_factory=list)
    exposed_inputs: list[ExposedModel] = Field(default_factory=list)
    exposed_outputs: list[ExposedModel] = Field(default_factory=list)


def edge_to_config(edge: Edge) -> dict[str, str]:
    """The four fields of an edge."""
    return {
        "source_node": edge.source_node,
        "source_port": edge.source_port,
        "target_node": edge.target_node,
        "target_port": edge.target_port,
    }


def graph_to_config(graph: Graph) -> dict[str, Any]:
    """The config of a graph."""
    config: dict[str, Any] = {"schema_version": graph.schema_version, "graph_id": graph.graph_id}
    if graph.graph_kind is not None:
        config["graph_kind"] = graph.graph_kind
    if graph.metadata:
        config["metadata"] = copy.deepcopy(graph.metadata)
    block_ids = _block_ids(graph)
    config["nodes"] = [
        {
            "node_id": node_id,
            "block_type": node.block_type,
            "block_id": block_ids[node_id],
            "config": copy.deepcopy(node.config),
            "trainable": node.trainable,
        }
        for node_id, node in graph.nodes.items()
    ]
    config["edges"] = [edge_to_config(edge) for edge in graph.get_edges()]
    config["exposed_inputs"] = [entry.to_config("node_id") for entry in graph.exposed_inputs]
    config["exposed_outputs"] = [entry.to_config("node_id") for entry in graph.exposed_outputs]
    return config


def graph_from_config(cls: type[AnyGraph], config: Mapping[str, Any], options: BuildOptions, validate: bool) -> AnyGraph:
    """Build a graph from its config; a graph is placed whole, so the resolver changes nothing inside it."""
    document, where, here = open_config(cls, config, options)
    base = None if here.base_dir is None else Path(here.base_dir)
    model = read_model(GraphModel, _with_node_refs(document, base, where, here.allow_ref), where)
    graph = cls(model.graph_id, graph_kind=model.graph_kind, metadata=copy.deepcopy(model.metadata), registry=here.registry, pool=here.pool)
    _add_nodes(graph, model.nodes, base, where)
    for number, edge in enumerate(model.edges):
        with at(f"{where}, edges[{number}]"):
            graph.add_edge(Edge(edge.source_node, edge.source_port, edge.target_node, edge.target_port))
    for kind, entries in (("exposed_inputs", model.exposed_inputs), ("exposed_outputs", model.exposed_outputs)):
        for number, entry in enumerate(entries):
            with at(f"{where}, {kind}[{number}]"):
                graph.add_exposed_port(ExposedPort(entry.node_id, entry.port_name, entry.name), output=kind == "exposed_outputs")
    if validate:
        graph.validate(strict=True)
    return graph


def _block_ids(graph: Graph) -> dict[str, str]:
    """A block id per node: the same for nodes that share a block, and for no others."""
    owners: dict[str, int] = {}
    block_ids = {}
    for node_id, node in graph.nodes.items():
        name, number = node.block.block_id, 1
        while owners.setdefault(name, id(node.block)) != id(node.block):
            number += 1
            name = f"{node.block.block_id}_{number}"
        block_ids[node_id] = name
    return block_ids


def _add_nodes(graph: Graph, nodes: list[NodeModel], base: Path | None, where: str) -> None:
    shared: dict[tuple[str, str], Node] = {}
    for number, node in enumerate(nodes):
        with at(f"{where}, nodes[{number}] ({node.node_id!r})"):
            config = _with_absolute_checkpoint(node.config, base)
            twin = shared.get((node.block_type, node.block_id or "")) if graph.pool.shares else None
            if twin is not None and _without_defaults(twin.config) == _without_defaults(config):
                graph.add_node(Node(node.node_id, twin.block, node.trainable, config.get("defaults") or {}))
                continue
            graph.add_node(
                node.node_id, node.block_type, config=config, block_id=node.block_id, auto_connect=False, trainable=node.trainable
            )
            if node.block_id:
                shared[node.block_type, node.block_id] = graph.get_node(node.node_id)


def _without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "defaults"}


def _with_node_refs(document: Mapping[str, Any], base: Path | None, where: str, allow_ref: bool) -> dict[str, Any]:
    nodes = document.get("nodes", [])
    if not isinstance(nodes, list):
        return dict(document)
    resolved = []
    for number, node in enumerate(nodes):
        if isinstance(node, Mapping) and is_ref(node.get("config")):
            config, folder = resolve_ref(node["config"], base, f"{where}, nodes[{number}].config", allow_ref)
            resolved.append({**node, "config": _with_absolute_checkpoint(config, folder)})
        else:
            resolved.append(node)
    return {**document, "nodes": resolved}


def _with_absolute_checkpoint(config: dict[str, Any], base: Path | None) -> dict[str, Any]:
    """A checkpoint path in a config file is relative to that file, and absolute from here on."""
    for key in ("checkpoint_ref", "checkpoint_path"):
        path = config.get(key)
        if base is not None and isinstance(path, str) and "://" not in path and not Path(path).is_absolute():
            config = {**config, key: str((base / path).resolve())}
    return config
