"""The reuse pool: one live block per model, and the states and parameters of blocks that several nodes share."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.blocks import Accumulate, Add, Linear
from samples.graphs import bits, graph_of, sample_registry
from yggdrasill.foundation import Graph, Node, ReusePool
from yggdrasill.foundation.checkpoints import pack_state
from yggdrasill.foundation.pool import Identity, identify, names_model


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A weights file for a linear block of size 3."""
    file = tmp_path / "linear.safetensors"
    file.write_bytes(pack_state(Linear(config={"seed": 42}).state_dict(), "safetensors"))
    return str(file)


def two_users(ref: str, pool: ReusePool | None = None, key: str = "checkpoint_ref") -> Graph:
    """A chain of two linear nodes of one model."""
    return graph_of(
        {"a": ("linear", {key: ref}), "b": ("linear", {key: ref})}, ["a.y -> b.x"], ["a.x = x"], ["b.y = y"], pool=pool or ReusePool()
    )


@pytest.mark.parametrize("key", ["checkpoint_ref", "checkpoint_path", "model_id"])
def test_two_users_of_one_ref_have_one_object(weights: str, key: str) -> None:
    graph = two_users(weights, key=key)
    assert graph.get_node("a").block is graph.get_node("b").block
    assert len(list(graph.blocks())) == 1


def test_so_have_two_users_in_a_config(weights: str) -> None:
    config = two_users(weights).to_config()
    loaded = Graph.from_config(config, sample_registry(), pool=ReusePool())
    assert loaded.get_node("a").block is loaded.get_node("b").block
    assert [node["config"] for node in loaded.to_config()["nodes"]] == [{"checkpoint_ref": weights}] * 2


def test_so_have_two_graphs_of_one_pool_and_by_default_of_one_process(weights: str) -> None:
    pool = ReusePool()
    assert two_users(weights, pool).get_node("a").block is two_users(weights, pool).get_node("a").block
    config = two_users(weights).to_config()
    first, second = (Graph.from_config(config, sample_registry()) for _ in range(2))
    assert first.get_node("a").block is second.get_node("a").block
    assert first.pool is ReusePool.shared()


def test_the_weights_a_ref_names_are_loaded(weights: str) -> None:
    block = two_users(weights).get_node("a").block
    assert bits(block.state_dict()) == bits(Linear(config={"seed": 42}).state_dict())


def test_results_equal_those_without_sharing(weights: str) -> None:
    x = torch.tensor([1.0, -2.0, 0.5])
    shared, apart = two_users(weights), two_users(weights, ReusePool.off())
    assert apart.get_node("a").block is not apart.get_node("b").block
    assert bits(shared.run({"x": x})) == bits(apart.run({"x": x}))


