"""Changes between runs: blocks replaced, edges and nodes added and removed. The next run sees the structure as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from yggdrasill.errors import InvalidArgument, InvalidEdge, UnknownName
from yggdrasill.executor import current_run
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Edge, Graph, Node, Port, PortDirection

IN, OUT = PortDirection.IN, PortDirection.OUT


class Tagged(AbstractBaseBlock):
    """Returns its name with its inputs."""

    inputs_declared: tuple[Port, ...] = (Port("x", IN, optional=True), Port("b", IN, optional=True))

    def __init__(self, tag: str, block_id: str | None = None) -> None:
        super().__init__(block_id)
        self.tag = tag

    def declare_ports(self) -> list[Port]:
        return [*self.inputs_declared, Port("y", OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": (self.tag, *sorted(inputs.items()))}


class OnlyX(Tagged):
    """Has no port ``b``."""

    inputs_declared = (Port("x", IN, optional=True),)


class Text(Tagged):
    """Takes a text."""

    inputs_declared = (Port("x", IN, "text", optional=True), Port("b", IN, optional=True))


class Number(Tagged):
    """Returns a number."""

    def declare_ports(self) -> list[Port]:
        return [Port("y", OUT, "number")]


class Adapter(Tagged):
    """Computes with another block and marks the result."""

    def __init__(self, inner: AbstractBaseBlock) -> None:
        super().__init__("adapter")
        self.inner = inner

    def get_sub_blocks(self) -> dict[str, AbstractBaseBlock]:
        return {"inner": self.inner}

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": ("adapted", *self.inner.forward(inputs)["y"])}


def pair() -> Graph:
    graph = Graph("g")
    graph.add_node(Node("a", Tagged("a"), defaults={"b": 1}))
    graph.add_node(Node("c", Tagged("c")))
    graph.add_edge(Edge("a", "y", "c", "x"))
    graph.expose_input("a", "x", "x")
    graph.expose_output("c", "y", "y")
    return graph


# -- nodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field, value", [("block", Tagged("z")), ("defaults", {}), ("trainable", False), ("node_id", "z")])
def test_a_node_is_immutable(field: str, value: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(pair().get_node("a"), field, value)


def test_a_node_without_defaults_has_those_of_its_block_and_one_with_empty_defaults_has_none() -> None:
    block = Tagged("a")
    block.config["defaults"] = {"b": 2}
    assert Node("n", block).defaults == {"b": 2}
    assert Node("n", block, defaults={}).defaults == {}


def test_the_trainable_flag_is_kept_through_other_changes() -> None:
    graph = pair()
    graph.set_trainable("a", False)
    graph.replace_block("a", Tagged("new"))
    assert (graph.is_trainable("a"), graph.get_node("a").trainable) == (False, False)
    assert graph.get_node("a").defaults == {"b": 1}
    graph.set_trainable("a", True)
    assert graph.run() == {"y": ("c", ("x", ("new", ("b", 1))))}


# -- replacing a block ------------------------------------------------------------------------------------------


def test_a_replaced_block_computes_in_the_next_run_and_is_in_the_state() -> None:
    graph = pair()
    assert graph.run({"x": 0}) == {"y": ("c", ("x", ("a", ("b", 1), ("x", 0))))}
    adapter = Adapter(graph.get_node("a").block)
    graph.replace_block("a", adapter)
    assert graph.run({"x": 0}) == {"y": ("c", ("x", ("adapted", "a", ("b", 1), ("x", 0))))}
    assert graph.get_node("a").block is adapter
    assert adapter in list(graph.blocks())
    assert graph.validate().is_valid


@pytest.mark.parametrize(
    "node, block, error, message",
    [
        ("c", Number("n"), InvalidEdge, "edge a.y -> c.x: node 'c': Unknown input 'x'"),
        ("a", Number("n"), InvalidArgument, "has no input 'x', which graph 'g' exposes at node 'a'"),
        ("z", Tagged("z"), UnknownName, "'z'"),
        ("a", "no block", InvalidArgument, "node 'a' needs a block, got str"),
    ],
)
def test_a_block_that_does_not_fit_is_refused_and_changes_nothing(node: str, block: Any, error: type[Exception], message: str) -> None:
    graph = pair()
    program = graph.program()
    with pytest.raises(error) as caught:
        graph.replace_block(node, block)
    assert message in str(caught.value)
    assert graph.program() is program


def test_a_block_with_another_type_of_port_is_refused() -> None:
    graph = pair()
    graph.replace_block("c", Text("c"))
    graph.infer_exposed_ports()
    with pytest.raises(InvalidEdge, match="'number' does not fit 'text'"):
        graph.replace_block("a", Number("n"))


def test_a_wrapped_forward_is_called() -> None:
    graph = pair()
    graph.run()
    block = graph.get_node("c").block
    block.forward = lambda inputs: {"y": "wrapped"}  # type: ignore[method-assign]
    assert graph.run() == {"y": "wrapped"}


def test_a_block_cannot_change_a_nodes_default() -> None:
    class Appends(Tagged):
        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            inputs["b"]["items"].append(1)
            inputs["b"]["new"] = True
            return {"y": inputs["b"]}

    graph = Graph("g")
    graph.add_node(Node("n", Appends("n"), defaults={"b": {"items": []}}))
    graph.expose_output("n", "y", "y")
    assert graph.run() == graph.run() == {"y": {"items": [1], "new": True}}
    assert graph.get_node("n").defaults == {"b": {"items": []}}


# -- automatic wiring -------------------------------------------------------------------------------------------


class Source(Tagged):
    """A block without inputs."""

    inputs_declared = ()


class Conditioner(AbstractBaseBlock):
    """Gives an embedding."""

    block_type = "conditioner/sample"

    def declare_ports(self) -> list[Port]:
        return [Port("embedding", OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"embedding": "automatic"}


class Backbone(AbstractBaseBlock):
    """Returns its condition."""

    block_type = "backbone/sample"

    def declare_ports(self) -> list[Port]:
        return [Port("condition", IN), Port("pred", OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"pred": inputs["condition"]}


@pytest.mark.parametrize("order", ["cbs", "bcs", "sbc", "bsc"])
def test_an_explicit_edge_displaces_an_automatic_one_in_any_order(order: str) -> None:
    graph = Graph("g")
    make: dict[str, Callable[[], AbstractBaseBlock]] = {"c": Conditioner, "b": Backbone, "s": lambda: Source("explicit")}
    explicit = Edge("s", "y", "b", "condition")
    for name in order:
        graph.add_node(make[name](), node_id=name)
        if {"s", "b"} <= set(graph.nodes) and explicit not in graph.get_edges():
            graph.add_edge(explicit)
    graph.expose_output("b", "pred", "pred")
    assert graph.get_edges() == [explicit]
    assert graph.validate(strict=False).errors == []
    assert graph.run() == {"pred": ("explicit",)}
    graph.add_node(Conditioner(), node_id="d")
    assert graph.get_edges() == [explicit]


def test_an_automatic_edge_that_is_added_again_is_explicit() -> None:
    graph = Graph("g")
    graph.add_node(Conditioner(), node_id="d")
    graph.add_node(Backbone(), node_id="b")
    edge = Edge("d", "embedding", "b", "condition")
    assert graph.auto_wired == {edge}
    graph.add_edge(edge)
    assert graph.auto_wired == set()
    graph.add_node(Conditioner(), node_id="c")
    assert graph.get_edges() == [edge]


# -- modes ------------------------------------------------------------------------------------------------------


class Mode(Tagged):
    """Returns its mode."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": self.training}


