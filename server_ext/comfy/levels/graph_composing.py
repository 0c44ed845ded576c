"""Composes graphs and pipelines: each function takes configs and returns a new one, as `to_config` of the level would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from yggdrasill.errors import InvalidArgument, format_options
from yggdrasill.foundation import Edge, Graph, Port
from yggdrasill.foundation.container import ConnectedContainer
from yggdrasill.pipeline import Pipeline
from yggdrasill.server_ext.comfy.levels.building import build, checked_level, retain
from yggdrasill.server_ext.comfy.levels.host_paths import check
from yggdrasill.server_ext.comfy.levels.wires import read_wires

__all__ = ["add_block", "child_ids", "connect", "expose_rest", "join_by_name", "make_pipeline"]


def add_block(
    config: Mapping[str, Any] | None,
    graph_id: str,
    node_id: str,
    block_type: str,
    settings: Mapping[str, Any],
    *,
    auto_connect: bool = True,
    trainable: bool = True,
) -> tuple[dict[str, Any], str]:
    """Return a graph's config with one more block, and the id of its node. Without a config, a new graph with that id is created.

    Raises:
        UnknownBlockType, DuplicateName, InvalidArgument, InvalidConfig
    """
    if config is None:
        graph = Graph(graph_id.strip() or "graph")
    else:
        if checked_level(config, "graph") == "comfy":
            raise InvalidArgument("Blocks cannot be added to a ComfyUI workflow. Combine it with a graph of blocks in a Pipeline.")
        graph = build(config)
    node: Any = check({"nodes": [{"block_type": block_type, "config": dict(settings)}]})["nodes"][0]
    name = node_id.strip()
    named = (name, block_type) if name else (block_type,)
    new_id = graph.add_node(*named, config=node["config"], auto_connect=auto_connect, trainable=trainable)
    return _retained(graph), new_id


def connect(config: Mapping[str, Any], lines: str, *, open_rest: bool) -> dict[str, Any]:
    """Return the config of a graph or pipeline with the connections in ``lines``; see `read_wires`.

    With ``open_rest``, unconnected inputs and outputs are exposed; see `expose_rest`.

    Raises:
        InvalidArgument, InvalidEdge, DuplicateName, InvalidConfig
    """
    if checked_level(config, "graph", "pipeline") == "comfy":
        raise InvalidArgument("A ComfyUI workflow is connected in the editor. Its ports are its Graph Input and Graph Output nodes.")
    whole = build(config)
    _apply(whole, lines)
    if open_rest:
        expose_rest(whole)
    return _retained(whole)


def make_pipeline(
    pipeline_id: str, graphs: Sequence[Mapping[str, Any]], names: str, lines: str, *, open_rest: bool = True
) -> dict[str, Any]:
    """Return the config of a pipeline of ``graphs``. Their ids are those in ``names`` (comma-separated), else their own.

    Without ``lines``, inputs are connected to earlier outputs; see `join_by_name`.

    Raises:
        InvalidArgument, InvalidEdge, DuplicateName, InvalidConfig
    """
    if not graphs:
        raise InvalidArgument("The pipeline has no graphs. Link at least one graph.")
    pipeline = Pipeline(pipeline_id.strip() or "pipeline")
    for graph, name in zip(graphs, child_ids(graphs, names, ("graph_id", "pipeline_id"), "graph"), strict=True):
        checked_level(graph, "graph", "pipeline")
        pipeline.add_graph(build(graph), name)
    if lines.strip():
        _apply(pipeline, lines)
    else:
        join_by_name(pipeline)
    if open_rest:
        expose_rest(pipeline)
    pipeline.validate(strict=True)
    return pipeline.to_config()


def child_ids(children: Sequence[Mapping[str, Any]], names: str, id_fields: Sequence[str], word: str) -> list[str]:
    """Return the id of each child: the name in ``names``, in order, else its own id, with a number if that is taken.

    Raises:
        InvalidArgument: there are more names than children.
    """
    given_names = [name.strip() for name in names.split(",")] if names.strip() else []
    if len(given_names) > len(children):
        raise InvalidArgument(
            f"Got {len(given_names)} names ({format_options(given_names)}) for {len(children)} {word}s. Link more {word}s, or remove names."
        )
    taken = {name for name in given_names if name}
    ids = []
    for number, child in enumerate(children):
        if number < len(given_names) and given_names[number]:
            ids.append(given_names[number])
            continue
        child_id = next((str(child[field]) for field in id_fields if child.get(field)), word)
        name, count = child_id, 1
        while name in taken:
            count += 1
            name = f"{child_id}_{count}"
        taken.add(name)
        ids.append(name)
    return ids


def _retained(whole: Any) -> dict[str, Any]:
    config = dict(whole.to_config())
    retain(config, whole)
    return config


def _apply(whole: Graph | Pipeline, lines: str) -> None:
    for wire in read_wires(lines, whole.node_ids, whole.child_word):
        if wire.source and wire.target:
            if isinstance(whole, Graph):
                whole.add_edge(Edge(wire.source, wire.source_port, wire.target, wire.target_port))
            else:
                whole.add_edge(wire.source, wire.source_port, wire.target, wire.target_port)
        elif wire.target:
            whole.expose_input(wire.target, wire.target_port, wire.source_port or None)
        else:
            whole.expose_output(wire.source, wire.source_port, wire.target_port or None)


def expose_rest(whole: ConnectedContainer) -> None:
    """Expose every input without a source and every unused output, under its own name if that is unique."""
    edges = whole.get_edges()
    connected, used = {(e.target_node, e.target_port) for e in edges}, {(e.source_node, e.source_port) for e in edges}
    exposed = {(entry[whole.child_id_field], entry["port_name"]) for entry in [*whole.get_input_spec(), *whole.get_output_spec()]}
    inputs = [end for end in _ports(whole, "input") if end not in connected | exposed]
    outputs = [end for end in _ports(whole, "output") if end not in used | exposed]
    for ends, spec, expose in (
        (inputs, whole.get_input_spec(), whole.expose_input),
        (outputs, whole.get_output_spec(), whole.expose_output),
    ):
        names = [entry["name"] for entry in spec] + [port for _, port in ends]
        for child, port in ends:
            expose(child, port, port if names.count(port) == 1 else None)


def _ports(whole: ConnectedContainer, side: Literal["input", "output"]) -> Iterator[tuple[str, str]]:
    for child in whole.children:
        for port in whole.ports(child, side):
            yield child, port


def join_by_name(pipeline: Pipeline) -> None:
    """Connect the inputs of each graph to outputs of earlier graphs, the nearest first.

    An input is connected to the output of the same name and a compatible type, else to the only output of its type of the preceding graph, if it
    is the only input of that type.
    """
    earlier: list[str] = []
    for graph in pipeline.node_ids:
        inputs = pipeline.interface(graph).inputs
        for name, port in inputs.items():
            source = next((end for other in reversed(earlier) if (end := _same_name(pipeline, other, name, port))), None)
            if source is None and earlier and [p.dtype for p in inputs.values()].count(port.dtype) == 1:
                source = _only_one(pipeline, earlier[-1], port)
            if source is not None:
                pipeline.add_edge(*source, graph, name)
        earlier.append(graph)


def _same_name(pipeline: Pipeline, graph: str, name: str, port: Port) -> tuple[str, str] | None:
    found = pipeline.interface(graph).outputs.get(name)
    return (graph, name) if found is not None and found.compatible_with(port) else None


def _only_one(pipeline: Pipeline, graph: str, port: Port) -> tuple[str, str] | None:
    matching = [name for name, found in pipeline.interface(graph).outputs.items() if found.dtype == port.dtype]
    return (graph, matching[0]) if len(matching) == 1 else None
