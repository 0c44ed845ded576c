"""Building, validating and running a pipeline."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from samples.blocks import Accumulate, register_samples
from samples.events import Events
from yggdrasill.errors import (
    BlockFailed,
    Cancelled,
    CycleFound,
    DuplicateName,
    HookFailed,
    InvalidArgument,
    InvalidConfig,
    InvalidEdge,
    InvalidStructure,
    MissingFile,
    UnknownBlockType,
    UnknownName,
)
from yggdrasill.executor.context import CancelToken, current_run, enter_run
from yggdrasill.foundation import Edge, Graph
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.ports import Port, PortDirection
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.pipeline import Pipeline, PipelineEdge
from yggdrasill.stage import Stage
from yggdrasill.values import Handle

REGISTRY = BlockRegistry(built_ins=False)
register_samples(REGISTRY)


def one(block_type: str, graph_id: str = "graph", config: Mapping[str, Any] | None = None) -> Graph:
    """A graph of one block with all its ports exposed under their own names."""
    graph = Graph(graph_id, registry=REGISTRY)
    graph.add_node("n", block_type, config=config, auto_connect=False)
    block = graph.get_node("n").block
    for port in block.get_input_ports():
        graph.expose_input("n", port.name, port.name)
    for port in block.get_output_ports():
        graph.expose_output("n", port.name, port.name)
    return graph


def doubles(*names: str) -> Pipeline:
    """Doubling graphs, not linked."""
    pipeline = Pipeline()
    for name in names:
        pipeline.add_graph(one("sample/double"), name)
    return pipeline


def chain(*names: str) -> Pipeline:
    """Doubling graphs one after another, from input ``x`` to output ``y``."""
    pipeline = doubles(*names)
    for before, after in itertools.pairwise(names):
        pipeline.add_edge(before, "y", after, "x")
    pipeline.expose_input(names[0], "x", "x")
    pipeline.expose_output(names[-1], "y", "y")
    return pipeline


def diamond() -> Pipeline:
    """x -> double -> (left, right) -> add."""
    pipeline = doubles("top", "left", "right")
    pipeline.add_graph(one("sample/add"), "sum")
    for side, port in (("left", "a"), ("right", "b")):
        pipeline.add_edge("top", "y", side, "x")
        pipeline.add_edge(side, "y", "sum", port)
    pipeline.expose_input("top", "x", "x")
    pipeline.expose_output("sum", "out", "out")
    return pipeline


# -- graphs -----------------------------------------------------------------------------------------------------


def test_a_graph_is_added_as_an_object_a_config_or_a_file(tmp_path: Path) -> None:
    config = one("sample/double", "twice").to_config()
    (tmp_path / "twice.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "twice.yaml").write_text(json.dumps(config), encoding="utf-8")
    pipeline = Pipeline()

    ids = [
        pipeline.add_graph(one("sample/double", "twice")),
        pipeline.add_graph(config, "b", registry=REGISTRY),
        pipeline.add_graph(tmp_path / "twice.json", "c", registry=REGISTRY),
        pipeline.add_graph(str(tmp_path / "twice.yaml"), "d", registry=REGISTRY),
        pipeline.add_graph({"ref": str(tmp_path / "twice.yaml")}, "e", registry=REGISTRY),
    ]

    assert ids == ["twice", "b", "c", "d", "e"] == pipeline.node_ids
    assert [pipeline.get_graph(name).run({"x": 2}) for name in ids] == [{"y": 4}] * 5


def test_the_id_is_the_given_one_else_the_graphs_own_else_a_free_one() -> None:
    pipeline = Pipeline()
    assert pipeline.add_graph(one("sample/double", "own"), "given") == "given"
    assert pipeline.add_graph(one("sample/double", "own")) == "own"
    assert pipeline.add_graph(Doubler()) == "graph_1"
    assert pipeline.add_graph(Doubler()) == "graph_2"


def test_a_taken_id_is_refused() -> None:
    pipeline = doubles("a")
    with pytest.raises(DuplicateName, match="pipeline_node_id 'a' is taken"):
        pipeline.add_graph(one("sample/double"), "a")


@pytest.mark.parametrize("name", ["", "  ", 3], ids=repr)
def test_a_blank_id_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="pipeline_node_id must be a non-empty string"):
        Pipeline().add_graph(one("sample/double"), name)


def test_what_cannot_be_a_graph_is_refused(tmp_path: Path) -> None:
    pipeline = Pipeline("p")
    with pytest.raises(InvalidArgument, match="takes graphs, configs or paths, got int"):
        pipeline.add_graph(3)  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(InvalidArgument, match="not a stage, which runs a state"):
        pipeline.add_graph(Stage("s"))  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(MissingFile):
        pipeline.add_graph(tmp_path / "gone.json")
    with pytest.raises(UnknownBlockType):
        pipeline.add_graph({"nodes": [{"node_id": "n", "block_type": "sample/dobule"}]}, registry=REGISTRY)


def test_a_pipeline_cannot_contain_itself_at_any_depth() -> None:
    outer, middle, inner = Pipeline("outer"), Pipeline("middle"), Pipeline("inner")
    outer.add_graph(middle)
    middle.add_graph(inner)
    for child in (inner, middle, outer):
        with pytest.raises(InvalidArgument, match="cannot contain itself"):
            inner.add_graph(outer)
        with pytest.raises(InvalidArgument, match="cannot contain itself"):
            child.add_graph(child)


def test_an_unknown_graph_is_named_with_near_ones() -> None:
    with pytest.raises(UnknownName, match=r"Unknown graph 'upscal'. Available: 'upscale'. Did you mean 'upscale'"):
        doubles("upscale").get_graph("upscal")


def test_a_removed_graph_takes_its_edges_and_exposures_along() -> None:
    pipeline = chain("a", "b")
    pipeline.remove_graph("a")
    assert (pipeline.node_ids, pipeline.get_edges(), pipeline.get_input_spec()) == (["b"], [], [])


# -- edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", range(4), ids=["source_node", "source_port", "target_node", "target_port"])
@pytest.mark.parametrize("blank", ["", "  "], ids=repr)
def test_a_pipeline_edge_has_no_blank_field(field: int, blank: str) -> None:
    fields = ["a", "y", "b", "x"]
    fields[field] = blank
    with pytest.raises(InvalidArgument, match="must be a non-empty string"):
        PipelineEdge(*fields)


@pytest.mark.parametrize(
    "edge, complaint",
    [
        (("c", "y", "b", "x"), "Unknown graph 'c'. Available: 'a', 'b'."),
        (("a", "z", "b", "x"), r"graph 'a': Unknown output 'z'\. Available: 'y'"),
        (("a", "y", "b", "z"), r"graph 'b': Unknown input 'z'\. Available: 'x'"),
        (("a", "x", "b", "x"), "'x' is an input of graph 'a', not an output"),
    ],
)
def test_an_edge_to_no_port_is_refused_and_changes_nothing(edge: tuple[str, str, str, str], complaint: str) -> None:
    pipeline = doubles("a", "b")
    with pytest.raises(InvalidEdge, match=complaint):
        pipeline.add_edge(*edge)
    assert pipeline.get_edges() == []


class Typed(AbstractBaseBlock):
    """``image`` in, ``text`` out."""

    block_type = "typed"

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN, "image"), Port("y", PortDirection.OUT, "text")]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": "seen"}


def test_types_that_do_not_fit_are_refused() -> None:
    pipeline = Pipeline()
    for name in ("a", "b"):
        graph = Graph(registry=REGISTRY)
        graph.add_node(Typed(), node_id="n")
        graph.expose_input("n", "x", "x")
        graph.expose_output("n", "y", "y")
        pipeline.add_graph(graph, name)
    pipeline.add_graph(one("sample/double"), "any")

    with pytest.raises(InvalidEdge, match=r"edge a\.y -> b\.x: 'text' does not fit 'image'"):
        pipeline.add_edge("a", "y", "b", "x")
    pipeline.add_edge("a", "y", "any", "x")
    pipeline.add_edge("any", "y", "b", "x")


def test_the_same_edge_again_changes_nothing() -> None:
    pipeline = chain("a", "b")
    version = pipeline.execution_version
    pipeline.add_edge("a", "y", "b", "x")
    assert (len(pipeline.get_edges()), pipeline.execution_version) == (1, version)


def test_an_edge_can_be_removed() -> None:
    pipeline = chain("a", "b")
    pipeline.remove_edge(PipelineEdge("a", "y", "b", "x"))
    assert pipeline.get_edges() == []
    with pytest.raises(UnknownName, match=r"Unknown edge 'a\.y -> b\.x'"):
        pipeline.remove_edge(PipelineEdge("a", "y", "b", "x"))


def test_an_input_and_an_output_of_one_name_are_two_ports() -> None:
    pipeline = Pipeline()
    for name in ("first", "second"):
        graph = Graph(registry=REGISTRY)
        graph.add_node("n", "sample/double", auto_connect=False)
        graph.expose_input("n", "x", "image")
        graph.expose_output("n", "y", "image")
        pipeline.add_graph(graph, name)
    pipeline.add_edge("first", "image", "second", "image")
    pipeline.expose_input("first", "image", "image")
    pipeline.expose_output("second", "image", "image")
    pipeline.expose_output("first", "image", "between")

    assert pipeline.run({"image": 3}) == {"image": 12, "between": 6}


# -- external ports ---------------------------------------------------------------------------------------------


def test_specs_name_the_external_key_and_fall_back_to_id_and_port() -> None:
    pipeline = doubles("a")
    pipeline.expose_input("a", "x")
    pipeline.expose_output("a", "y", "result")

    assert pipeline.get_input_spec() == [{"pipeline_node_id": "a", "port_name": "x", "name": "a:x"}]
    assert pipeline.get_output_spec(include_dtype=True) == [
        {"pipeline_node_id": "a", "port_name": "y", "name": "result", "dtype": "any", "optional": False}
    ]
    assert pipeline.run({"a:x": 2}) == {"result": 4}


def test_infer_exposed_ports_replaces_both_lists() -> None:
    pipeline = doubles("a", "b", "c")
    pipeline.add_edge("a", "y", "b", "x")
    pipeline.expose_input("c", "x", "old name")

    pipeline.infer_exposed_ports()

    assert [entry["name"] for entry in pipeline.get_input_spec()] == ["a:x", "c:x"]
    assert [entry["name"] for entry in pipeline.get_output_spec()] == ["b:y", "c:y"]


def test_one_external_input_feeds_several_graphs() -> None:
    pipeline = doubles("a", "b")
    for name in ("a", "b"):
        pipeline.expose_input(name, "x", "shared")
        pipeline.expose_output(name, "y", name)
    assert pipeline.run({"shared": 4}) == {"a": 8, "b": 8}


def test_two_outputs_of_one_name_are_refused() -> None:
    pipeline = doubles("a", "b")
    pipeline.expose_output("a", "y", "out")
    with pytest.raises(DuplicateName, match=r"output 'out' already comes from a\.y"):
        pipeline.expose_output("b", "y", "out")


def test_exposing_no_port_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"graph 'a': Unknown input 'z'\. Available: 'x'"):
        doubles("a").expose_input("a", "z")


# -- validating -------------------------------------------------------------------------------------------------


def test_a_cycle_names_its_edges_in_validate_and_run() -> None:
    pipeline = chain("a", "b", "c")
    pipeline.add_edge("c", "y", "b", "x")

    with pytest.raises(InvalidStructure, match=r"has a cycle: b\.y -> c\.x, c\.y -> b\.x; a pipeline is acyclic"):
        pipeline.validate()
    with pytest.raises(CycleFound, match=r"b\.y -> c\.x, c\.y -> b\.x"):
        pipeline.run({"x": 1})


def test_a_graph_linked_to_itself_is_a_cycle() -> None:
    pipeline = doubles("a")
    pipeline.add_edge("a", "y", "a", "x")
    with pytest.raises(CycleFound, match=r"a\.y -> a\.x"):
        pipeline.run()


def test_unreachable_graphs_are_warnings() -> None:
    pipeline = chain("a", "b")
    pipeline.add_graph(one("sample/noise"), "adrift")

    result = pipeline.validate()

    assert result.errors == []
    assert result.warnings == ["graph 'adrift' is not reached from any exposed input", "graph 'adrift' leads to no exposed output"]


def test_an_input_nothing_feeds_is_an_error() -> None:
    with pytest.raises(InvalidStructure, match="graph 'a', input 'x' is required and nothing feeds it"):
        doubles("a").validate()


def test_two_edges_into_one_port_are_an_error() -> None:
    pipeline = chain("a", "b")
    pipeline.add_graph(one("sample/double"), "c")
    pipeline.expose_input("c", "x", "x")
    pipeline.add_edge("c", "y", "b", "x")
    assert any(
        "graph 'b', input 'x' takes one value but has 2 edges (a.y -> b.x, c.y -> b.x)" in e for e in pipeline.validate(strict=False).errors
    )


def test_an_aggregating_port_joins_the_values_of_several_graphs() -> None:
    pipeline = doubles("a", "b")
    pipeline.add_graph(one("sample/concat"), "join")
    for name in ("a", "b"):
        pipeline.expose_input(name, "x", name)
        pipeline.add_edge(name, "y", "join", "parts")
    pipeline.expose_output("join", "out", "out")
    pipeline.validate()
    assert pipeline.run({"a": "x", "b": "y"}) == {"out": "xxyy"}


def test_nested_errors_carry_the_path_of_ids() -> None:
    inner = chain("graph")
    inner.get_graph("graph").add_node("open", "sample/double", auto_connect=False)
    outer = Pipeline()
    outer.add_graph(inner, "inner")
    outer.expose_input("inner", "x", "x")
    outer.expose_output("inner", "y", "y")

    assert outer.validate(strict=False).errors == []
    assert [error.partition(" is required")[0] for error in outer.validate(strict=False, validate_graphs=True).errors] == [
        "inner: graph: node 'open', input 'x'"
    ]
    with pytest.raises(InvalidStructure, match="inner: graph: node 'open'"):
        outer.validate(validate_graphs=True)


# -- running ----------------------------------------------------------------------------------------------------


def test_graphs_run_in_topological_order_however_they_were_added() -> None:
    pipeline = doubles("c", "a", "b")
    pipeline.add_edge("a", "y", "b", "x")
    pipeline.add_edge("b", "y", "c", "x")
    pipeline.expose_input("a", "x", "x")
    pipeline.expose_output("c", "y", "y")
    note = Events()

    assert pipeline.run({"x": 1}, callbacks=note) == {"y": 8}
    assert note.seen == [(name, phase) for name in "abc" for phase in ("before", "after")]
    assert note.facts[:2] == [{"inputs": {"x": 1}}, {"outputs": {"y": 2}}]


def test_an_edges_value_goes_before_the_pipelines_input() -> None:
    pipeline = doubles("b")
    pipeline.add_graph(one("sample/branch"), "a")
    pipeline.expose_input("a", "x", "number")
    pipeline.expose_input("b", "x", "otherwise")
    pipeline.expose_output("b", "y", "y")
    pipeline.add_edge("a", "positive", "b", "x")

    assert pipeline.run({"number": 1, "otherwise": 100}) == {"y": 2}
    assert pipeline.run({"number": -1, "otherwise": 100}) == {"y": 200}


def test_an_unknown_input_is_named() -> None:
    with pytest.raises(UnknownName, match=r"Unknown input 'xx'. Available: 'x'.*inputs of pipeline 'pipeline'"):
        chain("a").run({"xx": 1})


def test_a_dry_run_walks_everything_and_calls_nothing() -> None:
    pipeline = Pipeline()
    pipeline.add_graph(one("sample/fail"), "a")
    pipeline.add_graph(one("sample/fail"), "b")
    pipeline.add_edge("a", "y", "b", "x")
    pipeline.expose_output("b", "y", "y")
    note = Events()

    assert pipeline.run(dry_run=True, callbacks=note) == {"y": None}
    assert note.seen == [("a", "before"), ("a", "after"), ("b", "before"), ("b", "after")]


def counter() -> Graph:
    """A cycle that adds 1 to ``x`` in every loop step."""
    graph = Graph("count", registry=REGISTRY)
    graph.add_node("n", "sample/add", config={"defaults": {"b": 1}}, auto_connect=False)
    graph.add_edge(Edge("n", "out", "n", "a"))
    graph.expose_input("n", "a", "x")
    graph.expose_output("n", "out", "y")
    return graph


def test_num_loop_steps_reach_every_graph() -> None:
    pipeline = Pipeline()
    pipeline.add_graph(counter(), "a")
    pipeline.add_graph(counter(), "b")
    pipeline.add_edge("a", "y", "b", "x")
    pipeline.expose_input("a", "x", "x")
    pipeline.expose_output("b", "y", "y")
    assert [pipeline.run({"x": 0}, num_loop_steps=n)["y"] for n in (1, 5)] == [2, 10]


def noises(*names: str) -> Pipeline:
    pipeline = Pipeline()
    for name in names:
        pipeline.add_graph(one("sample/noise"), name)
        pipeline.expose_output(name, "noise", name)
    return pipeline


def test_one_seed_decides_the_noise_of_every_graph_each_its_own() -> None:
    import torch

    first, again, other = (noises("a", "b").run(seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in "ab")
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], other["a"])


def test_a_graphs_noise_comes_from_its_path() -> None:
    import torch

    outer = Pipeline()
    outer.add_graph(noises("a"), "inner")
    outer.expose_output("inner", "a", "a")
    with enter_run(seed=3, path=("inner", "a")) as context:
        context.node = "n"
        expected = torch.randn([4], generator=current_run().generator())
    assert torch.equal(outer.run(seed=3)["a"], expected)


def test_training_and_device_reach_the_blocks() -> None:
    pipeline = Pipeline()
    pipeline.add_graph(one("sample/linear"), "a")
    pipeline.expose_input("a", "x", "x")
    pipeline.expose_output("a", "y", "y")
    block: Any = pipeline.get_graph("a").get_node("n").block
    import torch

    pipeline.run({"x": torch.ones(3)}, training=True, device="cpu")
    assert block.training is True
    pipeline.run({"x": torch.ones(3)})
    assert block.training is False
    moved: list[Any] = []
    block.to = moved.append
    pipeline.run({"x": torch.ones(3)}, device="cpu")
    assert moved == ["cpu"]
    assert pipeline.to(None) is pipeline


def test_trainable_parameters_follow_the_flags_of_every_level() -> None:
    pipeline = Pipeline()
    for name in ("a", "b"):
        pipeline.add_graph(one("sample/linear"), name, trainable=name == "a")
    assert len(list(pipeline.trainable_parameters())) == 2
    pipeline.set_trainable("b", True)
    assert len(list(pipeline.trainable_parameters())) == 4
    pipeline.get_graph("a").set_trainable("n", False)
    assert len(list(pipeline.trainable_parameters())) == 2


def test_a_pipeline_is_a_graph_in_a_pipeline() -> None:
    outer = Pipeline("outer")
    outer.add_graph(chain("a", "b"), "inner")
    outer.add_graph(one("sample/double"), "last")
    outer.add_edge("inner", "y", "last", "x")
    outer.expose_input("inner", "x", "x")
    outer.expose_output("last", "y", "y")

    assert outer.run({"x": 1}) == {"y": 8}
    assert Pipeline.from_config(outer.to_config(), REGISTRY).run({"x": 1}) == {"y": 8}
    assert ["/".join(path) for path, _ in outer.walk()] == ["inner", "inner/a", "inner/b", "last"]


def test_a_failing_block_is_named_by_its_path_from_the_outermost_run() -> None:
    inner = Pipeline()
    inner.add_graph(one("sample/fail", config={"message": "no more"}), "g")
    outer = Pipeline()
    outer.add_graph(inner, "inner")
    with pytest.raises(BlockFailed, match=r"node 'inner/g/n' \(sample/fail\) failed: ValueError: no more") as failure:
        outer.run()
    assert failure.value.details["node"] == "inner/g/n"


def test_after_a_failure_nothing_else_runs() -> None:
    pipeline = chain("a", "b")
    pipeline.add_graph(one("sample/fail"), "broken")
    pipeline.add_edge("a", "y", "broken", "x")
    pipeline.add_edge("broken", "y", "b", "x")
    pipeline.remove_edge(PipelineEdge("a", "y", "b", "x"))
    note = Events()
    with pytest.raises(BlockFailed):
        pipeline.run({"x": 1}, callbacks=note)
    assert note.seen == [("a", "before"), ("a", "after"), ("broken", "before")]


def test_a_raising_hook_is_a_hook_failure() -> None:
    def broken(name: str, phase: str, **_: Any) -> None:
        raise RuntimeError("no")

    with pytest.raises(HookFailed, match="at 'a', phase 'before': RuntimeError: no"):
        chain("a").run({"x": 1}, callbacks=broken)


def test_cancelling_stops_before_the_next_graph() -> None:
    token, note = CancelToken(), Events()

    def cancel(name: str, phase: str, **facts: Any) -> None:
        note(name, phase, **facts)
        if (name, phase) == ("a", "after"):
            token.cancel("enough")

    with enter_run(seed=1, token=token), pytest.raises(Cancelled, match="enough"):
        chain("a", "b").run({"x": 1}, callbacks=cancel)
    assert note.seen == [("a", "before"), ("a", "after")]


# -- handles ----------------------------------------------------------------------------------------------------


class Reference(Handle):
    """A handle that counts its loads."""

    dtype = "float32"
    shape = (1,)
    hash = "0" * 64

    def __init__(self, value: Any) -> None:
        self.value = value
        self.loads = 0

    def load(self) -> Any:
        self.loads += 1
        return self.value


class Doubler:
    """A runnable that is no Graph, as a proxy is none; what it gives is a handle."""

    accepts_handles: ClassVar[bool] = False

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.options: list[dict[str, Any]] = []

    def get_input_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        return [{"name": "x", "dtype": "any", "optional": False}]

    def get_output_spec(self, include_dtype: bool = False) -> list[dict[str, Any]]:
        return [{"name": "y", "dtype": "any"}]

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        self.got.append(inputs["x"])
        self.options.append(options)
        value = inputs["x"].load() if isinstance(inputs["x"], Reference) else inputs["x"]
        return {"y": Reference(value * 2)}

    def to_config(self) -> dict[str, Any]:
        return {"endpoint_url": "http://far.example/g"}


class HandleDoubler(Doubler):
    """The same, taking handles as they are."""

    accepts_handles = True


def far_chain(first: Any, second: Any) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_graph(first, "a")
    pipeline.add_graph(second, "b")
    pipeline.add_edge("a", "y", "b", "x")
    pipeline.expose_input("a", "x", "x")
    pipeline.expose_output("b", "y", "y")
    pipeline.expose_output("a", "y", "between")
    return pipeline


def test_a_runnable_that_takes_handles_gets_the_handle() -> None:
    second = HandleDoubler()
    assert far_chain(Doubler(), second).run({"x": 3}) == {"y": 12, "between": 6}
    assert isinstance(second.got[0], Reference)


@pytest.mark.parametrize("second", [Doubler(), one("sample/double")], ids=["proxy", "graph"])
def test_others_get_the_loaded_value(second: Any) -> None:
    assert far_chain(HandleDoubler(), second).run({"x": 3}) == {"y": 12, "between": 6}
    assert not isinstance(second, Doubler) or second.got == [6]


def test_handles_inside_lists_and_dicts_are_loaded_too() -> None:
    assert chain("a").run({"x": [Reference(1), {"k": Reference(2)}]}) == {"y": [1, {"k": 2}] * 2}


def test_only_the_outermost_run_loads_its_outputs() -> None:
    inner = far_chain(HandleDoubler(), HandleDoubler())
    outer = Pipeline()
    outer.add_graph(inner, "inner")
    after = HandleDoubler()
    outer.add_graph(after, "after")
    outer.add_edge("inner", "y", "after", "x")
    outer.expose_input("inner", "x", "x")
    outer.expose_output("after", "y", "y")

    assert outer.run({"x": 1}) == {"y": 8}
    assert isinstance(after.got[0], Reference)


def test_options_reach_a_runnable_that_is_no_graph() -> None:
    far = Doubler()
    pipeline = Pipeline()
    pipeline.add_graph(far, "far")
    pipeline.expose_input("far", "x", "x")
    pipeline.run({"x": 1}, num_loop_steps=3, training=True, max_workers=2)
    assert far.options == [{"training": True, "device": None, "dry_run": False, "num_loop_steps": 3}]


def test_a_runnable_that_returns_no_dict_is_named_by_its_path() -> None:
    class Wrong(Doubler):
        def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
            return [1]  # type: ignore[return-value]  # that is what is tested

    inner = Pipeline()
    inner.add_graph(Wrong(), "w")
    inner.expose_input("w", "x", "x")
    outer = Pipeline()
    outer.add_graph(inner, "inner")
    outer.expose_input("inner", "x", "x")
    with pytest.raises(BlockFailed, match="graph 'inner/w' returned list, not a dict"):
        outer.run({"x": 1})


# -- placing ----------------------------------------------------------------------------------------------------


class Placement:
    """A resolver: which runnable stands at a path; it keeps what it was asked."""

    def __init__(self, places: dict[tuple[str, ...], Any]) -> None:
        self.places = places
        self.asked: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def resolve(self, path: tuple[str, ...], config: Mapping[str, Any]) -> Any | None:
        self.asked.append((path, dict(config)))
        return self.places.get(path)


def test_an_endpoint_url_goes_through_the_resolver() -> None:
    config = chain("a", "b").to_config()
    config["graphs"][0] = {"pipeline_node_id": "a", "endpoint_url": "http://far.example/g", "graph_id": "g7"}
    resolver = Placement({("a",): HandleDoubler()})

    pipeline = Pipeline.from_config(config, REGISTRY, endpoints=resolver)

    assert pipeline.run({"x": 1}) == {"y": 4}
    assert resolver.asked[0] == (("a",), {"endpoint_url": "http://far.example/g", "graph_id": "g7"})
    assert pipeline.to_config()["graphs"][0] == {"pipeline_node_id": "a", "endpoint_url": "http://far.example/g", "trainable": True}


def test_a_resolver_may_move_any_graph_and_the_rest_is_built_here() -> None:
    far = Doubler()
    resolver = Placement({("top", "b"): far})

    pipeline = Pipeline.from_config(chain("a", "b").to_config(), REGISTRY, endpoints=resolver, path=("top",))

    assert pipeline.get_graph("b") is far
    assert isinstance(pipeline.get_graph("a"), Graph)
    assert [path for path, _ in resolver.asked] == [("top", "a"), ("top", "b")]
    assert resolver.asked[1][1]["graph_config"] == chain("a", "b").get_graph("b").to_config()
    assert pipeline.run({"x": 1}) == {"y": 4}


def test_a_resolver_is_asked_inside_a_nested_pipeline() -> None:
    outer = Pipeline()
    outer.add_graph(chain("a"), "inner")
    outer.expose_input("inner", "x", "x")
    outer.expose_output("inner", "y", "y")
    far = Doubler()

    moved = Pipeline.from_config(outer.to_config(), REGISTRY, endpoints=Placement({("inner", "a"): far}))

    assert moved.run({"x": 2}) == {"y": 4}
    assert far.got == [2]


# -- several at a time ------------------------------------------------------------------------------------------


def test_more_workers_give_the_same_result_and_the_same_hooks_per_graph() -> None:
    one_by_one, together = Events(), Events()

    expected = diamond().run({"x": 1}, callbacks=one_by_one)

    assert diamond().run({"x": 1}, max_workers=4, callbacks=together) == expected == {"out": 8}
    assert sorted(together.seen) == sorted(one_by_one.seen)
    for name in ("top", "left", "right", "sum"):
        assert [phase for seen, phase in together.seen if seen == name] == ["before", "after"]
    assert together.seen[:2] == [("top", "before"), ("top", "after")]
    assert together.seen[-2:] == [("sum", "before"), ("sum", "after")]


def test_hooks_are_called_one_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []

    def hook(name: str, phase: str, **_: Any) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    noises("a", "b", "c", "d").run(max_workers=4, callbacks=hook)
    assert most == [1] * 8


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"], ids=repr)
def test_max_workers_is_a_positive_integer(workers: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_workers must be an integer of at least 1"):
        diamond().run({"x": 1}, max_workers=workers)


class Meet(AbstractBaseBlock):
    """Returns only when another block waits at the same barrier: proof that both run at the same time."""

    barrier = threading.Barrier(2)

    def declare_ports(self) -> list[Port]:
        return [Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": self.barrier.wait(10) >= 0}


def lonely(block: AbstractBaseBlock) -> Graph:
    graph = Graph(registry=REGISTRY)
    graph.add_node(block, node_id="n", auto_connect=False)
    for port in block.get_input_ports():
        graph.expose_input("n", port.name, port.name)
    for port in block.get_output_ports():
        graph.expose_output("n", port.name, port.name)
    return graph


def test_independent_graphs_run_at_the_same_time() -> None:
    pipeline = Pipeline()
    for name in ("a", "b"):
        pipeline.add_graph(lonely(Meet()), name)
        pipeline.expose_output(name, "y", name)
    assert pipeline.run(max_workers=2) == {"a": True, "b": True}


def test_workers_reach_a_nested_pipeline() -> None:
    inner = Pipeline()
    for name in ("a", "b"):
        inner.add_graph(lonely(Meet()), name)
        inner.expose_output(name, "y", name)
    outer = Pipeline()
    outer.add_graph(inner, "inner")
    outer.expose_output("inner", "a", "a")
    assert outer.run(max_workers=2) == {"a": True}


def test_noise_is_the_same_in_any_thread() -> None:
    import torch

    names = [f"n{number}" for number in range(8)]
    alone, together = noises(*names).run(seed=5), noises(*names).run(seed=5, max_workers=4)
    assert all(torch.equal(alone[name], together[name]) for name in names)


class GradMode(AbstractBaseBlock):
    """Tells torch's modes in the thread it runs in."""

    def declare_ports(self) -> list[Port]:
        return [Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"y": (torch.is_grad_enabled(), torch.is_inference_mode_enabled())}


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_workers_have_the_callers_grad_mode(mode: str) -> None:
    import torch

    pipeline = Pipeline()
    for name in ("a", "b"):
        pipeline.add_graph(lonely(GradMode()), name)
        pipeline.expose_output(name, "y", name)
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]

    with context():
        here = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        assert pipeline.run(max_workers=2) == {"a": here, "b": here}


