"""Placing changes only where parts run: results, skipped stages and configs stay equal; and failover."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.blocks import register_samples
from samples.endpoints import EndpointProcess, cutter, registry_of
from samples.events import Events
from samples.graphs import bits, graph_of
from samples.worlds import WORLD_BLOCKS, canonical_config, canonical_world, user_state
from samples.worlds import bits as state_bits
from yggdrasill.errors import EndpointUnreachable, InvalidArgument, InvalidConfig, InvalidEdge, UnknownEndpoint, UnknownGraph
from yggdrasill.foundation import BlockRegistry, Graph, ReusePool
from yggdrasill.pipeline import Pipeline
from yggdrasill.remote import Endpoint, EndpointRegistry, RemoteGraph, RetryPolicy
from yggdrasill.remote.loop_thread import loop_thread
from yggdrasill.remote.remote_stage import RemoteStage, RemoteWorld
from yggdrasill.stage import Stage, State
from yggdrasill.world import World


@pytest.fixture(autouse=True)
def sample_blocks() -> Iterator[None]:
    """Configs are built from the global registry, which is restored for other tests."""
    registry = BlockRegistry.global_registry()
    before = dict(registry._factories)
    register_samples(registry)
    for block in WORLD_BLOCKS:
        registry.register(block.block_type, block)
    yield
    registry._factories.clear()
    registry._factories.update(before)


def first() -> Graph:
    return graph_of({"n": ("noise", {"shape": [60, 100]}), "a": "add"}, ["n.noise -> a.a"], ["a.b = x"], ["a.out = y"], graph_id="first")


def second() -> Graph:
    return graph_of({"d": "double", "n": ("noise", {"shape": [60, 100]})}, [], ["d.x = x"], ["d.y = y", "n.noise = z"], graph_id="second")


def third() -> Graph:
    return graph_of({"s": "scale", "k": "accumulate"}, ["s.y -> k.x"], ["s.x = x", "s.factor = f"], ["k.total = y"], graph_id="third")


def chain() -> Pipeline:
    pipeline = Pipeline("chain")
    for graph in (first(), second(), third()):
        pipeline.add_graph(graph)
    pipeline.add_edge("first", "y", "second", "x")
    pipeline.add_edge("second", "y", "third", "x")
    pipeline.add_edge("second", "z", "third", "f")
    pipeline.expose_input("first", "x", "x")
    pipeline.expose_output("third", "y", "y")
    pipeline.expose_output("first", "y", "middle")
    return pipeline


PLACEMENTS: list[dict[str, Any]] = [
    {"first": "forge"},
    {"second": "forge"},
    {"first": "forge", "second": "forge", "third": "forge"},
    {"first": "forge", "second": "attic"},
    {"first": "attic", "third": "forge"},
    {"first": "forge", "second": "cave", "third": "attic"},
    {"second": {"replicas": ["forge", "attic"], "policy": "least_busy"}},
    {
        "first": {"replicas": ["attic", "forge"], "policy": "round_robin"},
        "third": {"replicas": ["attic", "forge"], "policy": "round_robin"},
    },
]


@pytest.fixture
def three(forge: EndpointProcess, attic: EndpointProcess, cave: EndpointProcess) -> tuple[EndpointProcess, ...]:
    return forge, attic, cave


@pytest.mark.parametrize("graphs", PLACEMENTS, ids=lambda graphs: ",".join(f"{key}-{value}"[:20] for key, value in graphs.items()))
def test_a_pipeline_gives_the_same_wherever_its_graphs_run(three: tuple[EndpointProcess, ...], graphs: dict[str, Any]) -> None:
    local, placed = chain(), chain().place(registry_of(*three, graphs=graphs))
    assert {name for name, graph in placed.graphs.items() if isinstance(graph, RemoteGraph)} == set(graphs)
    for number in range(3):
        inputs = {"x": torch.full((60, 100), float(number))}
        assert bits(placed.run(inputs, seed=number)) == bits(local.run(inputs, seed=number))
    assert placed.to_config() == local.to_config()


def test_building_from_a_config_places_without_building_here(three: tuple[EndpointProcess, ...]) -> None:
    config = chain().to_config()
    placed = Pipeline.from_config(config, BlockRegistry(built_ins=False), endpoints=registry_of(*three, default="forge"), validate=True)
    assert all(isinstance(graph, RemoteGraph) for graph in placed.graphs.values())
    assert bits(placed.run({"x": 1.0}, seed=2)) == bits(chain().run({"x": 1.0}, seed=2))
    assert placed.to_config() == config


def test_moving_a_graph_changes_no_saved_config(three: tuple[EndpointProcess, ...], tmp_path: Path) -> None:
    config = chain().to_config()
    for name, default in (("a", "local"), ("b", "forge"), ("c", "attic")):
        Pipeline.from_config(config, endpoints=registry_of(*three, default=default)).save_config(tmp_path / f"{name}.json")
    assert len({(tmp_path / f"{name}.json").read_bytes() for name in "abc"}) == 1


def test_a_config_with_refs_is_sent_whole(three: tuple[EndpointProcess, ...], tmp_path: Path) -> None:
    config = chain().to_config()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "first.json").write_text(json.dumps(config["graphs"][0]["graph_config"]), encoding="utf-8")
    (tmp_path / "parts" / "noise.json").write_text(json.dumps({"shape": [60, 100]}), encoding="utf-8")
    config["graphs"][0] = {"pipeline_node_id": "first", "ref": "parts/first.json"}
    config["graphs"][1]["graph_config"]["nodes"][1]["config"] = {"ref": "parts/noise.json"}
    (tmp_path / "chain.json").write_text(json.dumps(config), encoding="utf-8")
    placed = Pipeline.from_yaml(tmp_path / "chain.json", endpoints=registry_of(*three, default="forge"))
    assert bits(placed.run({"x": 1.0}, seed=2)) == bits(chain().run({"x": 1.0}, seed=2))


def test_a_pipeline_is_placed_whole_by_its_id(three: tuple[EndpointProcess, ...]) -> None:
    placed = chain().place(registry_of(*three, graphs={"chain": "forge"}))
    assert isinstance(placed, RemoteGraph)
    assert placed.contract.kind == "pipeline"
    assert bits(placed.run({"x": 1.0}, seed=2, max_workers=2)) == bits(chain().run({"x": 1.0}, seed=2))


def test_edges_to_a_remote_graph_are_checked_against_its_contract(forge: EndpointProcess) -> None:
    texts = graph_of({"i": "identity"}, [], ["i.x = x"], ["i.y = y"], graph_id="texts")
    pipeline = Pipeline("checked")
    pipeline.add_graph(second().place(registry_of(forge, default="forge")), "second")
    pipeline.add_graph(texts)
    with pytest.raises(InvalidEdge, match="'second': Unknown output 'w'"):
        pipeline.add_edge("second", "w", "texts", "x")
    pipeline.add_edge("second", "z", "texts", "x")


def stage() -> Stage:
    made = Stage("paint", role="creator")
    made.add_pipeline(chain())
    made.set_state_contract([2], [3, "note"], [(2, "chain", "x")], [(3, "chain", "y"), ("note", "chain", "middle")])
    made.set_execution_condition([2])
    return made


@pytest.mark.parametrize(
    "graphs", [{"paint": "forge"}, {"chain": "forge"}, {"second": "forge"}, {"chain": "forge", "second": "attic"}], ids=str
)
def test_a_stage_gives_the_same_wherever_its_parts_run(three: tuple[EndpointProcess, ...], graphs: dict[str, Any]) -> None:
    local, placed = stage(), stage().place(registry_of(*three, graphs=graphs))
    state = State({1: "a storm", 2: 2.5}, {"style": "ink"}, content={"rules": ["one"]}, passes=3, seed=4)
    for _ in range(2):
        assert state_bits(placed.run(state)) == state_bits(local.run(state))
    assert state_bits(placed.run(state, seed=9)) == state_bits(local.run(state, seed=9))
    assert placed.role == "creator"
    assert [placed.should_run(s) for s in (state, State())] == [True, False]
    assert placed.preview(state).to_dict() == local.preview(state).to_dict()
    assert placed.to_config() == local.to_config()


def test_the_path_of_a_part_in_a_world_places_it_in_its_stage_alone(three: tuple[EndpointProcess, ...]) -> None:
    registry = registry_of(*three, graphs={"paint/chain/second": "forge"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for placed in (stage().place(registry), Stage.from_config(stage().to_config(), endpoints=registry)):
            (pipeline,) = placed.pipelines.values()
            assert [name for name, graph in pipeline.graphs.items() if isinstance(graph, RemoteGraph)] == ["second"]
    assert registry.places(stage().to_config())["chain/second"] == "forge"


WORLD_PLACEMENTS: list[dict[str, Any]] = [
    {"tiny": "forge"},
    dict(zip(("philosopher", "author", "environment", "architect", "creator"), ("forge", "attic") * 3, strict=False)),
    {"describe/describe": "forge", "narrate": "attic", "world_update": "cave", "configure": "attic", "create/create": "forge"},
]


@pytest.mark.parametrize("graphs", WORLD_PLACEMENTS, ids=["whole", "stages", "some graphs"])
def test_a_world_evolves_the_same_wherever_its_parts_run(three: tuple[EndpointProcess, ...], graphs: dict[str, Any]) -> None:
    events, other = Events(), Events()
    local = canonical_world().run(user_state(1, 2, 3), action="sing", num_steps=3, callbacks=events)
    placed = canonical_world().place(registry_of(*three, graphs=graphs))
    after = placed.run(user_state(1, 2, 3), action="sing", num_steps=3, callbacks=other)
    assert state_bits(after) == state_bits(local)
    if isinstance(placed, World):
        assert other.seen == events.seen
        assert placed.to_config() == canonical_world().to_config()


def test_a_world_from_a_config_runs_every_graph_remotely(three: tuple[EndpointProcess, ...]) -> None:
    placed = World.from_config(canonical_config(), BlockRegistry(built_ins=False), endpoints=registry_of(*three, default="forge"))
    local = World.from_config(canonical_config(), pool=ReusePool.off())
    for passes in (1, 2):
        assert state_bits(placed.run(None, num_steps=passes, seed=3)) == state_bits(local.run(None, num_steps=passes, seed=3))
    assert placed.to_config() == canonical_config() == local.to_config()


def test_a_remote_world_gives_its_passes_one_by_one(forge: EndpointProcess) -> None:
    placed = canonical_world().place(registry_of(forge, graphs={"tiny": "forge"}))
    assert isinstance(placed, RemoteWorld)
    assert placed.world_id == "tiny"
    assert placed.cycle == canonical_world().cycle
    local = [state_bits(state) for state in canonical_world().run(num_steps=3, iterate=True, action=["a", "b"])]
    assert [state_bits(state) for state in placed.run(num_steps=3, iterate=True, action=["a", "b"])] == local


def test_a_stage_url_in_a_world_config_is_a_remote_stage(forge: EndpointProcess) -> None:
    registry = registry_of(forge, graphs={"creator": "forge"})
    served = canonical_world().place(registry).get_stage("creator").contract.graph_id
    config = canonical_config()
    config["stages"]["creator"] = {"endpoint_url": forge.url, "graph_id": served}
    world = World.from_config(config, endpoints=registry_of(forge))
    assert isinstance(world.get_stage("creator"), RemoteStage)
    assert state_bits(world.run(num_steps=2)) == state_bits(canonical_world().run(num_steps=2))
    assert world.to_config() == config


# -- keys and mistakes ------------------------------------------------------------------------------------------------


def test_an_ambiguous_key_is_an_error_before_anything_runs(forge: EndpointProcess) -> None:
    made = Stage("twins")
    for name in ("left", "right"):
        pipeline = Pipeline(name)
        pipeline.add_graph(second())
        pipeline.infer_exposed_ports()
        made.add_pipeline(pipeline)
    for build in (made.place, lambda r: Stage.from_config(made.to_config(), endpoints=r)):
        with pytest.raises(InvalidConfig, match="'left/second', 'right/second'"):
            build(registry_of(forge, graphs={"second": "forge"}))
        placed = build(registry_of(forge, graphs={"right/second": "forge"}))
        assert isinstance(placed.get_pipeline("right").get_graph("second"), RemoteGraph)
        assert isinstance(placed.get_pipeline("left").get_graph("second"), Graph)


def test_a_key_that_names_nothing_is_a_warning(forge: EndpointProcess) -> None:
    registry = registry_of(forge, graphs={"frist": "forge"})
    with pytest.warns(RuntimeWarning, match=r"'frist'.*'first', 'second', 'third'"):
        chain().place(registry)
    with pytest.warns(RuntimeWarning, match=r"'frist'.*'first', 'second', 'third'"):
        Pipeline.from_config(chain().to_config(), endpoints=registry)


def test_an_endpoint_that_is_not_there_is_an_unknown_endpoint() -> None:
    with pytest.raises(UnknownEndpoint, match="'forge'"):
        EndpointRegistry({}, {"first": "forge"})


def test_parts_that_share_a_stateful_block_are_placed_together_or_not_at_all(forge: EndpointProcess) -> None:
    pipeline, shared = Pipeline("sharing"), third()
    block = shared.get_node("k").block
    other = Graph("other")
    other.add_node(block, node_id="k")
    other.expose_input("k", "x", "x")
    other.expose_output("k", "total", "y")
    pipeline.add_graph(shared)
    pipeline.add_graph(other)
    pipeline.add_edge("third", "y", "other", "x")
    with pytest.raises(InvalidArgument, match=r"'third', this process share|this process, 'third' share"):
        pipeline.place(registry_of(forge, graphs={"third": "forge"}))


# -- replicas and fallback --------------------------------------------------------------------------------------------

GONE = Endpoint("gone", "http://127.0.0.1:9", secret="t")
QUICK = RetryPolicy(first=0.2, later=1.0)


def test_an_endpoint_that_is_gone_is_replaced_by_the_next(forge: EndpointProcess) -> None:
    for policy in ("first", "least_busy", "round_robin"):
        registry = registry_of(GONE, forge, graphs={"second": {"replicas": ["gone", "forge"], "policy": policy}}, retry_policy=QUICK)
        placed = chain().place(registry)
        for number in range(2):
            assert bits(placed.run({"x": 1.0}, seed=number)["middle"]) == bits(chain().run({"x": 1.0}, seed=number)["middle"])


def test_a_part_runs_locally_if_no_endpoint_answers_and_the_placement_allows_it() -> None:
    graphs = {name: {"replicas": ["gone"], "fallback": "local"} for name in ("first", "third")}
    local = chain()
    for placed in (
        chain().place(registry_of(GONE, graphs=graphs, retry_policy=QUICK)),
        Pipeline.from_config(chain().to_config(), endpoints=registry_of(GONE, graphs=graphs, retry_policy=QUICK)),
    ):
        assert isinstance(placed.get_graph("first"), RemoteGraph)
        assert bits(placed.run({"x": 1.0}, seed=2)) == bits(chain().run({"x": 1.0}, seed=2))
        assert placed.to_config() == local.to_config()


async def test_an_awaited_call_falls_back_too() -> None:
    registry = registry_of(GONE, graphs={"second": {"replicas": ["gone"], "fallback": "local"}}, retry_policy=QUICK)
    placed = await asyncio.to_thread(chain().place, registry)
    assert bits(await placed.get_graph("second").run_async({"x": 1.0}, seed=3)) == bits(second().run({"x": 1.0}, seed=3))


def test_a_stateful_part_stays_at_its_endpoint(forge: EndpointProcess) -> None:
    with cutter(forge) as proxy:
        graphs = {"third": {"replicas": ["forge", "gone"], "policy": "first", "fallback": "local"}}
        placed = third().place(registry_of(forge.endpoint(proxy.url), GONE, graphs=graphs, retry_policy=QUICK))
        assert placed.run({"x": 1}) == {"y": 1}
        proxy.cut(times=10_000, after=1)
        with pytest.raises(EndpointUnreachable):
            placed.run({"x": 1})
        proxy.cut(times=0, after=0)
        assert placed.run({"x": 1})["y"] in (2, 3)
        loop_thread().run(placed.route.clients[0].remove(placed.contract.graph_id))
        with pytest.raises(UnknownGraph):
            placed.run({"x": 1})


def test_a_graph_that_was_removed_is_deployed_again(forge: EndpointProcess) -> None:
    placed = second().place(registry_of(forge, default="forge"))
    loop_thread().run(placed.route.clients[0].remove(placed.contract.graph_id))
    assert bits(placed.run({"x": 1.0}, seed=3)) == bits(second().run({"x": 1.0}, seed=3))


def test_without_a_fallback_an_endpoint_that_is_gone_is_an_error() -> None:
    with pytest.raises(EndpointUnreachable, match=r"127\.0\.0\.1:9"):
        chain().place(registry_of(GONE, graphs={"first": "gone"}, retry_policy=QUICK))


def test_a_world_has_no_fallback_because_its_content_is_at_its_endpoint() -> None:
    with pytest.raises(InvalidArgument, match=r"'tiny'.* stores its content at its endpoint"):
        canonical_world().place(registry_of(GONE, graphs={"tiny": {"replicas": ["gone"], "fallback": "local"}}, retry_policy=QUICK))