@pytest.mark.parametrize(
    "first, second",
    [({"size": 3}, {"size": 4}), ({"checkpoint_ref": "env://a"}, {"checkpoint_ref": "env://b"}), ({}, {"backend": "api"})],
    ids=repr,
)
def test_another_load_configuration_is_another_model(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    configs = [{"model_id": "m", **config} for config in (first, second)]
    graph = graph_of({"a": ("linear", configs[0]), "b": ("linear", configs[1])}, pool=ReusePool())
    assert graph.get_node("a").block is not graph.get_node("b").block


def test_another_type_is_another_model_and_no_ref_is_none() -> None:
    graph = graph_of({"a": ("add", {"model_id": "m"}), "b": ("double", {"model_id": "m"}), "c": "add", "d": "add"}, pool=ReusePool())
    assert len({id(block) for block in graph.blocks()}) == 4
    assert identify(Add, "sample/add", {"offset": 1}) is None
    assert not names_model({"model_id": ""})


def test_defaults_belong_to_the_node_not_to_the_shared_block() -> None:
    configs: list[dict[str, Any]] = [{"model_id": "m", "defaults": {"b": 1}}, {"model_id": "m", "defaults": {"b": 10}}, {"model_id": "m"}]
    graph = graph_of(
        {name: ("add", config) for name, config in zip("uvw", configs, strict=True)},
        [],
        ["u.a = x", "v.a = x", "w.a = x"],
        ["u.out = u", "v.out = v"],
        pool=ReusePool(),
    )
    assert len(list(graph.blocks())) == 1
    assert [node["config"] for node in graph.to_config()["nodes"]] == configs
    assert graph.validate(strict=False).errors == [
        "node 'w', input 'b' is required and nothing feeds it; connect it, expose it, or give a default"
    ]
    graph.remove_node("w")
    assert graph.run({"x": 0}) == {"u": 1, "v": 10}


def test_a_node_with_weights_of_its_own_shares_nothing(weights: str) -> None:
    graph = two_users(weights)
    before = bits(graph.get_node("a").block.state_dict())
    graph.add_node("own", "sample/linear", config={"checkpoint_ref": weights}, pretrained={"bias": torch.zeros(3)})
    assert graph.get_node("own").block is not graph.get_node("a").block
    assert bits(graph.get_node("a").block.state_dict()) == before


def test_an_empty_pool_of_ones_own_is_used_and_not_taken_for_none() -> None:
    pool = ReusePool()
    graph = Graph(pool=pool)
    assert graph.pool is pool
    assert ReusePool.off().shares is False


def test_a_block_lives_as_long_as_its_last_user(weights: str) -> None:
    pool = ReusePool()
    graph = two_users(weights, pool)
    assert len(pool) == 1
    graph.remove_node("a")
    gc.collect()
    assert len(pool) == 1
    del graph
    gc.collect()
    assert len(pool) == 0


def test_a_model_that_cannot_be_loaded_leaves_nothing_in_the_pool(tmp_path: Path) -> None:
    pool = ReusePool()
    with pytest.raises(FileNotFoundError, match="does not exist; check the path"):
        two_users(str(tmp_path / "none.json"), pool)
    assert len(pool) == 0


def test_many_threads_that_ask_at_a_time_get_one_object() -> None:
    pool, built, got = ReusePool(), [], []
    start = threading.Barrier(8)

    def build() -> Add:
        time.sleep(0.02)
        built.append(Add())
        return built[-1]

    def ask() -> None:
        start.wait()
        got.append(pool.acquire(Identity(Add, "sample/add", "m", "{}"), build))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert all(block is built[0] for block in got)


def test_a_shared_block_computes_one_call_at_a_time() -> None:
    graph, block = Graph(), Accumulate()
    for name in "ab":
        graph.add_node(Node(name, block))
        graph.expose_input(name, "x", "x")
        graph.expose_output(name, "total", name)
    threads = [threading.Thread(target=lambda: [graph.run({"x": 1}) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert graph.state_dict() == {"a": {"total": 1600}}


# -- parameters and states --------------------------------------------------------------------------------------


def test_parameters_of_a_shared_block_come_once(weights: str) -> None:
    assert len(list(two_users(weights).trainable_parameters())) == 2
    assert len(list(two_users(weights, ReusePool.off()).trainable_parameters())) == 4


def test_a_shared_state_is_written_once_and_loaded_once(weights: str) -> None:
    graph = two_users(weights)
    state = graph.state_dict()
    assert list(state) == ["a"]
    other = two_users(weights)
    loads = []
    block = other.get_node("b").block
    original = block.load_state_dict
    block.load_state_dict = lambda *given: (loads.append(given), original(*given))[1]  # type: ignore[method-assign,func-returns-value]
    state["a"]["bias"] += 1
    other.load_state_dict(state)
    assert len(loads) == 1
    assert bits(other.state_dict()) == bits(state)


def test_copies_take_the_state_of_a_shared_save(weights: str) -> None:
    graph = two_users(weights)
    graph.get_node("a").block.load_state_dict({"bias": torch.full((3,), 7.0)}, strict=False)
    apart = two_users(weights, ReusePool.off())
    apart.load_state_dict(graph.state_dict())
    assert [node.block.state_dict()["bias"].tolist() for node in apart.nodes.values()] == [[7.0] * 3] * 2


@pytest.mark.parametrize("pool", [ReusePool(), ReusePool.off()], ids=["shared", "off"])
def test_copies_that_went_apart_come_back_apart(weights: str, tmp_path: Path, pool: ReusePool) -> None:
    apart = two_users(weights, ReusePool.off())
    apart.get_node("b").block.load_state_dict({"bias": torch.zeros(3)}, strict=False)
    apart.save(tmp_path / "save")
    loaded = Graph.load(tmp_path / "save", registry=sample_registry(), pool=pool)
    assert bits(loaded.state_dict()) == bits(apart.state_dict())
    assert loaded.get_node("a").block is not loaded.get_node("b").block


def test_copies_that_stayed_equal_may_be_shared_again(weights: str, tmp_path: Path) -> None:
    two_users(weights, ReusePool.off()).save(tmp_path / "save")
    loaded = Graph.load(tmp_path / "save", registry=sample_registry(), pool=ReusePool())
    assert loaded.get_node("a").block is loaded.get_node("b").block


def sharing_accumulator() -> Graph:
    """Two nodes that were given one live block, without any ref."""
    graph = graph_of({"c": "collect"}, [], ["c.single = x"], pool=ReusePool())
    block = Accumulate()
    for node_id in "ab":
        graph.add_node(block, node_id=node_id)
        graph.expose_input(node_id, "x", "x")
        graph.expose_output(node_id, "total", node_id)
    return graph


def test_a_live_block_in_two_nodes_comes_back_as_one_block(tmp_path: Path) -> None:
    graph = sharing_accumulator()
    assert graph.run({"x": 1}) == {"a": 1, "b": 2}
    graph.save(tmp_path / "save")
    loaded = Graph.load(tmp_path / "save", registry=sample_registry(), pool=ReusePool())
    assert loaded.get_node("a").block is loaded.get_node("b").block
    assert loaded.run({"x": 1}) == graph.run({"x": 1}) == {"a": 3, "b": 4}


def test_blocks_of_one_id_that_are_two_objects_come_back_as_two(tmp_path: Path) -> None:
    graph = graph_of({"c": "collect"}, [], ["c.single"])
    for node_id, offset in (("a", 1), ("b", 2)):
        graph.add_node(Add("same"), node_id=node_id, pretrained={"offset": offset})
    graph.save(tmp_path / "save")
    loaded = Graph.load(tmp_path / "save", registry=sample_registry())
    assert loaded.state_dict() == {"a": {"offset": 1}, "b": {"offset": 2}}
    assert loaded.to_config() == graph.to_config()