def test_after_a_failure_nothing_new_starts_and_the_first_in_order_is_raised() -> None:
    pipeline = Pipeline()
    ready = threading.Barrier(2)

    class FailTogether(AbstractBaseBlock):
        def declare_ports(self) -> list[Port]:
            return [Port("x", PortDirection.IN, optional=True), Port("y", PortDirection.OUT)]

        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            ready.wait(10)
            raise ValueError(self.block_id)

    for name in ("b", "a"):
        pipeline.add_graph(lonely(FailTogether(name)), name)
    pipeline.add_graph(one("sample/double"), "later")
    pipeline.add_edge("a", "y", "later", "x")
    note = Events()

    with pytest.raises(BlockFailed, match="node 'b/n'"):
        pipeline.run(max_workers=4, callbacks=note)
    assert ("later", "before") not in note.seen


class Deaf(AbstractBaseBlock):
    """Computes for a while and never checks for cancellation."""

    def declare_ports(self) -> list[Port]:
        return [Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.1)
        return {"y": 1}


def test_a_graph_that_ignores_cancellation_is_waited_for_when_another_fails() -> None:
    pipeline = Pipeline()
    pipeline.add_graph(lonely(Deaf()), "slow")
    pipeline.add_graph(one("sample/fail"), "broken")
    note = Events()

    with pytest.raises(BlockFailed, match="node 'broken/n'"):
        pipeline.run(max_workers=2, callbacks=note)
    assert ("slow", "after") in note.seen


