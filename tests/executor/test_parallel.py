"""Graphs in several threads: the same results, one bound, failures with the right place, order where it matters."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samples.graphs import GraphCase, bits, graph_cases, graph_of, sample_registry
from yggdrasill.errors import BlockFailed, Cancelled, InvalidArgument
from yggdrasill.executor import CancelToken, current_run, enter_run
from yggdrasill.executor.program import Program
from yggdrasill.foundation import AbstractBaseBlock, Edge, Graph, Node, Port, PortDirection
from yggdrasill.pipeline import Pipeline

modestly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Work(AbstractBaseBlock):
    """Sums its inputs and one; counts the calls that run at the same time."""

    now = peak = 0
    guard = threading.Lock()

    def __init__(self, sources: Iterable[str] = (), seconds: float = 0.0, error: Exception | None = None) -> None:
        super().__init__()
        self.sources, self.seconds, self.error = list(sources), seconds, error
        self.calls = 0

    def declare_ports(self) -> list[Port]:
        return [*(Port(name, PortDirection.IN) for name in self.sources), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        with Work.guard:
            Work.now += 1
            Work.peak = max(Work.peak, Work.now)
        try:
            time.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            return {"y": sum(inputs.values()) + 1}
        finally:
            with Work.guard:
                Work.now -= 1


class Meet(AbstractBaseBlock):
    """Returns once another block waits at the same barrier."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.barrier = barrier

    def declare_ports(self) -> list[Port]:
        return [Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.barrier.wait(20)
        return {"y": 1}


def graph_from(structure: list[set[int]], blocks: list[AbstractBaseBlock]) -> Graph:
    graph = Graph("g")
    for number, (sources, block) in enumerate(zip(structure, blocks, strict=True)):
        graph.add_node(Node(f"n{number}", block))
        for source in sorted(sources):
            graph.add_edge(Edge(f"n{source}", "y", f"n{number}", f"n{source}"))
        graph.expose_output(f"n{number}", "y", f"n{number}")
    return graph


def names(sources: set[int]) -> list[str]:
    return [f"n{source}" for source in sorted(sources)]


def test_independent_nodes_run_at_the_same_time() -> None:
    barrier = threading.Barrier(2)
    graph = graph_from([set(), set()], [Meet(barrier), Meet(barrier)])
    assert graph.run(max_workers=2) == {"n0": 1, "n1": 1}


def test_a_cycle_runs_in_order_beside_the_rest() -> None:
    graph = graph_of(
        {"a": "double", "b": "double", "side": "double"},
        ["a.y -> b.x", "b.y -> a.x"],
        ["a.x = x", "side.x = x"],
        ["b.y = y", "side.y = side"],
    )
    seen: list[str] = []
    outputs = graph.run({"x": 1}, num_loop_steps=3, max_workers=2, callbacks=lambda node, phase, **_: seen.append(f"{node} {phase}"))
    assert outputs == {"y": 64, "side": 2}
    assert [event for event in seen if "side" not in event] == [
        "a loop_start",
        *(["a before", "a after", "b before", "b after", "a loop_end"] * 3),
    ]


@given(graph_cases(), st.integers(2, 4))
@modestly
def test_several_workers_give_the_same_bits(case: GraphCase, workers: int) -> None:
    def once(**options: Any) -> Any:
        graph = Graph.from_config(case.config, sample_registry())
        return bits(graph.run(case.inputs, seed=7, num_loop_steps=2, **options))

    assert once(max_workers=workers) == once()


def test_the_bound_holds_for_pipelines_graphs_and_nodes_together() -> None:
    def graph(name: str) -> Graph:
        made = Graph(name)
        for number in range(3):
            made.add_node(Node(f"n{number}", Work(seconds=0.02)))
            made.expose_output(f"n{number}", "y", f"y{number}")
        return made

    def pipeline(name: str, children: list[Any]) -> Pipeline:
        made = Pipeline(name)
        for child in children:
            made.add_graph(child)
            made.expose_output(child.id, child.get_output_spec()[0]["name"], f"{name}_{child.id}")
        return made

    top = pipeline("top", [pipeline(f"p{i}", [graph(f"g{i}{j}") for j in range(2)]) for i in range(3)])
    Work.peak = 0
    top.run(max_workers=3)
    assert 1 < Work.peak <= 3
    Work.peak = 0
    top.run()
    assert Work.peak == 1


class Nested(AbstractBaseBlock):
    """Runs a graph inside its call."""

    def __init__(self, graph: Graph, **options: Any) -> None:
        super().__init__()
        self.graph, self.options = graph, options

    def declare_ports(self) -> list[Port]:
        return [Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": sum(self.graph.run(**self.options).values())}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_graphs_nested_in_blocks_share_the_bound_and_do_not_deadlock(workers: int) -> None:
    def level(depth: int) -> Graph:
        blocks: list[AbstractBaseBlock] = [Nested(level(depth - 1), max_workers=8) if depth else Work(seconds=0.005) for _ in range(3)]
        return graph_from([set()] * 3, blocks)

    Work.peak = 0
    assert level(2).run(max_workers=workers) == {"n0": 9, "n1": 9, "n2": 9}
    assert Work.peak <= workers


class Counter(AbstractBaseBlock):
    """Counts its calls, and keeps the count."""

    stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN, optional=True), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        return {"y": self.count}


class Holds(AbstractBaseBlock):
    """A composite block."""

    def __init__(self, part: AbstractBaseBlock) -> None:
        super().__init__()
        self.part = part

    def declare_ports(self) -> list[Port]:
        return [Port("y", PortDirection.OUT)]

    def get_sub_blocks(self) -> dict[str, AbstractBaseBlock]:
        return {"part": self.part}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.part.forward(inputs)


@pytest.mark.parametrize("composite", [False, True])
def test_nodes_that_share_a_stateful_block_run_in_order(composite: bool) -> None:
    def build() -> Graph:
        counter = Counter()
        blocks = [Holds(counter) for _ in range(8)] if composite else [counter] * 8
        return graph_from([set()] * 8, list(blocks))

    assert build().program().ordered
    assert build().run(max_workers=4) == build().run() == {f"n{number}": number + 1 for number in range(8)}


def test_a_stateful_block_of_one_node_leaves_the_others_free() -> None:
    barrier = threading.Barrier(2)
    graph = graph_from([set(), set(), set()], [Counter(), Meet(barrier), Meet(barrier)])
    assert graph.run(max_workers=2) == {"n0": 1, "n1": 1, "n2": 1}


def test_a_program_without_branches_stays_in_its_thread() -> None:
    graph = graph_of({"a": "double", "b": "double"}, ["a.y -> b.x"], ["a.x = x"], ["b.y = y"])
    program: Program = graph.program()
    assert (program.sources, program.has_branches) == ((frozenset(), frozenset({0})), False)
    assert graph.run({"x": 1}, max_workers=4) == {"y": 4}


def test_parallel_results_equal_sequential_ones_under_autocast() -> None:
    class Product(AbstractBaseBlock):
        def declare_ports(self) -> list[Port]:
            return [Port("y", PortDirection.OUT)]

        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"y": torch.ones(4, 4) @ torch.ones(4, 4)}

    graph = graph_from([set()] * 3, [Product() for _ in range(3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone, together = graph.run(), graph.run(max_workers=3)
    assert [value.dtype for value in together.values()] == [value.dtype for value in alone.values()] == [torch.bfloat16] * 3


# -- failures ---------------------------------------------------------------------------------------------------


def test_a_branch_that_checks_for_cancellation_ends_when_another_fails() -> None:
    started = threading.Event()

    class Long(AbstractBaseBlock):
        def declare_ports(self) -> list[Port]:
            return [Port("y", PortDirection.OUT)]

        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            started.set()
            for _ in range(3000):
                current_run().check_cancelled()
                time.sleep(0.01)
            return {"y": 1}

    class Fails(Long):
        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            assert started.wait(20)
            raise ValueError("at once")

    begin = time.monotonic()
    with pytest.raises(BlockFailed, match=r"node 'n1' .* failed: ValueError: at once"):
        graph_from([set(), set()], [Long(), Fails()]).run(max_workers=2)
    assert time.monotonic() - begin < 10


def test_cancelling_a_run_ends_its_branches() -> None:
    token = CancelToken()
    blocks = [Work(), *(Work(["n0"]) for _ in range(4))]

    def hook(node: str, phase: str, **_: Any) -> None:
        if (node, phase) == ("n0", "after"):
            token.cancel("the user left")

    with enter_run(token=token), pytest.raises(Cancelled, match="the user left"):
        graph_from([set(), {0}, {0}, {0}, {0}], list(blocks)).run(max_workers=2, callbacks=hook)
    assert [block.calls for block in blocks] == [1, 0, 0, 0, 0]


@st.composite
def failing_graphs(draw: st.DrawFn) -> tuple[list[set[int]], set[int], int]:
    """Sources per node, the nodes that fail, a number of workers."""
    count = draw(st.integers(1, 10))
    structure = [draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set[int]() for number in range(count)]
    return structure, draw(st.sets(st.integers(0, count - 1), max_size=3)), draw(st.integers(1, 4))


def ancestors(structure: list[set[int]], number: int) -> set[int]:
    found: set[int] = set()
    todo = list(structure[number])
    while todo:
        source = todo.pop()
        if source not in found:
            found.add(source)
            todo += structure[source]
    return found


@given(failing_graphs())
@settings(max_examples=120, deadline=None)
def test_a_failing_graph_raises_a_failure_that_happened_and_runs_nothing_downstream(case: tuple[list[set[int]], set[int], int]) -> None:
    structure, failing, workers = case
    blocks = [
        Work(names(sources), seconds=0.0005, error=ValueError(str(number)) if number in failing else None)
        for number, sources in enumerate(structure)
    ]
    graph = graph_from(structure, list(blocks))
    if not failing:
        assert graph.run(max_workers=workers) == graph.run()
        return
    with pytest.raises(BlockFailed) as caught:
        graph.run(max_workers=workers)
    called = {number for number, block in enumerate(blocks) if block.calls}
    # Node ids in plan order equal their numbers here only for the sources; the failure raised is one that happened.
    raised = int(str(caught.value.__cause__))
    assert raised in called & failing
    assert caught.value.details["node"] == f"n{raised}"
    for number in called:
        assert not ancestors(structure, number) & failing, "nothing runs after a source that failed"
    assert all(block.calls <= 1 for block in blocks)


# -- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True], ids=repr)
def test_max_workers_of_a_graph_is_an_integer_of_at_least_one(workers: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_workers must be an integer of at least 1"):
        graph_of({"a": "double"}, [], ["a.x = x"]).run({"x": 1}, max_workers=workers)


def test_an_unknown_option_of_a_graph_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match=r"Unknown run option 'num_loops'\. Available: .*'num_loop_steps'.*'max_workers'"):
        Graph().run({}, num_loops=3)
