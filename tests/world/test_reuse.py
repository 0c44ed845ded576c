"""Model reuse at every level: two users of one model are one live block, loaded, written and counted once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.blocks import Linear, register_samples
from samples.worlds import bits
from yggdrasill.foundation import Edge, Graph, ReusePool
from yggdrasill.foundation.registry import BlockRegistry
from yggdrasill.pipeline import Pipeline
from yggdrasill.stage import Stage
from yggdrasill.world import World

REGISTRY = BlockRegistry(built_ins=False)
register_samples(REGISTRY)
REF = {"checkpoint_ref": "memory://reuse-linear"}
LEVELS = ("graph", "pipeline", "stage", "world")
at_every_level = pytest.mark.parametrize("level", LEVELS)


def graph(nodes: int, pool: ReusePool | None, config: dict[str, Any], name: str = "g") -> Graph:
    """Linear blocks one after another, from ``x`` to ``y``."""
    made = Graph(name, registry=REGISTRY, pool=pool)
    for number in range(nodes):
        made.add_node(f"n{number}", "sample/linear", config=config, auto_connect=False)
        if number:
            made.add_edge(Edge(f"n{number - 1}", "y", f"n{number}", "x"))
    made.expose_input("n0", "x", "x")
    made.expose_output(f"n{nodes - 1}", "y", "y")
    return made


def build(level: str, pool: ReusePool | None = None, config: dict[str, Any] | None = None) -> Any:
    """Two users of one model side by side at ``level``, each in a child of its own."""
    config = REF if config is None else config
    if level == "graph":
        return graph(2, pool, config)
    if level == "pipeline":
        pipeline = Pipeline()
        for name in ("a", "b"):
            pipeline.add_graph(graph(1, pool, config), name)
        pipeline.add_edge("a", "y", "b", "x")
        pipeline.expose_input("a", "x", "x")
        pipeline.expose_output("b", "y", "y")
        return pipeline
    if level == "stage":
        stage = Stage()
        for name, source, target in (("a", 1, 2), ("b", 2, 3)):
            inner = Pipeline(name)
            inner.add_graph(graph(1, pool, config), "g")
            inner.expose_input("g", "x", f"block_{source}")
            inner.expose_output("g", "y", f"block_{target}")
            stage.add_pipeline(inner)
        stage.add_edge("a", "block_2", "b", "block_2")
        stage.set_state_contract([1], [3])
        return stage
    world = World(seed=1)
    for name, source, target in (("a", 1, 2), ("b", 2, 3)):
        single = Stage(name)
        single.add_pipeline(graph(1, pool, config), "p")
        single.set_state_contract([source], [target])
        world.add_stage(single)
    world.set_cycle(["a", "b"])
    return world


def outcome(level: str, built: Any) -> bytes:
    x = torch.arange(3.0)
    with torch.no_grad():
        if level in {"graph", "pipeline"}:
            return bits(built.run({"x": x})["y"])
        return bits(built.run({1: x})[3])


def rebuilt(level: str, config: dict[str, Any], pool: ReusePool | None) -> Any:
    kinds: dict[str, Any] = {"graph": Graph, "pipeline": Pipeline, "stage": Stage, "world": World}
    return kinds[level].from_config(config, REGISTRY, pool=pool)


@at_every_level
def test_two_users_of_one_ref_are_one_object(level: str) -> None:
    assert len(list(build(level, ReusePool()).blocks())) == 1


@at_every_level
def test_from_config_shares_too(level: str) -> None:
    assert len(list(rebuilt(level, build(level).to_config(), ReusePool()).blocks())) == 1


@at_every_level
def test_load_shares_too(level: str, tmp_path: Path) -> None:
    built = build(level, ReusePool())
    built.save(tmp_path / "saved")
    loaded = type(built).load(tmp_path / "saved", registry=REGISTRY, pool=ReusePool())
    assert len(list(loaded.blocks())) == 1


@at_every_level
def test_the_pool_of_the_process_is_used_where_none_is_given(level: str) -> None:
    one, other = build(level), rebuilt(level, build(level).to_config(), None)
    assert [id(block) for block in one.blocks()] == [id(block) for block in other.blocks()]


@at_every_level
def test_a_pool_that_is_off_gives_copies(level: str) -> None:
    assert len(list(build(level, ReusePool.off()).blocks())) == 2
    assert len(list(rebuilt(level, build(level).to_config(), ReusePool.off()).blocks())) == 2


@at_every_level
def test_another_load_configuration_is_another_block(level: str) -> None:
    pool = ReusePool()
    first, second = build(level, pool), build(level, pool, {**REF, "seed": 1})
    assert {id(block) for block in first.blocks()}.isdisjoint(id(block) for block in second.blocks())


@at_every_level
def test_blocks_without_a_model_are_never_shared(level: str) -> None:
    assert len(list(build(level, ReusePool(), {"seed": 1}).blocks())) == 2


@at_every_level
def test_results_equal_those_without_sharing(level: str) -> None:
    assert outcome(level, build(level, ReusePool())) == outcome(level, build(level, ReusePool.off()))


@at_every_level
def test_parameters_are_given_once(level: str) -> None:
    assert len(list(build(level, ReusePool()).trainable_parameters())) == 2
    assert len(list(build(level, ReusePool.off()).trainable_parameters())) == 4


@at_every_level
def test_a_shared_block_is_trainable_if_any_user_is(level: str) -> None:
    built = build(level, ReusePool())
    first, second = list(built.children)
    built.set_trainable(first, False)
    assert len(list(built.trainable_parameters())) == 2
    built.set_trainable(second, False)
    assert list(built.trainable_parameters()) == []


def leaves(state: dict[str, Any]) -> int:
    return sum(1 if "weight" in child else leaves(child) for child in state.values())


@at_every_level
def test_a_checkpoint_holds_the_block_once(level: str, tmp_path: Path) -> None:
    built = build(level, ReusePool())
    assert leaves(built.state_dict()) == 1

    built.save(tmp_path / "saved")
    assert len([file for file in (tmp_path / "saved").rglob("*") if file.suffix == ".safetensors"]) == 1
    assert sum(file.read_text(encoding="utf-8").count(".safetensors") for file in (tmp_path / "saved").rglob("checkpoint.json")) == 2


class Counting(Linear):
    """Counts how often its state is loaded."""

    block_type = "counting"
    loads = 0

    def load_state_dict(self, state: Any, strict: bool = True) -> None:
        type(self).loads += 1
        super().load_state_dict(state, strict)


@at_every_level
def test_loading_loads_once_per_ref_and_reaches_every_user(level: str) -> None:
    trained = build(level, ReusePool())
    for block in trained.blocks():
        block.weight.data += 1
    state = trained.state_dict()
    Counting.loads = 0
    registry = BlockRegistry(built_ins=False)
    registry.register("sample/linear", Counting)
    kinds: dict[str, Any] = {"graph": Graph, "pipeline": Pipeline, "stage": Stage, "world": World}

    shared = kinds[level].from_config(trained.to_config(), registry, pool=ReusePool())
    shared.load_state_dict(state)
    assert Counting.loads == 1
    assert outcome(level, shared) == outcome(level, trained)

    copies = kinds[level].from_config(trained.to_config(), registry, pool=ReusePool.off())
    copies.load_state_dict(state)
    assert outcome(level, copies) == outcome(level, trained)


@at_every_level
def test_the_config_keeps_the_ref_at_every_node(level: str) -> None:
    assert str(build(level, ReusePool()).to_config()).count("'checkpoint_ref': 'memory://reuse-linear'") == 2


def test_a_checkpoint_file_is_read_once_for_all_levels(tmp_path: Path) -> None:
    donor = Linear(config={"seed": 5})
    source = Graph(registry=REGISTRY)
    source.add_node(donor, node_id="n")
    from yggdrasill.foundation.checkpoints import pack_state

    (tmp_path / "linear.json").write_bytes(pack_state(donor.state_dict()))
    config = build("world", ReusePool.off(), {"seed": 0}).to_config()
    for stage in config["stages"].values():
        stage["pipelines"][0]["pipeline_config"]["nodes"][0]["config"] = {"checkpoint_ref": "linear.json"}

    world = World.from_config(config, REGISTRY, base_dir=tmp_path, pool=ReusePool())

    (block,) = world.blocks()
    assert isinstance(block, Linear)
    assert torch.equal(block.weight, donor.weight)


def test_a_pool_is_passed_downwards_by_every_add() -> None:
    pool = ReusePool()
    config = graph(1, ReusePool.off(), REF).to_config()
    pipeline = Pipeline("p")
    pipeline.add_graph(config, "one", registry=REGISTRY, pool=pool)
    pipeline.add_graph(config, "two", registry=REGISTRY, pool=pool)
    stage = Stage("s")
    stage.add_pipeline(pipeline.to_config(), registry=REGISTRY, pool=pool)
    world = World()
    world.add_stage(stage.to_config(), registry=REGISTRY, pool=pool)

    assert {id(block) for part in (pipeline, stage, world) for block in part.blocks()} == {id(next(pipeline.blocks()))}
    assert len(pool) == 1


def test_a_block_lives_as_long_as_its_last_user() -> None:
    import gc

    pool = ReusePool()
    built = build("world", pool)
    assert len(pool) == 1
    del built
    gc.collect()
    assert len(pool) == 0


def test_many_threads_get_one_block() -> None:
    pool, found = ReusePool(), []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait(10)
        found.append(build("pipeline", pool))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({id(block) for built in found for block in built.blocks()}) == 1


def test_a_shared_block_gives_the_same_results_in_parallel_branches() -> None:
    def fan(pool: ReusePool) -> Pipeline:
        pipeline = Pipeline()
        for number in range(6):
            pipeline.add_graph(graph(2, pool, REF), f"g{number}")
            pipeline.expose_input(f"g{number}", "x", "x")
            pipeline.expose_output(f"g{number}", "y", f"y{number}")
        return pipeline

    run: Callable[[Pipeline, int], bytes] = lambda pipeline, workers: bits(  # noqa: E731
        {name: value.detach() for name, value in pipeline.run({"x": torch.arange(3.0)}, max_workers=workers).items()}
    )
    assert run(fan(ReusePool()), 4) == run(fan(ReusePool.off()), 1)
