"""Building a graph and asking it questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samples.blocks import Add, Composite, Double
from samples.graphs import edge, graph_of, sample_registry
from yggdrasill.errors import DuplicateName, InvalidEdge, UnknownName
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Edge, Graph, Node, ReusePool


class Placed(Double):
    """Remembers where it was moved to."""

    def __init__(self, block_id: str | None = None) -> None:
        super().__init__(block_id)
        self.moves: list[Any] = []

    def to(self, device: Any) -> None:
        """Note the device."""
        self.moves.append(device)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class Holder(Double):
    """Has a part and no ``to``."""

    def __init__(self, part: AbstractBaseBlock) -> None:
        super().__init__()
        self.part = part

    def get_sub_blocks(self) -> dict[str, AbstractBaseBlock]:
        return {"part": self.part}


def empty(**options: Any) -> Graph:
    return Graph(registry=sample_registry(), **options)


# -- adding nodes -----------------------------------------------------------------------------------------------


def test_add_node_by_id_and_type_builds_the_block() -> None:
    graph = empty()
    assert graph.add_node("a", "sample/add", config={"offset": 3}) == "a"
    assert graph.get_node("a").block.state_dict() == {"offset": 3}


def test_add_node_by_type_alone_makes_ids_of_the_type() -> None:
    graph = empty()
    assert [graph.add_node("sample/add") for _ in range(3)] == ["sample_add_1", "sample_add_2", "sample_add_3"]
    graph.remove_node("sample_add_2")
    assert graph.add_node("sample/add") == "sample_add_2"
    assert graph.add_node("sample/add", node_id="mine") == "mine"


def test_add_node_takes_a_block_as_it_is() -> None:
    graph, block = empty(), Add()
    assert graph.add_node(block) == "sample_add_1"
    assert graph.add_node(Double(), node_id="d", trainable=False) == "d"
    assert graph.get_node("sample_add_1").block is block
    assert not graph.is_trainable("d")


def test_add_node_takes_a_node_and_nothing_beside_it() -> None:
    graph = empty()
    assert graph.add_node(Node("n", Add())) == "n"
    extras: list[dict[str, Any]] = [
        {"block_type": "sample/add"},
        {"node_id": "x"},
        {"config": {}},
        {"block_id": "x"},
        {"pretrained": {}},
        {"registry": graph.registry},
        {"trainable": False},
    ]
    for extra in extras:
        with pytest.raises(ValueError, match="takes no other argument"):
            graph.add_node(Node("m", Add()), **extra)
    assert graph.node_ids == ["n"]


def test_a_node_given_whole_is_not_wired() -> None:
    graph = empty()
    graph.add_node("backbone", "backbone/identity")
    graph.add_node(Node("solver", graph.registry.build({"type": "solver/identity"})))
    assert graph.get_edges() == []


def test_a_block_given_whole_takes_no_type_or_config() -> None:
    extras: list[dict[str, Any]] = [{"block_type": "sample/add"}, {"config": {}}, {"block_id": "x"}, {"registry": sample_registry()}]
    for extra in extras:
        with pytest.raises(ValueError, match="takes no block type or config"):
            empty().add_node(Add(), **extra)


def test_an_id_is_taken_once() -> None:
    graph = graph_of({"a": "add"})
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (("a", "sample/add"), {}),
        ((Node("a", Add()),), {}),
        ((Add(),), {"node_id": "a"}),
        (("sample/add",), {"node_id": "a"}),
    ]
    for arguments, options in calls:
        with pytest.raises(DuplicateName, match=r"node_id 'a' is taken\. Existing: 'a'"):
            graph.add_node(*arguments, **options)


@pytest.mark.parametrize(
    "arguments, options",
    [(("", "sample/add"), {}), ((" ",), {}), (("sample/add",), {"node_id": ""}), ((3,), {}), ((None, "sample/add"), {})],
    ids=repr,
)
def test_a_blank_id_or_type_is_refused(arguments: Any, options: Any) -> None:
    with pytest.raises(ValueError, match="must be a non-empty string"):
        empty().add_node(*arguments, **options)


def test_two_ids_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="two node ids, 'a' and 'b'"):
        empty().add_node("a", "sample/add", node_id="b")


def test_an_unknown_type_is_a_key_error_and_adds_nothing() -> None:
    graph = empty()
    with pytest.raises(KeyError, match="Did you mean 'sample/add'"):
        graph.add_node("a", "sample/ad")
    assert graph.node_ids == []


def test_pretrained_is_a_state_or_a_file_and_takes_what_fits(tmp_path: Path) -> None:
    graph = empty()
    graph.add_node("a", "sample/add", pretrained={"offset": 5, "stray": 1})
    (tmp_path / "w.json").write_text(json.dumps({"offset": 6}), encoding="utf-8")
    graph.add_node("b", "sample/add", pretrained=tmp_path / "w.json")
    graph.add_node(Add(), node_id="c", pretrained=str(tmp_path / "w.json"))
    assert graph.state_dict() == {"a": {"offset": 5}, "b": {"offset": 6}, "c": {"offset": 6}}


def test_a_registry_may_be_given_for_one_node() -> None:
    registry = BlockRegistry()
    registry.register("only/here", Add)
    graph = Graph()
    graph.add_node("a", "only/here", registry=registry)
    with pytest.raises(KeyError):
        graph.add_node("b", "only/here")


@pytest.mark.parametrize("graph_id", ["", " ", None], ids=repr)
def test_a_graph_needs_an_id_and_a_known_kind(graph_id: Any) -> None:
    with pytest.raises(ValueError, match="graph_id must be a non-empty string"):
        Graph(graph_id)
    with pytest.raises(ValueError, match="Available: diffusion, llm, vlm, data, generic"):
        Graph(graph_kind="picture")


# -- edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("x.out -> b.a", "edge x.out -> b.a: Unknown node 'x'. Available: 'a', 'b', 'n'."),
        ("a.out -> x.a", "Unknown node 'x'"),
        ("a.outt -> b.a", "node 'a': Unknown output 'outt'. Available: 'out'"),
        ("a.out -> b.c", "node 'b': Unknown input 'c'. Available: 'a', 'b'"),
        ("a.a -> b.a", "'a' is an input of node 'a', not an output. Available: 'out'"),
        ("a.out -> b.out", "'out' is an output of node 'b', not an input. Available: 'a', 'b'"),
        ("n.noise -> t.text", "Unknown node 't'"),
    ],
)
def test_an_edge_that_cannot_be_is_refused(text: str, message: str) -> None:
    graph = graph_of({"a": "add", "b": "add", "n": "noise"})
    with pytest.raises(InvalidEdge) as caught:
        graph.add_edge(edge(text))
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert graph.get_edges() == []


def test_types_that_do_not_fit_make_no_edge() -> None:
    graph = Graph()
    graph.add_node("text", "tokenizer/identity")
    graph.add_node("codec", "codec/identity")
    with pytest.raises(InvalidEdge, match=r"codec.decode_image -> text.text: 'image' does not fit 'text'; types must be equal"):
        graph.add_edge(edge("codec.decode_image -> text.text"))


def test_only_edges_are_edges() -> None:
    with pytest.raises(ValueError, match="add_edge takes an Edge"):
        empty().add_edge("a.x -> b.y")  # type: ignore[arg-type]


def test_the_same_edge_again_changes_nothing() -> None:
    graph = graph_of({"a": "double", "b": "double"}, ["a.y -> b.x"])
    version = graph.execution_version
    graph.add_edge(edge("a.y -> b.x"))
    assert (graph.get_edges(), graph.execution_version) == ([edge("a.y -> b.x")], version)


def test_edges_are_found_by_end() -> None:
    graph = graph_of({"a": "double", "b": "add", "c": "double"}, ["a.y -> b.a", "a.y -> b.b", "b.out -> c.x"])
    assert list(map(str, graph.get_edges_in("b"))) == ["a.y -> b.a", "a.y -> b.b"]
    assert list(map(str, graph.get_edges_out("b"))) == ["b.out -> c.x"]
    with pytest.raises(UnknownName, match="Unknown node 'z'"):
        graph.get_edges_in("z")


def test_removing_an_edge_or_a_node_takes_what_hangs_on_it() -> None:
    graph = graph_of({"a": "double", "b": "double", "c": "double"}, ["a.y -> b.x", "b.y -> c.x", "b.y -> b.x"], ["b.x = x"], ["b.y = y"])
    with pytest.raises(UnknownName, match=r"Unknown edge 'c\.y -> a\.x'"):
        graph.remove_edge(edge("c.y -> a.x"))
    graph.remove_edge(edge("a.y -> b.x"))
    assert list(map(str, graph.get_edges())) == ["b.y -> c.x", "b.y -> b.x"]
    graph.remove_node("b")
    assert (graph.node_ids, graph.get_edges(), graph.get_input_spec(), graph.get_output_spec()) == (["a", "c"], [], [], [])
    with pytest.raises(KeyError):
        graph.remove_node("b")
    graph.add_node("b", "sample/add")
    assert graph.get_edges_in("b") == []


def test_a_plan_made_before_a_change_is_made_again() -> None:
    graph = graph_of({"a": "double", "b": "double"}, ["a.y -> b.x"], ["a.x = x"], ["b.y = y"])
    assert graph.run({"x": 1}) == {"y": 4}
    graph.remove_edge(edge("a.y -> b.x"))
    graph.expose_input("b", "x", "x")
    assert graph.run({"x": 1}) == {"y": 2}
    graph.remove_node("a")
    assert graph.run({"x": 3}) == {"y": 6}


# -- exposed ports ----------------------------------------------------------------------------------------------


def test_an_external_key_is_the_name_or_node_and_port() -> None:
    graph = graph_of({"a": "add"}, [], ["a.a = left", "a.b"], ["a.out"])
    assert [entry["name"] for entry in graph.get_input_spec()] == ["left", "a:b"]
    assert graph.run({"left": 1, "a:b": 2}) == {"a:out": 3}


def test_inputs_may_be_keyed_by_node_and_port_too() -> None:
    graph = graph_of({"a": "add"}, [], ["a.a = left"], ["a.out = out"])
    assert graph.run({"left": 1, ("a", "b"): 2}) == {"out": 3}


@pytest.mark.parametrize("key", ["a:b", ("a", "z"), ("z", "a"), 3, None, "a"], ids=repr)
def test_an_input_nothing_takes_is_named_with_those_that_are(key: Any) -> None:
    graph = graph_of({"a": "add"}, [], ["a.a = left", "a.b = right"], ["a.out = out"])
    with pytest.raises(UnknownName, match="Available: 'left', 'right'"):
        graph.run({key: 1})


def test_exposing_what_is_not_there_is_refused() -> None:
    graph = graph_of({"a": "add"})
    with pytest.raises(KeyError, match="Unknown node 'b'"):
        graph.expose_input("b", "a")
    with pytest.raises(ValueError, match=r"node 'a': Unknown input 'out'\. Available: 'a', 'b'"):
        graph.expose_input("a", "out")
    with pytest.raises(ValueError, match=r"node 'a': Unknown output 'a'\. Available: 'out'"):
        graph.expose_output("a", "a")
    with pytest.raises(ValueError, match="must be a non-empty string"):
        graph.expose_input("a", "a", "  ")


def test_exposing_twice_changes_nothing_and_an_output_name_is_one_port() -> None:
    graph = graph_of({"a": "add", "b": "double"}, [], ["a.a = x", "a.a = x"], ["a.out = y", "a.out = y"])
    assert (len(graph.get_input_spec()), len(graph.get_output_spec())) == (1, 1)
    with pytest.raises(DuplicateName, match=r"output 'y' already comes from a\.out"):
        graph.expose_output("b", "y", "y")


def test_an_output_may_leave_under_two_names() -> None:
    assert graph_of({"a": "double"}, [], ["a.x = x"], ["a.y = one", "a.y = two"]).run({"x": 1}) == {"one": 2, "two": 2}


def test_one_output_feeds_many_inputs_by_reference() -> None:
    value: list[int] = [1]
    graph = graph_of({"a": "identity", "b": "identity", "c": "identity"}, ["a.y -> b.x", "a.y -> c.x"], ["a.x = x"], ["b.y = b", "c.y = c"])
    outputs = graph.run({"x": value})
    assert outputs["b"] is outputs["c"] is value


# -- parameters, devices, modes ---------------------------------------------------------------------------------


def test_trainable_parameters_are_those_of_trainable_nodes_each_once() -> None:
    graph = graph_of({"a": "linear", "b": "linear", "c": "add"})
    assert len(list(graph.trainable_parameters())) == 4
    graph.set_trainable("a", False)
    assert not graph.is_trainable("a")
    assert [id(p) for p in graph.trainable_parameters()] == [id(p) for p in graph.get_node("b").block.trainable_parameters()]
    graph.get_node("b").block.freeze()
    assert list(graph.trainable_parameters()) == []
    with pytest.raises(KeyError):
        graph.set_trainable("z", True)


def test_a_shared_block_is_trainable_if_any_of_its_nodes_is() -> None:
    graph, block = empty(), Composite()
    graph.add_node(block, node_id="a", trainable=False)
    graph.add_node(block, node_id="b")
    assert len(list(graph.trainable_parameters())) == 2


def test_to_moves_blocks_and_the_parts_of_blocks_that_cannot_move_themselves() -> None:
    whole, part = Placed(), Placed()
    graph = graph_of({"c": "add"})
    graph.add_node(whole, node_id="whole")
    graph.add_node(whole, node_id="again")
    graph.add_node(Holder(part), node_id="holder")
    assert graph.to("cpu").to(None) is graph
    assert (whole.moves, part.moves) == (["cpu"], ["cpu"])


def test_a_run_sets_the_mode_of_every_block() -> None:
    graph = graph_of({"a": "double", "b": "composite"}, ["a.y -> b.a", "a.y -> b.b"], ["a.x = x"], ["b.out = y"])
    part = graph.get_node("b").block.get_sub_blocks()["sum"]
    for training in (False, True, False):
        graph.run({"x": 1}, training=training)
        assert [graph.get_node("a").block.training, graph.get_node("b").block.training, part.training] == [training] * 3


def test_run_moves_blocks_to_the_device() -> None:
    graph, block = empty(), Placed()
    graph.add_node(block)
    graph.run({}, device="cuda:7")
    graph.run({})
    assert block.moves == ["cuda:7"]


def test_a_graph_of_two_thousand_edges_into_one_port_is_built_and_run_quickly() -> None:
    graph = empty(pool=ReusePool())
    graph.add_node("sum", "sample/mix", auto_connect=False)
    for number in range(2000):
        graph.add_node(Node(f"n{number}", Double()))
        graph.add_edge(Edge(f"n{number}", "y", "sum", "terms"))
        graph.expose_input(f"n{number}", "x", "x")
    graph.expose_output("sum", "out", "out")
    assert graph.validate().is_valid
    assert graph.run({"x": 1}) == {"out": 4000}
