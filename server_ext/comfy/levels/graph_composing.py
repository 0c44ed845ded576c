"""Graphs and pipelines put together: each act takes configs and gives a new one, as `to_config` of the level would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yggdrasill.errors import InvalidArgument, format_options
from yggdrasill.foundation import Edge, Graph, Port
from yggdrasill.foundation.container import ConnectedContainer
from yggdrasill.pipeline import Pipeline
from yggdrasill.server_ext.comfy.levels.building import build, checked_level
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
    """A graph's config with one more block, and the id of its node; without a config a new graph of that id.

    Raises:
        UnknownBlockType, DuplicateName, InvalidArgument, InvalidConfig
    """
    if config is None:
        graph = Graph(graph_id.strip() or "graph")
    else:
        if checked_level(config, "graph") == "comfy":
            raise InvalidArgument(
                "this graph is a ComfyUI workflow, which has nodes and no blocks; put it into a Pipeline beside a graph of blocks"
            )
        graph = build(config)
    node: Any = check({"nodes": [{"block_type": block_type, "config": dict(settings)}]})["nodes"][0]
    name = node_id.strip()
    named = (name, block_type) if name else (block_type,)
    new_id = graph.add_node(*named, config=node["config"], auto_connect=auto_connect, trainable=trainable)
    return graph.to_config(), new_id


def connect(config: Mapping[str, Any], lines: str, *, open_rest: bool) -> dict[str, Any]:
    """The config of a graph or pipeline with the connections of ``lines``; see `read_wires`.

    With ``open_rest``, inputs that nothing feeds and outputs that nothing takes become those of the whole, see `expose_rest`.

    Raises:
        InvalidArgument, InvalidEdge, DuplicateName, InvalidConfig
    """
    if checked_level(config, "graph", "pipeline") == "comfy":
        raise InvalidArgument("a ComfyUI workflow is connected in the editor; its ports are its Graph Input and Graph Output nodes")
    whole = build(config)
    _apply(whole, lines)
    if open_rest:
        expose_rest(whole)
    return dict(whole.to_config())


def make_pipeline(
    pipeline_id: str, graphs: Sequence[Mapping[str, Any]], names: str, lines: str, *, open_rest: bool = True
) -> dict[str, Any]:
    """The config of a pipeline of ``graphs``, called ``names`` (divided by commas) or by their ids.

    Without ``lines`` each graph takes what those before it give, see `join_by_name`.

    Raises:
        InvalidArgument, InvalidEdge, DuplicateName, InvalidConfig
    """
    if not graphs:
        raise InvalidArgument("a pipeline without graphs does nothing; link at least one graph")
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
    """What each child is called: by ``names``, in order, else by its own id, which gets a number where it is taken.

    Raises:
        InvalidArgument: more names than children.
    """
    given = [name.strip() for name in names.split(",")] if names.strip() else []
    if len(given) > len(children):
        raise InvalidArgument(
            f"there are {len(given)} names ({format_options(given)}) and {len(children)} {word}s; link more, or name fewer"
        )
    taken = {name for name in given if name}
    ids = []
    for number, child in enumerate(children):
        if number < len(given) and given[number]:
            ids.append(given[number])
            continue
        own = next((str(child[field]) for field in id_fields if child.get(field)), word)
        name, count = own, 1
        while name in taken:
            count += 1
            name = f"{own}_{count}"
        taken.add(name)
        ids.append(name)
    return ids


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
    """Open every input that nothing feeds and every output that nothing takes, under its own name where that is free."""
    edges = whole.get_edges()
    fed, used = {(e.target_node, e.target_port) for e in edges}, {(e.source_node, e.source_port) for e in edges}
    opened = {(entry[whole.child_id_field], entry["port_name"]) for entry in [*whole.get_input_spec(), *whole.get_output_spec()]}
    inputs = [end for end in _ports(whole, "inputs") if end not in fed | opened]
    outputs = [end for end in _ports(whole, "outputs") if end not in used | opened]
    for ends, spec, expose in (
        (inputs, whole.get_input_spec(), whole.expose_input),
        (outputs, whole.get_output_spec(), whole.expose_output),
    ):
        names = [entry["name"] for entry in spec] + [port for _, port in ends]
        for child, port in ends:
            expose(child, port, port if names.count(port) == 1 else None)


def _ports(whole: ConnectedContainer, side: str) -> Iterator[tuple[str, str]]:
    for child in whole._children:
        for port in whole._side(child, "inputs" if side == "inputs" else "outputs"):
            yield child, port


def join_by_name(pipeline: Pipeline) -> None:
    """Link each graph to those before it, the nearest first: an input takes the output of its name and type, else the only one of its
    type of the nearest graph, if it is the only input of that type."""
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
    fitting = [name for name, found in pipeline.interface(graph).outputs.items() if found.dtype == port.dtype]
    return (graph, fitting[0]) if len(fitting) == 1 else None
