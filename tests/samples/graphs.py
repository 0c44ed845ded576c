"""Graphs of sample blocks: a short notation, and a hypothesis strategy that generates runnable graphs.

`graph_cases` draws configs and inputs, so that the same case can run as a graph, inside a pipeline, or on an endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from samples.blocks import register_samples
from yggdrasill.foundation import BlockRegistry, Edge, Graph, ReusePool
from yggdrasill.values import dumps

__all__ = ["GraphCase", "bits", "edge", "graph_cases", "graph_of", "sample_registry"]


def sample_registry() -> BlockRegistry:
    """Return a registry with the sample blocks."""
    registry = BlockRegistry()
    register_samples(registry)
    return registry


def edge(text: str) -> Edge:
    """Return the edge written ``a.x -> b.y``."""
    source, _, target = text.partition(" -> ")
    (from_node, from_port), (to_node, to_port) = source.rsplit(".", 1), target.rsplit(".", 1)
    return Edge(from_node, from_port, to_node, to_port)


def graph_of(
    nodes: Mapping[str, str | tuple[str, Mapping[str, Any]]],
    edges: Iterable[str] = (),
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
    *,
    graph_id: str = "graph",
    pool: ReusePool | None = None,
    **metadata: Any,
) -> Graph:
    """Build a graph from ``{"a": "add", "b": ("add", {"offset": 1})}``, ``["a.out -> b.a"]``, and exposed ports as
    ``node.port`` or ``node.port = name``."""
    graph = Graph(graph_id, registry=sample_registry(), pool=pool, metadata=metadata)
    for node_id, what in nodes.items():
        block_type, config = (what, None) if isinstance(what, str) else what
        graph.add_node(node_id, block_type if "/" in block_type else f"sample/{block_type}", config=config, auto_connect=False)
    for text in edges:
        graph.add_edge(edge(text))
    for entries, expose in ((inputs, graph.expose_input), (outputs, graph.expose_output)):
        for entry in entries:
            place, _, name = entry.partition(" = ")
            node_id, port = place.rsplit(".", 1)
            expose(node_id, port, name or None)
    return graph


def bits(value: Any) -> bytes:
    """Return ``value`` as the codec's bytes. Equal bytes are equal values in every bit, including NaN and strides."""
    return dumps(value)


@dataclass
class GraphCase:
    """A graph's config, its inputs by external key, and the iterations of its cycles."""

    config: dict[str, Any]
    inputs: dict[str, float]
    steps: int
    traits: set[str] = field(default_factory=set)

    def build(self, pool: ReusePool | None = None) -> Graph:
        """Build a new graph of the case, which shares no blocks with others unless a pool is given."""
        return Graph.from_config(self.config, sample_registry(), validate=True, pool=pool or ReusePool())


#: Type -> (required inputs, numeric outputs, outputs that may stay unwritten).
_SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "add": (("a", "b"), ("out",), ()),
    "identity": (("x",), ("y",), ()),
    "double": (("x",), ("y",), ()),
    "accumulate": (("x",), ("total",), ()),
    "mix": (("terms",), ("out",), ()),
    "composite": (("a", "b"), ("out",), ()),
    "noise": ((), ("noise",), ()),
    "branch": (("x",), (), ("positive", "negative")),
    "collect": ((), (), ()),
}
#: Optional ports that take any number of edges, from numeric outputs and from those that may stay unwritten.
_MANY = {"mix": ("terms", "chosen"), "collect": ("sum", "first", "dict")}


@st.composite
def graph_cases(draw: st.DrawFn, *, max_nodes: int = 7, cyclic: bool | None = None, random: bool = True) -> GraphCase:
    """Draw a valid graph over all aggregation policies, with or without cycles (``cyclic`` None: either), with its inputs.
    ``random=False`` excludes blocks that use random numbers."""
    draw_cycles = draw(st.booleans()) if cyclic is None else cyclic
    noisy = random and draw(st.booleans())
    kinds = [kind for kind in _SHAPES if kind != ("branch" if noisy else "noise")]
    ids = draw(st.permutations("abcdefghij"[: draw(st.integers(1, max_nodes))]))
    chosen = {node_id: draw(st.sampled_from(kinds)) for node_id in ids}
    steps = draw(st.integers(1, 3) if draw_cycles else st.just(1))
    graph = graph_of({node_id: (kind, _config(draw, kind)) for node_id, kind in chosen.items()}, graph_id="case")
    if draw_cycles and draw(st.booleans()):
        graph.metadata["cycle_order"] = draw(st.permutations(ids))
    _wire_forward(draw, graph, chosen)
    if draw_cycles:
        _wire_back(draw, graph, chosen)
    for node_id in ids:
        for port in graph.interface(node_id).outputs:
            if not any(link.source_port == port for link in graph.get_edges_out(node_id)) or draw(st.booleans()):
                graph.expose_output(node_id, port, draw(st.sampled_from([None, f"{node_id} {port}"])))
    names = dict.fromkeys(entry["name"] for entry in graph.get_input_spec())
    inputs = {name: draw(st.floats(-8, 8, width=16)) for name in names}
    traits = {*chosen.values(), *(("cycle",) if graph.plan().cycles else ())}
    return GraphCase(graph.to_config(), inputs, steps, traits)


def _config(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    if kind in {"add", "composite"}:
        return {"offset": draw(st.integers(-3, 3))}
    if kind == "accumulate":
        return {"start": float(draw(st.integers(-3, 3)))}
    return {}


def _wire_forward(draw: st.DrawFn, graph: Graph, chosen: Mapping[str, str]) -> None:
    numeric: list[tuple[str, str]] = []
    uncertain: list[tuple[str, str]] = []
    for node_id, kind in chosen.items():
        required, outputs, maybe = _SHAPES[kind]
        for port in required:
            source = draw(st.sampled_from([None, *numeric]))
            if source is None:
                graph.expose_input(node_id, port, draw(st.sampled_from([None, "one", "two"])))
            else:
                graph.add_edge(Edge(*source, node_id, port))
        for port in _MANY.get(kind, ()):
            sources = numeric if port in required else [*numeric, *uncertain]
            for source in draw(st.lists(st.sampled_from(sources), max_size=3, unique=True)) if sources else ():
                graph.add_edge(Edge(*source, node_id, port))
        numeric += [(node_id, port) for port in outputs]
        uncertain += [(node_id, port) for port in maybe]


def _wire_back(draw: st.DrawFn, graph: Graph, chosen: Mapping[str, str]) -> None:
    """Draw edges that may close cycles, and remove those that make the graph invalid."""
    sources = [(node_id, port) for node_id, kind in chosen.items() for port in _SHAPES[kind][1]]
    targets = [(node_id, port) for node_id, kind in chosen.items() for port in dict.fromkeys((*_SHAPES[kind][0], *_MANY.get(kind, ())))]
    if not sources or not targets:
        return
    for _ in range(draw(st.integers(1, 4))):
        link = Edge(*draw(st.sampled_from(sources)), *draw(st.sampled_from(targets)))
        if link not in graph.get_edges():
            graph.add_edge(link)
            if not graph.validate(strict=False).is_valid:
                graph.remove_edge(link)
