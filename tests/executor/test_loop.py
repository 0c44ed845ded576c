"""Running: buffers, cycles, hooks in their exact order, and the interface around user code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from samples.graphs import graph_of
from yggdrasill.errors import BlockFailed, Cancelled, EndpointUnreachable, HookFailed, MissingInput, TimedOut
from yggdrasill.executor import CancelToken, current_run, enter_run
from yggdrasill.foundation import AbstractBaseBlock, Graph, Node, Port, PortDirection


class Says(AbstractBaseBlock):
    """Returns, or raises, what it was made with."""

    def __init__(self, what: Any, block_id: str | None = None) -> None:
        super().__init__(block_id)
        self.what = what

    def declare_ports(self) -> Iterable[Port]:
        return [Port("x", PortDirection.IN, optional=True), Port("y", PortDirection.OUT), Port("z", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> Any:
        if isinstance(self.what, BaseException):
            raise self.what
        return self.what


class Nested(AbstractBaseBlock):
    """Runs a graph inside a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def declare_ports(self) -> Iterable[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.graph.run(inputs)


def saying(what: Any) -> Graph:
    graph = Graph()
    graph.add_node(Node("a", Says(what)))
    graph.expose_output("a", "y", "y")
    graph.expose_output("a", "z", "z")
    return graph


def counter(**metadata: Any) -> Graph:
    """Adds ``step`` to a carried total in every iteration."""
    return graph_of({"n": "add"}, ["n.out -> n.a"], ["n.a = start", "n.b = step"], ["n.out = total"], **metadata)


# -- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}], ids=repr)
def test_an_empty_value_is_a_value(value: Any) -> None:
    graph = graph_of({"a": ("identity", {"defaults": {"x": 9}})}, [], ["a.x = x"], ["a.y = y"])
    assert graph.run({"x": value}) == {"y": value}


def test_a_default_is_taken_if_nothing_else_brings_a_value() -> None:
    graph = graph_of(
        {"b": "branch", "s": ("scale", {"defaults": {"factor": 10}})}, ["b.positive -> s.factor"], ["b.x = x", "s.x = v"], ["s.y = y"]
    )
    assert graph.run({"x": 3, "v": 2}) == {"y": 6}
    assert graph.run({"x": -3, "v": 2}) == {"y": 20}


def test_an_edge_goes_before_a_given_value_and_that_before_a_default() -> None:
    graph = graph_of(
        {"b": "branch", "s": ("scale", {"defaults": {"factor": 10}})},
        ["b.positive -> s.factor"],
        ["b.x = x", "s.x = v", "s.factor = factor"],
        ["s.y = y"],
    )
    assert graph.run({"x": 3, "v": 1, "factor": 5}) == {"y": 3}
    assert graph.run({"x": -3, "v": 1, "factor": 5}) == {"y": 5}


def test_the_inputs_of_a_run_are_not_changed() -> None:
    inputs = {"x": 1}
    graph_of({"a": "double"}, [], ["a.x = x"], ["a.y = y"]).run(inputs)
    assert inputs == {"x": 1}


def test_a_graph_without_nodes_gives_nothing() -> None:
    assert Graph().run() == {}


# -- cycles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, metadata, expected", [(None, {}, 11), (3, {}, 13), (None, {"num_loop_steps": 4}, 14), (2, {"num_loop_steps": 4}, 12)]
)
def test_cycles_run_as_often_as_the_argument_says_else_the_metadata_else_once(argument: Any, metadata: Any, expected: int) -> None:
    assert counter(**metadata).run({"start": 10, "step": 1}, num_loop_steps=argument) == {"total": expected}


def test_a_cycle_that_runs_no_times_writes_nothing() -> None:
    assert counter().run({"start": 10, "step": 1}, num_loop_steps=0) == {}


@pytest.mark.parametrize("steps", [-1, 1.0, "2", True], ids=repr)
def test_a_count_that_is_none_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="num_loop_steps must be an integer of at least 0"):
        counter().run({"start": 1, "step": 1}, num_loop_steps=steps)


def test_a_carried_and_exposed_port_takes_the_given_value_until_its_producer_has_written() -> None:
    graph = graph_of({"a": "double", "b": "identity"}, ["a.y -> b.x", "b.y -> a.x"], ["a.x = x"], ["a.y = y"])
    assert [graph.run({"x": 1}, num_loop_steps=count)["y"] for count in (1, 2, 3)] == [2, 4, 8]


