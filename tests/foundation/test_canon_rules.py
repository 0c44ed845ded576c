"""The specification's readings of its own unclear places (section 16), those of ports, blocks, graphs and the executor."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.graphs import edge, graph_of, sample_registry
from yggdrasill.errors import InvalidConfig, MissingInput
from yggdrasill.foundation import AbstractBaseBlock, Graph, Node, Port, PortDirection, role_from_block_type


class Trace(AbstractBaseBlock):
    """``y`` is ``x`` with this block's id added."""

    def declare_ports(self) -> Iterable[Port]:
        return [Port("x", PortDirection.IN, optional=True), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": [*inputs.get("x", []), self.block_id]}


class Detached(AbstractBaseBlock):
    """What an API block does to gradients: its answer is a new value."""

    def declare_ports(self) -> Iterable[Port]:
        return [Port("x", PortDirection.IN), Port("x_out", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"x_out": inputs["x"].detach()}


class SingleConditionBackbone(AbstractBaseBlock):
    """A backbone whose ``condition`` takes one value."""

    block_type = "backbone/single"

    def declare_ports(self) -> Iterable[Port]:
        for name in ("latent", "timestep", "condition"):
            yield Port(name, PortDirection.IN, optional=True)
        yield Port("pred", PortDirection.OUT)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"pred": inputs.get("condition")}


def ring_of_traces(ids: str, **metadata: Any) -> Graph:
    """A ring of `Trace` nodes added in the order of ``ids``, each feeding the next."""
    graph = Graph(metadata=metadata)
    for node_id in ids:
        graph.add_node(Node(node_id, Trace(node_id)))
    for source, target in zip(ids, ids[1:] + ids[0], strict=True):
        graph.add_edge(edge(f"{source}.y -> {target}.x"))
    graph.expose_output(ids[-1], "y", "y")
    return graph


def calls(graph: Graph, **options: Any) -> list[str]:
    seen: list[str] = []
    graph.run({}, callbacks=lambda node, phase, **facts: seen.append(node) if phase == "before" else None, **options)
    return seen


def test_16_9_a_cycle_runs_in_sorted_id_order() -> None:
    assert calls(ring_of_traces("cab"), num_loop_steps=2) == ["a", "b", "c"] * 2


def test_16_9_metadata_replaces_the_order_of_a_cycle_and_may_change_later() -> None:
    graph = ring_of_traces("cab", cycle_order=["c", "a", "b"])
    assert calls(graph) == ["c", "a", "b"]
    graph.metadata["cycle_order"] = ["b"]
    assert calls(graph) == ["b", "a", "c"]
    assert graph.plan().steps[0][1][0] == "a", "the representative stays the smallest id"


def test_16_9_validate_names_what_a_cycle_order_gets_wrong() -> None:
    graph = ring_of_traces("cab", cycle_order=["c", "x"])
    assert "'cycle_order': Unknown node 'x'" in graph.validate(strict=False).errors[0]
    graph.metadata["cycle_order"] = "cab"
    with pytest.raises(ValueError, match="must be a list of node ids"):
        graph.plan()


def test_16_10_one_initialiser_edge_and_one_carried_edge_may_share_a_single_port() -> None:
    graph = graph_of(
        {"start": "identity", "count": ("add", {"offset": 1})},
        ["start.y -> count.a", "count.out -> count.a"],
        ["start.x = x", "count.b = b"],
        ["count.out = out"],
    )
    assert graph.validate().is_valid
    assert graph.run({"x": 10, "b": 0}, num_loop_steps=1) == {"out": 11}, "the initialiser comes first"
    assert graph.run({"x": 10, "b": 0}, num_loop_steps=3) == {"out": 13}, "then what the cycle carries"


def test_16_10_the_carried_edge_wins_whichever_edge_was_added_first() -> None:
    graph = graph_of(
        {"start": "identity", "count": ("add", {"offset": 1})},
        ["count.out -> count.a", "start.y -> count.a"],
        ["start.x = x", "count.b = b"],
        ["count.out = out"],
    )
    assert graph.run({"x": 10, "b": 0}, num_loop_steps=3) == {"out": 13}


def test_16_10_an_auto_wired_solver_feeds_itself() -> None:
    graph = Graph()
    graph.add_node("solver", "solver/identity")
    assert set(map(str, graph.get_edges())) == {"solver.next_latent -> solver.latent", "solver.next_timestep -> solver.timestep"}


def test_16_11_a_codec_that_decodes_stays_outside_the_loop() -> None:
    graph = Graph.from_template("text_to_image")
    assert graph.validate().is_valid
    looping = {node for cycle in graph.plan().cycles for node in cycle}
    codec = next(node for node in graph.node_ids if graph.get_node(node).block_type.startswith("codec"))
    assert codec not in looping
    assert {graph.get_node(node).block_type.split("/")[0] for node in looping} == {"backbone", "solver"}


def test_16_11_one_codec_for_both_is_wired_as_decoder_only() -> None:
    graph = Graph()
    for role in ("solver", "codec"):
        graph.add_node(role, f"{role}/identity")
    assert "solver.next_latent -> codec.decode_latent" in map(str, graph.get_edges())
    assert graph.get_edges_out("codec") == []


def test_16_12_guidance_displaces_the_direct_edge_and_add_order_does_not_matter() -> None:
    types = {"backbone": "backbone/identity", "solver": "solver/identity", "guide": "guidance/identity"}
    results = []
    for order in itertools.permutations(types):
        graph = Graph()
        for node_id in order:
            graph.add_node(node_id, types[node_id])
        results.append(sorted(map(str, graph.get_edges())))
    assert all(result == results[0] for result in results)
    assert "guide.pred_guided -> solver.pred" in results[0]
    assert "backbone.pred -> guide.pred_cond" in results[0]
    assert "backbone.pred -> solver.pred" not in results[0]


@pytest.mark.parametrize("backbone", ["backbone/identity", "backbone/single"])
def test_16_12_add_order_does_not_matter_for_a_condition_that_two_rules_want(backbone: str) -> None:
    registry = sample_registry()
    registry.register("backbone/single", SingleConditionBackbone)
    types = {"text": "conditioner/identity", "other": "conditioner/identity", "lora": "adapter/identity", "net": backbone}
    wirings = []
    for order in itertools.permutations(types):
        graph = Graph(registry=registry)
        for node_id in order:
            graph.add_node(node_id, types[node_id])
        into = [str(link) for link in graph.get_edges_in("net")]
        wirings.append((sorted(map(str, graph.get_edges())), into))
    assert all(wiring == wirings[0] for wiring in wirings), "the edges, and the order in which a port takes them"
    single = ["lora.adapted -> net.condition"]
    both = [*single, "other.embedding -> net.condition", "text.embedding -> net.condition"]
    assert wirings[0][1] == (both if backbone == "backbone/identity" else single)


def test_16_13_a_missing_input_is_left_out_and_what_the_block_raises_names_node_and_port() -> None:
    graph = graph_of({"scale": "scale", "sum": "add"}, ["scale.y -> sum.a"], ["scale.x = x", "scale.factor = factor"], ["sum.out"])
    result = graph.validate(strict=False)
    assert result.errors == ["node 'sum', input 'b' is required and nothing feeds it; connect it, expose it, or give a default"]
    with pytest.raises(MissingInput, match=r"node 'sum' \(sample/add\) needs input 'b', which nothing fed") as caught:
        graph.run({"x": 1})
    assert caught.value.details["node"] == "sum"
    assert caught.value.details["ports"] == ["b"]
    assert isinstance(caught.value.__cause__, KeyError)


def test_16_13_a_block_may_do_without_an_input() -> None:
    graph = graph_of({"scale": "scale"}, [], ["scale.x = x", "scale.factor = factor"], ["scale.y = y"])
    assert graph.run({"x": 3}) == {"y": 3}


def test_16_13_one_external_name_may_feed_several_ports() -> None:
    graph = graph_of({"sum": "add", "twice": "double"}, [], ["sum.a = x", "sum.b = x", "twice.x = x"], ["sum.out = sum", "twice.y = twice"])
    assert graph.run({"x": 4}) == {"sum": 8, "twice": 8}


def test_16_14_an_output_nothing_wrote_is_left_out() -> None:
    graph = graph_of({"b": "branch"}, [], ["b.x = x"], ["b.positive = yes", "b.negative = no"])
    assert graph.run({"x": 1}) == {"yes": 1}
    assert graph.run({"x": 1}, dry_run=True) == {"yes": None, "no": None}


def test_16_15_dtypes_are_lower_case_values() -> None:
    graph = graph_of({"n": "noise"}, [], ["n.after"], ["n.noise"])
    entries = graph.get_input_spec(include_dtype=True) + graph.get_output_spec(include_dtype=True)
    assert [entry["dtype"] for entry in entries] == ["any", "tensor"]
    assert json.loads(json.dumps(entries)) == entries


def test_16_16_a_graph_config_has_nodes_and_no_leftover_key() -> None:
    with pytest.raises(InvalidConfig, match="stages: Extra inputs are not permitted"):
        Graph.from_config({"graph_id": "g", "stages": []}, sample_registry())


def test_16_17_a_noise_schedule_is_the_solvers_own_unless_a_graph_brings_one() -> None:
    assert role_from_block_type("noise_schedule/karras") is None
    template = Graph.from_template("text_to_image")
    assert {role_from_block_type(node.block_type) for node in template.nodes.values()} == {
        "tokenizer", "conditioner", "backbone", "solver", "codec"
    }  # fmt: skip
    assert template.validate().is_valid


def test_16_18_configs_are_written_as_json_and_read_as_json_or_yaml(tmp_path: Path) -> None:
    graph = graph_of({"a": ("add", {"offset": 1})}, [], ["a.a = a", "a.b = b"], ["a.out = out"])
    graph.save(tmp_path / "save")
    assert json.loads((tmp_path / "save" / "config.json").read_text(encoding="utf-8")) == graph.to_config()
    graph.save_config(tmp_path / "graph.yaml")
    (tmp_path / "save" / "config.json").unlink()
    (tmp_path / "graph.yaml").rename(tmp_path / "save" / "config.yaml")
    assert Graph.load(tmp_path / "save", registry=sample_registry()).to_config() == graph.to_config()


def test_16_19_only_a_dict_that_is_exactly_a_ref_is_one(tmp_path: Path) -> None:
    (tmp_path / "add.yaml").write_text("offset: 5\n", encoding="utf-8")
    nodes = [
        {"node_id": "a", "block_type": "sample/add", "config": {"ref": "add.yaml"}},
        {"node_id": "b", "block_type": "sample/add", "config": {"ref": "add.yaml", "offset": 1}},
        {"node_id": "c", "block_type": "sample/add", "config": {"inner": {"ref": "add.yaml"}}},
    ]
    graph = Graph.from_config({"nodes": nodes}, sample_registry(), base_dir=tmp_path)
    assert [graph.get_node(node).config for node in "abc"] == [
        {"offset": 5},
        {"ref": "add.yaml", "offset": 1},
        {"inner": {"ref": "add.yaml"}},
    ]


def test_16_20_loop_start_comes_once_and_loop_end_after_every_iteration() -> None:
    seen = []

    def hook(node: str, phase: str, **facts: Any) -> None:
        if phase.startswith("loop"):
            seen.append((node, phase, facts))

    ring_of_traces("ba").run({}, num_loop_steps=3, callbacks=hook)
    assert seen == [
        ("a", "loop_start", {"num_steps": 3, "node_ids": ["a", "b"]}),
        *[("a", "loop_end", {"iteration": i, "num_steps": 3}) for i in (1, 2, 3)],
    ]


def test_16_22_gradients_stop_at_an_api_block_so_training_reaches_what_is_behind_it() -> None:
    graph = Graph(registry=sample_registry())
    graph.add_node("before", "sample/linear", config={"seed": 1})
    graph.add_node(Node("api", Detached()))
    graph.add_node("behind", "sample/linear", config={"seed": 2})
    for link in ("before.y -> api.x", "api.x_out -> behind.x"):
        graph.add_edge(edge(link))
    graph.expose_input("before", "x", "x")
    graph.expose_output("behind", "y", "y")
    graph.run({"x": torch.ones(3)}, training=True)["y"].sum().backward()
    before, behind = (list(graph.get_node(name).block.trainable_parameters()) for name in ("before", "behind"))
    assert all(parameter.grad is None for parameter in before)
    assert all(parameter.grad is not None for parameter in behind)