def test_a_graph_that_checks_for_cancellation_ends_when_another_fails() -> None:
    pipeline = Pipeline()
    pipeline.add_graph(one("sample/slow", config={"seconds": 60}), "slow")
    pipeline.expose_input("slow", "x", "x")
    pipeline.add_graph(one("sample/fail"), "broken")
    note, begin = Events(), time.monotonic()

    with pytest.raises(BlockFailed, match="node 'broken/n'"):
        pipeline.run({"x": 1}, max_workers=2, callbacks=note)
    assert time.monotonic() - begin < 30
    assert ("slow", "after") not in note.seen


def test_a_stateful_block_in_several_graphs_is_called_in_order() -> None:
    def build() -> Pipeline:
        pipeline, total = Pipeline(), Accumulate()
        for name, seconds in (("slow", 0.1), ("quick", 0.0)):
            graph = Graph(registry=REGISTRY)
            graph.add_node("wait", "sample/slow", config={"seconds": seconds}, auto_connect=False)
            graph.add_node(total, node_id="sum", auto_connect=False)
            graph.add_edge(Edge("wait", "y", "sum", "x"))
            graph.expose_input("wait", "x", "x")
            graph.expose_output("sum", "total", "total")
            pipeline.add_graph(graph, name)
            pipeline.expose_input(name, "x", name)
            pipeline.expose_output(name, "total", name)
        return pipeline

    inputs = {"slow": 1, "quick": 10}
    assert build().run(inputs) == {"slow": 1, "quick": 11}
    assert build().run(inputs, max_workers=2) == {"slow": 1, "quick": 11}