class Waits(Source):
    """Waits for an event."""

    def __init__(self) -> None:
        super().__init__("waits")
        self.started, self.go = threading.Event(), threading.Event()

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.started.set()
        assert self.go.wait(20)
        return {"y": 1}


def test_a_concurrent_run_of_a_shared_block_does_not_change_the_mode_of_a_call() -> None:
    shared, waits = Mode("m"), Waits()
    train, serve = Graph("train"), Graph("serve")
    train.add_node(Node("w", waits))
    for graph in (train, serve):
        graph.add_node(Node("m", shared))
        graph.expose_output("m", "y", "y")
    train.add_edge(Edge("w", "y", "m", "x"))
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(train.run(training=True)))
    thread.start()
    assert waits.started.wait(20)
    assert serve.run() == {"y": False}
    waits.go.set()
    thread.join()
    assert seen == [{"y": True}]


class Module(Tagged):
    """A block whose mode is not its flag, as with a wrapped torch module."""

    def __init__(self) -> None:
        super().__init__("module")
        self.modes: list[bool] = []

    def train(self, mode: bool = True) -> Module:
        self.modes.append(mode)
        return self

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": self.modes[-1]}


def test_a_block_with_its_own_train_is_set_only_when_the_mode_differs() -> None:
    module = Module()
    graph = Graph("g")
    graph.add_node(Node("m", module))
    graph.expose_output("m", "y", "y")
    assert [graph.run(training=mode)["y"] for mode in (True, True, False, True, False)] == [True, True, False, True, False]
    assert module.modes[0] is True