def test_inside_a_cycle_a_node_sees_what_earlier_ones_wrote_in_this_iteration_and_later_ones_in_the_last() -> None:
    graph = graph_of(
        {"a": ("add", {"offset": 1}), "b": ("add", {"offset": 100})},
        ["a.out -> b.a", "b.out -> a.a"],
        ["a.a = x", "a.b = zero", "b.b = zero"],
        ["a.out = a", "b.out = b"],
    )
    assert graph.run({"x": 0, "zero": 0}, num_loop_steps=1) == {"a": 1, "b": 101}
    assert graph.run({"x": 0, "zero": 0}, num_loop_steps=2) == {"a": 102, "b": 202}
    graph.metadata["cycle_order"] = ["b", "a"]
    graph.expose_input("b", "a", "x")
    assert graph.run({"x": 0, "zero": 0}, num_loop_steps=1) == {"a": 101, "b": 100}


def test_one_count_applies_to_every_cycle() -> None:
    graph = graph_of(
        {"a": ("add", {"offset": 1}), "b": ("add", {"offset": 1})},
        ["a.out -> a.a", "a.out -> b.b", "b.out -> b.a"],
        ["a.a = x", "a.b = x", "b.a = x"],
        ["a.out = a", "b.out = b"],
    )
    assert graph.run({"x": 0}, num_loop_steps=3) == {"a": 3, "b": 3 + 9}


# -- hooks ------------------------------------------------------------------------------------------------------


def test_hooks_see_every_step_in_order_and_nested_runs_have_their_own() -> None:
    seen: list[str] = []

    def hook(node: str, phase: str, **facts: Any) -> None:
        seen.append(f"{node} {phase}" + (f" {facts['iteration']}/{facts['num_steps']}" if phase == "loop_end" else ""))

    graph = graph_of(
        {"in": "identity", "b": "double", "a": "identity", "out": "identity"},
        ["in.y -> a.x", "a.y -> b.x", "b.y -> a.x", "b.y -> out.x"],
        ["in.x = x"],
        ["out.y = y"],
    )
    assert graph.run({"x": 1}, num_loop_steps=2, callbacks=hook) == {"y": 4}
    once = ["a before", "a after", "b before", "b after"]
    assert seen == [
        *("in before", "in after", "a loop_start"),
        *(*once, "a loop_end 1/2", *once, "a loop_end 2/2"),
        *("out before", "out after"),
    ]


def test_hooks_get_the_facts_of_their_phase() -> None:
    facts_of: dict[str, dict[str, Any]] = {}
    graph = graph_of({"a": "double"}, [], ["a.x = x"], ["a.y = y"])
    graph.run({"x": 2}, callbacks=lambda node, phase, **facts: facts_of.update({phase: facts}))
    assert set(facts_of["before"]) == {"buffer"}
    assert facts_of["after"] == {"buffer": {("a", "x"): 2, ("a", "y"): 4}, "inputs": {"x": 2}, "outputs": {"y": 4}}


def test_several_hooks_are_called_one_after_another() -> None:
    seen: list[str] = []
    hooks = [lambda node, phase, name=name, **facts: seen.append(f"{name} {phase}") for name in ("one", "two")]
    graph_of({"a": "double"}, [], ["a.x = x"], ["a.y"]).run({"x": 1}, callbacks=hooks)
    assert seen == ["one before", "two before", "one after", "two after"]


@pytest.mark.parametrize("callbacks", [3, "ab", [3], {"a": 1}], ids=repr)
def test_callbacks_that_cannot_be_called_are_refused(callbacks: Any) -> None:
    with pytest.raises(ValueError, match="callbacks must be a callable or a list of callables"):
        Graph().run({}, callbacks=callbacks)


def test_a_hook_that_raises_is_named_with_its_place() -> None:
    def hook(node: str, phase: str, **facts: Any) -> None:
        raise ZeroDivisionError("no")

    with pytest.raises(HookFailed, match="raised at 'a', phase 'before': ZeroDivisionError: no") as caught:
        graph_of({"a": "double"}, [], ["a.x = x"]).run({"x": 1}, callbacks=hook)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_hook_may_cancel_the_run() -> None:
    def hook(node: str, phase: str, **facts: Any) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        graph_of({"a": "double"}, [], ["a.x = x"]).run({"x": 1}, callbacks=hook)