def test_one_shared_block_computes_one_call_at_a_time() -> None:
    busy: list[int] = []

    class Alone(AbstractBaseBlock):
        inside = 0

        def declare_ports(self) -> list[Port]:
            return [Port("y", PortDirection.OUT)]

        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            self.inside += 1
            busy.append(self.inside)
            time.sleep(0.01)
            self.inside -= 1
            return {"y": 1}

    block, pipeline = Alone(), Pipeline()
    for number in range(4):
        pipeline.add_graph(lonely(block), f"g{number}")
    pipeline.run(max_workers=4)
    assert busy == [1, 1, 1, 1]


# -- readings of the canon's section 16 -------------------------------------------------------------------------


def test_16_13_a_missing_required_input_is_reported_by_validate_and_named_in_the_run() -> None:
    pipeline = doubles("a")
    pipeline.expose_output("a", "y", "y")

    assert any("graph 'a', input 'x' is required" in error for error in pipeline.validate(strict=False).errors)
    with pytest.raises(BlockFailed, match=r"node 'a/n' .* needs input 'x', which nothing fed") as failure:
        pipeline.run()
    assert failure.value.details["ports"] == ["x"]


def test_16_13_a_block_that_can_do_without_runs_without_the_key() -> None:
    pipeline = Pipeline()
    pipeline.add_graph(one("sample/scale"), "a")
    pipeline.expose_input("a", "x", "x")
    pipeline.expose_input("a", "factor", "factor")
    pipeline.expose_output("a", "y", "y")
    assert pipeline.run({"x": 3}) == {"y": 3}


