"""Conversion between a graph and its config. Ports are not stored: blocks declare them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from yggdrasill.errors import error_context
from yggdrasill.foundation.config import BuildOptions, is_ref, open_config, read_model, resolve_ref
from yggdrasill.foundation.edges import Edge, ExposedPort
from yggdrasill.foundation.node import Node
from yggdrasill.foundation.pool import absolute_references
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.foundation.schemas import GraphModel, NodeModel

if TYPE_CHECKING:
    from yggdrasill.foundation.graph import Graph

__all__ = ["edge_to_config", "graph_from_config", "graph_to_config"]

AnyGraph = TypeVar("AnyGraph", bound="Graph")


def edge_to_config(edge: Edge) -> dict[str, str]:
    """Return the four fields of an edge."""
    return {
        "source_node": edge.source_node,
        "source_port": edge.source_port,
        "target_node": edge.target_node,
        "target_port": edge.target_port,
    }


def graph_to_config(graph: Graph) -> dict[str, Any]:
    """Return the config of a graph."""
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
    """Build a graph from its config. A graph is placed as a whole, so the resolver is not used inside it."""
    document, where, here = open_config(cls, config, options)
    base = None if here.base_dir is None else Path(here.base_dir)
    registry = here.registry if here.registry is not None else BlockRegistry.global_registry()
    model = read_model(GraphModel, _with_node_refs(document, base, where, here.allow_ref, registry), where)
    graph = cls(model.graph_id, graph_kind=model.graph_kind, metadata=copy.deepcopy(model.metadata), registry=here.registry, pool=here.pool)
    _add_nodes(graph, model.nodes, base, where)
    for number, edge in enumerate(model.edges):
        with error_context(f"{where}, edges[{number}]"):
            graph.add_edge(Edge(edge.source_node, edge.source_port, edge.target_node, edge.target_port))
    for kind, entries in (("exposed_inputs", model.exposed_inputs), ("exposed_outputs", model.exposed_outputs)):
        for number, entry in enumerate(entries):
            with error_context(f"{where}, {kind}[{number}]"):
                graph.add_exposed_port(ExposedPort(entry.node_id, entry.port_name, entry.name), output=kind == "exposed_outputs")
    if validate:
        graph.validate(strict=True)
    return graph


def _block_ids(graph: Graph) -> dict[str, str]:
    """Return a block id per node; nodes have equal ids if and only if they share a block."""
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
        with error_context(f"{where}, nodes[{number}] ({node.node_id!r})"):
            config = absolute_references(graph.registry.get(node.block_type), node.config, base)
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


def _with_node_refs(document: Mapping[str, Any], base: Path | None, where: str, allow_ref: bool, registry: BlockRegistry) -> dict[str, Any]:
    nodes = document.get("nodes", [])
    if not isinstance(nodes, list):
        return dict(document)
    resolved = []
    for number, node in enumerate(nodes):
        if isinstance(node, Mapping) and is_ref(node.get("config")):
            config, folder = resolve_ref(node["config"], base, f"{where}, nodes[{number}].config", allow_ref)
            factory = _known_factory(registry, node.get("block_type"))
            resolved.append({**node, "config": absolute_references(factory, config, folder) if isinstance(config, Mapping) else config})
        else:
            resolved.append(node)
    return {**document, "nodes": resolved}


def _known_factory(registry: BlockRegistry, block_type: Any) -> Any:
    """The factory of a type, None for one that is not registered, which is reported when the node is built."""
    return registry.get(block_type) if isinstance(block_type, str) and block_type in registry else None
