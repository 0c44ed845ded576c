"""The executor's overhead: per node beside a bare loop and three other engines, per child of a pipeline and a stage, and of planning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.blocks import Add, Double, Identity, Step, Total
from benchmarks.figures import Figure
from benchmarks.peers import PEERS, peer_version
from benchmarks.shapes import START, Part, chain, evaluate, layered, wide
from benchmarks.timing import Act, interleave, median, ratios, seconds
from yggdrasill.foundation import AbstractBaseBlock, Edge, Graph
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage

__all__ = ["run"]

ROUNDS = 15
ALONE = {
    "chain": ("a chain of 1,000 nodes", chain(1000)),
    "wide": ("1 -> 1,000 -> 1", wide(1000)),
    "layered": ("32 layers of 32", layered(32, 32)),
}
BESIDE_PEERS = {
    "chain": ("a chain of 300", chain(300)),
    "wide": ("1 -> 300 -> 1", wide(300)),
    "layered": ("10 layers of 30", layered(10, 30)),
}
KINDS: dict[str, type[AbstractBaseBlock]] = {"step": Step, "add": Add, "total": Total}
TIMES_THE_LOOP = 5.0
LOOKUP_SECONDS = 100e-9
LEVEL_SECONDS = 1e-3
LEVEL_SIZES = (20, 1_000)
LEVEL_GROWTH = 1.5
BELOW_PEERS = 10.0
PLAN_SECONDS = 0.1
PLAN_GROWTH = 1.5
PLAN_SIZES = (1_000, 10_000, 100_000)


def run() -> list[Figure]:
    """Return figures per node (our loop relative to the bare loop, every peer relative to our loop), per child of a level, and of planning."""
    figures = []
    for shape, (title, parts) in ALONE.items():
        graph = build(parts)
        taken = interleave(title, {"ours": _ours(graph, parts), "bare": _bare(shape, graph, parts)}, ROUNDS, {"ours": 20, "bare": 100})
        figures.append(
            Figure.of(
                f"{title}: a node",
                "a bare Python loop over the same blocks",
                ratios(taken["ours"], taken["bare"]),
                at_most=TIMES_THE_LOOP,
                parts={name: seconds(median(times) / len(parts)) for name, times in taken.items()},
            )
        )
    for shape, (title, parts) in BESIDE_PEERS.items():
        figures += _beside_peers(shape, title, parts)
    return [*figures, _lookup(), *_levels(), *_planning()]


def build(parts: list[Part]) -> Graph:
    """Return our graph of a shape: input ``start``, output ``answer``."""
    graph = Graph("shape")
    for part in parts:
        graph.add_node(KINDS[part.kind](part.name), node_id=part.name, auto_connect=False)
        for i, source in enumerate(part.sources):
            port = ("a", "b")[i] if part.kind == "add" else "x"
            if source == START:
                graph.expose_input(part.name, port, START)
            else:
                graph.add_edge(Edge(source, "y", part.name, port))
    graph.expose_output(parts[-1].name, "y", "answer")
    return graph


def _ours(graph: Graph, parts: list[Part]) -> Act:
    return _checked(lambda: graph.run({START: 1})["answer"], parts, "yggdrasill")


def _checked(act: Callable[[], Any], parts: list[Part], name: str) -> Act:
    """Return the act after its answer was checked."""
    answer = act()
    if answer != evaluate(parts, 1):
        raise AssertionError(f"{name} returned {answer} instead of {evaluate(parts, 1)}")
    return act


def _bare(shape: str, graph: Graph, parts: list[Part]) -> Act:
    """Return a loop written by hand for this one shape: without names and buffers, only calls of ``forward``."""
    forwards = [graph.nodes[part.name].block.forward for part in parts]
    return _checked({"chain": _bare_chain, "wide": _bare_wide, "layered": _bare_layered}[shape](forwards, parts), parts, "the bare loop")


def _bare_chain(forwards: list[Any], parts: list[Part]) -> Act:
    def act() -> Any:
        value = 1
        for forward in forwards:
            value = forward({"x": value})["y"]
        return value

    return act


def _bare_wide(forwards: list[Any], parts: list[Part]) -> Act:
    first, *rays, last = forwards

    def act() -> Any:
        value = first({"x": 1})["y"]
        return last({"x": sum([ray({"x": value})["y"] for ray in rays])})["y"]

    return act


def _bare_layered(forwards: list[Any], parts: list[Part]) -> Act:
    width = len(parts[-1].sources)
    layers = [forwards[i : i + width] for i in range(0, len(forwards) - 1, width)]

    def act() -> Any:
        values = [forward({"x": 1})["y"] for forward in layers[0]]
        for layer in layers[1:]:
            values = [forward({"a": a, "b": b})["y"] for forward, a, b in zip(layer, values, [*values[1:], values[0]])]  # noqa: B905
        return forwards[-1]({"x": sum(values)})["y"]

    return act


def _beside_peers(shape: str, title: str, parts: list[Part]) -> list[Figure]:
    acts: dict[str, Act] = {"ours": _ours(build(parts), parts)}
    figures = []
    for name, prepare in PEERS.items():
        try:
            acts[name] = _checked(prepare(shape, parts, 1), parts, name)
        except ImportError as error:
            why = f"{name} is NOT INSTALLED ({error}): run `make bench`, or install the extra [bench]"
            figures.append(Figure.missing(f"{title}: a node of {name}", "our executor", why, at_least=BELOW_PEERS))
    taken = interleave(f"{title}, all engines", acts, ROUNDS, {"ours": 20, "Hamilton": 5})
    per_node = {name: seconds(median(times) / len(parts)) for name, times in taken.items()}
    return figures + [
        Figure.of(
            f"{title}: a node of {name} {peer_version(name)}",
            "our executor",
            ratios(taken[name], taken["ours"]),
            at_least=BELOW_PEERS,
            parts={"ours": per_node["ours"], name: per_node[name]},
        )
        for name in acts
        if name != "ours"
    ]


def _lookup() -> Figure:
    """The price of seeing a wrapped ``forward`` at once: looking it up at every call."""
    blocks = [kind(f"b{i}") for i in range(200) for kind in (Step, Double, Identity)]
    bound = [block.forward for block in blocks]
    inputs = {"x": 1}

    def looked_up() -> None:
        for block in blocks:
            block.forward(inputs)

    def kept() -> None:
        for forward in bound:
            forward(inputs)

    taken = interleave("lookup", {"looked up": looked_up, "kept": kept}, ROUNDS, {"looked up": 100, "kept": 100})
    extra = [(a - b) / len(blocks) for a, b in zip(taken["looked up"], taken["kept"], strict=True)]
    return Figure.of(
        "looking `forward` up at every call",
        f"the limit of {seconds(LOOKUP_SECONDS)}",
        [value / LOOKUP_SECONDS for value in extra],
        at_most=1.0,
        parts={"a call": seconds(median(extra))},
    )


def _levels() -> list[Figure]:
    """The overhead of levels over chains of one-block graphs, which computes next to nothing."""
    figures = []
    for level, make in (("pipeline", _pipeline), ("stage", _stage)):
        acts = {f"{level} {size}": make(size) for size in LEVEL_SIZES}
        small, large = (f"{level} {size}" for size in LEVEL_SIZES)
        taken = interleave(f"a {level}", acts, ROUNDS, {small: 50, large: 2})
        figures += [
            Figure.of(
                f"a {level} of {LEVEL_SIZES[0]} children",
                f"the limit of {seconds(LEVEL_SECONDS)}",
                [value / LEVEL_SECONDS for value in taken[small]],
                at_most=1.0,
                parts={name: seconds(median(times)) for name, times in taken.items()},
            ),
            Figure.of(
                f"a child of a {level} of {LEVEL_SIZES[1]:,}",
                f"a child of a {level} of {LEVEL_SIZES[0]}",
                [ratio * LEVEL_SIZES[0] / LEVEL_SIZES[1] for ratio in ratios(taken[large], taken[small])],
                at_most=LEVEL_GROWTH,
                note="1 = linear",
            ),
        ]
    return figures


def _pipeline(size: int) -> Act:
    pipeline = Pipeline("pipeline")
    for i in range(size):
        pipeline.add_graph(build(chain(1)), f"g{i}")
        if i:
            pipeline.add_edge(f"g{i - 1}", "answer", f"g{i}", START)
    pipeline.expose_input("g0", START, START)
    pipeline.expose_output(f"g{size - 1}", "answer", "answer")
    return _equal(lambda: pipeline.run({START: 0})["answer"], size)


def _stage(size: int) -> Act:
    stage = Stage("stage")
    for i in range(size):
        stage.add_pipeline(build(chain(1)), f"p{i}")
        if i:
            stage.add_edge(f"p{i - 1}", "answer", f"p{i}", START)
    stage.set_state_contract([1], [2])
    return _equal(lambda: stage.run({1: 0})[2], size)


def _equal(act: Callable[[], Any], expected: int) -> Act:
    """Return the act, once it has given the right answer."""
    if act() != expected:
        raise AssertionError(f"got {act()} instead of {expected}")
    return act


def _planning() -> list[Figure]:
    graphs = {size: build(layered(size // 100, 100)) for size in PLAN_SIZES}
    acts = {f"{name} {size}": make(graph) for size, graph in graphs.items() for name, make in (("plan", _planner), ("pass", _one_pass))}
    by_size = interleave("plan", acts, ROUNDS, {"plan 1000": 20, "pass 1000": 20, "plan 10000": 2, "pass 10000": 2})
    small, middle, large = PLAN_SIZES
    plan_growth = ratios(by_size[f"plan {large}"], by_size[f"plan {small}"])
    pass_growth = ratios(by_size[f"pass {large}"], by_size[f"pass {small}"])
    parts = {f"{size:,} nodes": seconds(median(by_size[f"plan {size}"])) for size in PLAN_SIZES}
    exponents, floor = ([math.log(ratio) / math.log(large / small) for ratio in growth] for growth in (plan_growth, pass_growth))
    return [
        Figure.of(
            "plan of 10,000 nodes and 20,000 edges",
            f"the limit of {seconds(PLAN_SECONDS)}",
            [value / PLAN_SECONDS for value in by_size[f"plan {middle}"]],
            at_most=1.0,
            parts=parts,
        ),
        Figure.of(
            "growth of a plan from 1,000 to 100,000 nodes",
            "the growth of one pass over the same edges",
            ratios(plan_growth, pass_growth),
            at_most=PLAN_GROWTH,
            parts={"plan": f"{median(plan_growth):.0f}-fold", "pass": f"{median(pass_growth):.0f}-fold"},
            note="linear work grows with both alike, and caches affect both; n log n would give 1.67, a quadratic plan 100",
        ),
        Figure.of(
            "the growth as an exponent of the size", "1 = linear", exponents, parts={"one pass over the edges": f"{median(floor):.3g}"}
        ),
    ]


def _planner(graph: Graph) -> Act:
    def act() -> Any:
        graph.execution_version += 1  # as after a change of the structure, so that the cached plan is not used
        return graph.plan()

    return act


def _one_pass(graph: Graph) -> Act:
    """Read every node and every edge once, the minimum work of any plan."""
    nodes, edges = graph.node_ids, graph.get_edges()

    def act() -> Any:
        index = {node: i for i, node in enumerate(nodes)}
        targets: list[list[int]] = [[] for _ in nodes]
        for edge in edges:
            targets[index[edge.source_node]].append(index[edge.target_node])
        return targets

    return act