def test_a_sub_block_that_another_block_set_is_set_again() -> None:
    part = Mode("part")
    first, second = Graph("first"), Graph("second")
    for graph in (first, second):
        graph.add_node(Node("h", Adapter(part)))
        graph.expose_output("h", "y", "y")
    part.forward = lambda inputs: {"y": (part.training,)}  # type: ignore[method-assign]
    assert first.run(training=True) == {"y": ("adapted", True)}
    assert second.run() == {"y": ("adapted", False)}
    assert first.run(training=True) == {"y": ("adapted", True)}


# -- nested runs ------------------------------------------------------------------------------------------------


class Random(Source):
    """A random number."""

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": float(current_run().rng().random())}


class Several(Tagged):
    """Runs a graph three times in one call."""

    def __init__(self, graph: Graph) -> None:
        super().__init__("several")
        self.graph = graph
        self.paths: list[tuple[str, ...]] = []

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": [self.graph.run()["y"] for _ in range(3)]}


def random_runs() -> Graph:
    inner = Graph("inner")
    inner.add_node(Node("r", Random("r")))
    inner.expose_output("r", "y", "y")
    graph = Graph("g")
    graph.add_node(Node("o", Several(inner)))
    graph.expose_output("o", "y", "y")
    return graph


def test_several_runs_nested_in_one_call_draw_different_numbers_that_repeat_with_the_seed() -> None:
    first, again, other = (random_runs().run(seed=seed)["y"] for seed in (1, 1, 2))
    assert len({*first, *other}) == 6
    assert first == again


def test_the_first_nested_run_of_a_call_has_the_path_of_its_node() -> None:
    with_one = Graph("g")
    inner = random_runs().get_node("o").block
    with_one.add_node(Node("o", inner))
    with_one.expose_output("o", "y", "y")
    expected = with_one.run(seed=4)["y"]
    alone = inner.graph  # type: ignore[attr-defined]
    from yggdrasill.executor import enter_run

    for number, path in enumerate(["o", "o+1", "o+2"]):
        with enter_run(seed=4, path=(path,)):
            assert alone.run()["y"] == expected[number]


# -- any sequence of changes ------------------------------------------------------------------------------------

IDS = "abcd"
PORTS = ("x", "b")


class StructureChanges(RuleBasedStateMachine):
    """A graph that is changed and run again and again equals a graph that is built anew with the same structure."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph("g", registry=BlockRegistry())
        self.tags: dict[str, str] = {}
        self.edges: list[Edge] = []
        self.outputs: list[str] = []
        self.count = 0

    def _tag(self) -> str:
        self.count += 1
        return f"block {self.count}"

    @rule(name=st.sampled_from(IDS))
    def add_node(self, name: str) -> None:
        if name not in self.tags:
            self.tags[name] = self._tag()
            self.graph.add_node(Node(name, Tagged(self.tags[name]), defaults={"b": name}))

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def remove_node(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        self.graph.remove_node(name)
        del self.tags[name]
        self.edges = [edge for edge in self.edges if name not in (edge.source_node, edge.target_node)]
        self.outputs = [output for output in self.outputs if output != name]

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def replace_block(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        self.tags[name] = self._tag()
        self.graph.replace_block(name, Tagged(self.tags[name]))

    @precondition(lambda self: self.tags)
    @rule(data=st.data(), port=st.sampled_from(PORTS))
    def add_edge(self, data: st.DataObject, port: str) -> None:
        source, target = (data.draw(st.sampled_from(sorted(self.tags))) for _ in range(2))
        if source < target:
            edge = Edge(source, "y", target, port)
            self.graph.add_edge(edge)
            self.edges += [] if edge in self.edges else [edge]

    @precondition(lambda self: self.edges)
    @rule(data=st.data())
    def remove_edge(self, data: st.DataObject) -> None:
        edge = data.draw(st.sampled_from(self.edges))
        self.graph.remove_edge(edge)
        self.edges.remove(edge)

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def expose(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        if name not in self.outputs:
            self.graph.expose_output(name, "y", name)
            self.outputs.append(name)

    @invariant()
    def a_run_equals_that_of_a_new_graph(self) -> None:
        new = Graph("new", registry=BlockRegistry())
        for name in self.graph.node_ids:
            new.add_node(Node(name, Tagged(self.tags[name]), defaults={"b": name}))
        for edge in self.edges:
            new.add_edge(edge)
        for name in self.outputs:
            new.expose_output(name, "y", name)
        assert self.graph.run() == new.run() == self.graph.run(max_workers=2)


StructureChanges.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestStructureChanges = StructureChanges.TestCase