def test_a_dry_run_walks_cycles_and_hooks_and_calls_no_block() -> None:
    seen: list[str] = []
    graph = graph_of({"a": "fail", "b": "fail"}, ["a.y -> b.x", "b.y -> a.x"], ["a.x = x"], ["b.y = y"])
    outputs = graph.run({}, dry_run=True, num_loop_steps=2, callbacks=lambda node, phase, **facts: seen.append(f"{node} {phase}"))
    assert outputs == {"y": None}
    assert seen == ["a loop_start", *(["a before", "a after", "b before", "b after", "a loop_end"] * 2)]


# -- failures ---------------------------------------------------------------------------------------------------


def test_a_block_that_raises_is_named_with_what_it_raised() -> None:
    error = ZeroDivisionError("no")
    with pytest.raises(BlockFailed, match=r"node 'a' \(Says\) failed: ZeroDivisionError: no") as caught:
        saying(error).run({})
    assert caught.value.__cause__ is error
    assert caught.value.details == {"node": "a", "block_type": "Says", "cause": "ZeroDivisionError"}


@pytest.mark.parametrize(
    "error", [Cancelled("stop"), TimedOut("late"), EndpointUnreachable("gone")], ids=lambda error: type(error).__name__
)
def test_what_is_not_the_blocks_fault_passes_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        saying(error).run({})
    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=lambda error: type(error).__name__)
def test_what_ends_the_process_is_never_caught(error: BaseException) -> None:
    with pytest.raises(type(error)):
        saying(error).run({})
    assert current_run().path == ()


@pytest.mark.parametrize("what", [None, 3, "y", ["y"], [], ("y", 1), {"y"}], ids=repr)
def test_a_block_that_returns_no_dict_is_named(what: Any) -> None:
    with pytest.raises(BlockFailed, match=rf"node 'a' \(Says\) returned {type(what).__name__}, not a dict by port name"):
        saying(what).run({})


def test_an_output_that_was_not_declared_is_named() -> None:
    with pytest.raises(BlockFailed, match=r"returned 'q', 'x', which it does not declare; its output ports are \['y', 'z'\]"):
        saying({"y": 1, "x": 2, "q": 3}).run({})


def test_declared_outputs_may_be_left_out() -> None:
    assert saying({"z": 1}).run({}) == {"z": 1}
    assert saying({}).run({}) == {}


def test_a_failure_inside_a_nested_run_keeps_its_full_path() -> None:
    inner = graph_of({"deep": ("fail", {"message": "broken"})}, [], ["deep.x = x"], ["deep.y = y"])
    graph = Graph()
    graph.add_node(Node("outer", Nested(inner)))
    graph.expose_input("outer", "x", "x")
    with pytest.raises(BlockFailed, match=r"node 'outer/deep' \(sample/fail\) failed: ValueError: broken") as caught:
        graph.run({"x": 1})
    assert caught.value.details["node"] == "outer/deep"


def test_a_missing_input_names_every_absent_port() -> None:
    with pytest.raises(MissingInput, match="needs input 'a', 'b', which nothing fed"):
        graph_of({"s": "add"}, [], ["s.a = a", "s.b = b"]).run({})


def test_a_failed_run_leaves_the_graph_ready_for_the_next() -> None:
    graph = graph_of({"f": ("fail", {"after": 1}), "d": "double"}, ["f.y -> d.x"], ["f.x = x"], ["d.y = y"])
    assert graph.run({"x": 1}) == {"y": 2}
    with pytest.raises(BlockFailed):
        graph.run({"x": 1})
    assert graph.get_node("f").block.lock.acquire(blocking=False), "the lock was given back"


# -- cancelling -------------------------------------------------------------------------------------------------


def test_a_run_stops_between_nodes_when_it_is_cancelled() -> None:
    token, seen = CancelToken(), []

    def hook(node: str, phase: str, **facts: Any) -> None:
        seen.append(f"{node} {phase}")
        if (node, phase) == ("a", "after"):
            token.cancel("the user left")

    graph = graph_of({"a": "double", "b": "double"}, ["a.y -> b.x"], ["a.x = x"], ["b.y = y"])
    with enter_run(token=token), pytest.raises(Cancelled, match="b: the user left") as caught:
        graph.run({"x": 1}, callbacks=hook)
    assert seen == ["a before", "a after"]
    assert caught.value.details == {"node": "b"}


def test_a_long_block_may_look_for_itself() -> None:
    token = CancelToken()
    graph = graph_of({"a": ("slow", {"seconds": 0.5})}, [], ["a.x = x"], ["a.y = y"])

    def progress(place: str, done: float, total: float, text: str | None) -> None:
        token.cancel()

    with enter_run(token=token, progress=progress), pytest.raises(Cancelled, match="a: cancelled"):
        graph.run({"x": 1})
