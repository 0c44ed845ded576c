"""The program of a pipeline: kept until the structure changes, changed ports noticed, values passed by reference."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from yggdrasill.errors import BlockFailed, EndpointUnreachable, InvalidArgument, InvalidEdge, InvalidStructure
from yggdrasill.executor import run as run_graph
from yggdrasill.foundation import AbstractBaseBlock, Graph, Node, Port, PortAggregation, PortDirection
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage

IN, OUT = PortDirection.IN, PortDirection.OUT


class Gives(AbstractBaseBlock):
    """Returns a value of its own."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def declare_ports(self) -> list[Port]:
        return [Port("y", OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": self.value}


class Passes(AbstractBaseBlock):
    """Returns its input, ``absent`` without one."""

    aggregation = PortAggregation.SINGLE

    def declare_ports(self) -> list[Port]:
        return [Port("x", IN, optional=True, aggregation=self.aggregation), Port("y", OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs.get("x", "absent")}


class Concatenates(Passes):
    """Returns its inputs joined."""

    aggregation = PortAggregation.CONCAT


def graph_of_one(block: AbstractBaseBlock, name: str = "g") -> Graph:
    graph = Graph(name)
    graph.add_node(Node("n", block))
    for port in block.get_input_ports():
        graph.expose_input("n", port.name, port.name)
    for port in block.get_output_ports():
        graph.expose_output("n", port.name, port.name)
    return graph


def chain(*blocks: AbstractBaseBlock) -> Pipeline:
    pipeline = Pipeline("p")
    for number, block in enumerate(blocks):
        pipeline.add_graph(graph_of_one(block), f"g{number}")
        if number:
            pipeline.add_edge(f"g{number - 1}", "y", f"g{number}", "x")
    pipeline.expose_output(f"g{len(blocks) - 1}", "y", "y")
    return pipeline


# -- one program per structure ----------------------------------------------------------------------------------


def test_a_program_is_kept_until_the_pipeline_or_a_child_changes() -> None:
    pipeline = chain(Gives(1), Passes())
    first = pipeline.program()
    assert pipeline.program() is first
    pipeline.get_graph("g1").metadata["note"] = "no structure"
    assert pipeline.program() is first
    pipeline.get_graph("g1").expose_output("n", "y", "again")
    second = pipeline.program()
    assert second is not first
    pipeline.expose_output("g1", "again", "again")
    assert pipeline.program() is not second
    assert pipeline.run() == {"y": 1, "again": 1}


def test_a_change_below_a_nested_pipeline_is_noticed() -> None:
    inner = chain(Gives(1), Passes())
    outer = Pipeline("outer")
    outer.add_graph(inner, "inner")
    outer.expose_output("inner", "y", "y")
    assert outer.run() == {"y": 1}
    inner.get_graph("g0").replace_block("n", Gives(2))
    assert outer.run() == {"y": 2}
    inner.remove_graph("g1")
    inner.expose_output("g0", "y", "y")
    assert outer.run() == {"y": 2}


def test_an_edge_to_a_port_that_is_gone_is_reported_and_refused() -> None:
    pipeline = chain(Gives(5), Passes())
    child = pipeline.get_graph("g1")
    assert pipeline.run() == {"y": 5}
    child.infer_exposed_ports()
    child.expose_output("n", "y", "y")
    message = "edge g0.y -> g1.x: graph 'g1': Unknown input 'x'"
    with pytest.raises(InvalidStructure, match=message):
        pipeline.validate()
    with pytest.raises(InvalidEdge, match=message):
        pipeline.run()
    child.expose_input("n", "x", "x")
    assert pipeline.validate().is_valid
    assert pipeline.run() == {"y": 5}


def test_an_edge_from_a_port_that_is_gone_is_refused_at_every_level() -> None:
    pipeline = chain(Gives(5), Passes())
    stage = Stage("s")
    stage.add_pipeline(pipeline, "p")
    stage.add_pipeline(chain(Passes()), "q")
    stage.pipelines["q"].expose_input("g0", "x", "x")
    stage.add_edge("p", "y", "q", "x")
    stage.set_state_contract([], [2], [], [(2, "q", "y")])
    assert stage.run()[2] == 5
    graph = pipeline.get_graph("g1")
    graph.remove_node("n")
    with pytest.raises(InvalidEdge, match="graph 'g1': Unknown input 'x'"):
        stage.run()
    pipeline.remove_graph("g1")
    with pytest.raises(InvalidEdge, match=r"edge p\.y -> q\.x: pipeline 'p': Unknown output 'y'"):
        stage.run()
    assert "edge p.y -> q.x: pipeline 'p': Unknown output 'y'" in "".join(stage.validate(strict=False).errors)


def test_a_type_that_no_longer_fits_is_refused() -> None:
    class Text(Passes):
        def declare_ports(self) -> list[Port]:
            return [Port("x", IN, "text"), Port("y", OUT)]

    class Image(Passes):
        def declare_ports(self) -> list[Port]:
            return [Port("y", OUT, "image")]

    pipeline = chain(Gives("t"), Text())
    pipeline.get_graph("g0").replace_block("n", Image())
    with pytest.raises(InvalidEdge, match="'image' does not fit 'text'"):
        pipeline.run()


def test_the_executor_runs_a_pipeline_as_the_pipeline_runs_itself() -> None:
    pipeline = chain(Gives(5), Passes())
    assert run_graph(pipeline, {}, seed=1, max_workers=2) == pipeline.run(seed=1) == {"y": 5}


# -- places of errors -------------------------------------------------------------------------------------------


def test_values_that_cannot_be_joined_name_the_child_and_the_port() -> None:
    inner = Pipeline("inner")
    inner.add_graph(graph_of_one(Gives([1])), "a")
    inner.add_graph(graph_of_one(Gives("text")), "b")
    inner.add_graph(graph_of_one(Concatenates()), "c")
    inner.add_edge("a", "y", "c", "x")
    inner.add_edge("b", "y", "c", "x")
    outer = Pipeline("outer")
    outer.add_graph(inner, "inner")
    with pytest.raises(BlockFailed, match=r"node 'inner/c', input 'x': cannot concatenate list from a\.y, str from b\.y") as caught:
        outer.run()
    assert (caught.value.details["node"], caught.value.details["port"]) == ("inner/c", "x")


def test_a_dry_run_joins_nothing() -> None:
    pipeline = Pipeline("p")
    for name, value in (("a", [1]), ("b", "text")):
        pipeline.add_graph(graph_of_one(Gives(value)), name)
    pipeline.add_graph(graph_of_one(Concatenates()), "c")
    pipeline.add_edge("a", "y", "c", "x")
    pipeline.add_edge("b", "y", "c", "x")
    pipeline.expose_output("c", "y", "y")
    assert pipeline.run(dry_run=True) == {"y": None}


@pytest.mark.parametrize("level", ["pipeline", "stage"])
def test_an_unknown_option_is_named_before_anything_runs(level: str) -> None:
    block = Gives(1)
    calls: list[int] = []
    block.forward = lambda inputs: calls.append(1) or {"y": 1}  # type: ignore[method-assign,func-returns-value]
    made: Any = chain(block)
    if level == "stage":
        made = Stage("s")
        made.add_pipeline(chain(block), "p")
    with pytest.raises(InvalidArgument, match=r"Unknown run option 'steps'\. Available: 'num_loop_steps', .*'max_workers'"):
        made.run(steps=3)
    assert calls == []


# -- values by reference ----------------------------------------------------------------------------------------


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize("value", [deep(3000), circular()], ids=["deep", "circular"])
def test_a_value_passes_through_a_local_pipeline_as_it_is(value: Any) -> None:
    pipeline = chain(Gives(value), Passes(), Passes())
    outer = Pipeline("outer")
    outer.add_graph(pipeline, "inner")
    outer.expose_output("inner", "y", "y")
    assert outer.run()["y"] is value


def test_a_large_value_costs_a_local_pipeline_nothing() -> None:
    def seconds(value: Any) -> float:
        pipeline = chain(Gives(value), *(Passes() for _ in range(9)))
        pipeline.run()
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            pipeline.run()
            times.append(time.perf_counter() - begin)
        return min(times)

    assert seconds([(i, i) for i in range(300_000)]) < 5 * seconds(1) + 0.002


# -- children elsewhere -----------------------------------------------------------------------------------------


class Far:
    """A runnable whose endpoint does not answer."""

    accepts_handles = True
    asked = ran = 0

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        self.asked += 1
        raise EndpointUnreachable("no answer")

    get_output_spec = get_input_spec

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        self.ran += 1
        raise EndpointUnreachable("no answer")

    def to_config(self) -> dict[str, Any]:
        return {"endpoint_url": "http://far.example/g"}


def test_a_skipped_pipeline_needs_no_reachable_endpoint() -> None:
    stage, far = Stage("s"), Far()
    stage.add_pipeline(far, "far", condition=[5])
    stage.add_pipeline(chain(Gives(1)), "p")
    stage.set_state_contract([5], [2, 3], [(5, "far", "x")], [(2, "p", "y"), (3, "far", "y")])
    assert stage.run({1: 1}).blocks == {1: 1, 2: 1}
    assert far.ran == 0
    with pytest.raises(EndpointUnreachable):
        stage.run({5: "filled"})
    assert far.ran == 1