def test_16_14_an_output_nobody_wrote_is_left_out() -> None:
    pipeline = Pipeline()
    pipeline.add_graph(one("sample/branch"), "a")
    pipeline.expose_input("a", "x", "x")
    for port in ("positive", "negative"):
        pipeline.expose_output("a", port, port)
    assert pipeline.run({"x": 1}) == {"positive": 1}
    assert pipeline.run({"x": 1}, dry_run=True) == {"positive": None, "negative": None}


def test_16_15_dtypes_are_lower_case_values() -> None:
    pipeline = noises("a")
    assert pipeline.get_output_spec(include_dtype=True)[0]["dtype"] == "tensor"


def test_16_18_and_19_are_about_configs_and_a_ref_beside_other_keys_is_none() -> None:
    config = chain("a").to_config()
    config["graphs"][0]["graph_config"] = {"ref": "a.json", "graph_id": "a"}
    with pytest.raises(InvalidConfig, match="ref"):
        Pipeline.from_config(config, REGISTRY)


def test_16_21_a_graph_is_what_is_placed_and_a_placed_pipeline_is_not_looked_into() -> None:
    outer = Pipeline()
    outer.add_graph(chain("a"), "inner")
    resolver = Placement({("inner",): Doubler()})
    Pipeline.from_config(outer.to_config(), REGISTRY, endpoints=resolver)
    assert [path for path, _ in resolver.asked] == [("inner",)]
