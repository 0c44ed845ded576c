"""Whose weights a block has: identities, blocks shared between graphs, and loads that change nobody else's block."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yggdrasill.errors import CheckpointMismatch, InvalidCheckpoint, InvalidConfig, MissingFile, UnsupportedFormat
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Graph, Node, Port, PortDirection, ReusePool
from yggdrasill.foundation.checkpoints import read_state
from yggdrasill.foundation.pool import Identity, absolute_references, identify
from yggdrasill.pipeline import Pipeline


class Weight(AbstractBaseBlock):
    """Outputs its one weight."""

    block_type = "t/weight"

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.w: Any = 0.0

    def declare_ports(self) -> Iterable[Port]:
        return [Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": self.w}

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.w}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        if "w" in state:
            self.w = state["w"]


class Chat(AbstractBaseBlock):
    """Remembers what it was given."""

    block_type = "t/chat"
    stateful = True

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.turns: list[Any] = []

    def declare_ports(self) -> Iterable[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.turns.append(inputs["x"])
        return {"y": list(self.turns)}

    def state_dict(self) -> dict[str, Any]:
        return {"turns": list(self.turns)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        self.turns = list(state["turns"])


class Folder(Weight):
    """Loads folders and hub ids."""

    block_type = "t/folder"
    references = frozenset({"folder", "hub"})

    def load_reference(self, reference: str) -> None:
        self.check_reference(reference)
        path = Path(reference)
        self.w = json.loads((path / "w.json").read_text(encoding="utf-8")) if path.is_dir() else reference


def registry_of(*classes: type[AbstractBaseBlock]) -> BlockRegistry:
    registry = BlockRegistry(built_ins=False)
    for cls in classes:
        registry.register(cls.block_type, cls)
    return registry


REGISTRY = registry_of(Weight, Chat, Folder)


def graph_with(config: Mapping[str, Any], *, pool: ReusePool | None = None, name: str = "g", registry: BlockRegistry = REGISTRY) -> Graph:
    graph = Graph(name, registry=registry, pool=pool)
    graph.add_node("n", "t/weight", config=config)
    graph.expose_output("n", "y", "y")
    return graph


def weight_of(graph: Graph) -> Weight:
    block = graph.get_node("n").block
    assert isinstance(block, Weight)
    return block


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A checkpoint whose weight is 1."""
    path = tmp_path / "base.json"
    path.write_text('{"w": 1.0}', encoding="utf-8")
    return str(path)


# -- identity ---------------------------------------------------------------------------------------------------


def test_two_registries_with_one_type_name_never_share() -> None:
    class Other(Weight):
        pass

    pool, other = ReusePool(), BlockRegistry(built_ins=False)
    other.register("t/weight", Other)
    first = graph_with({"model_id": "m"}, pool=pool)
    second = graph_with({"model_id": "m"}, pool=pool, registry=other)
    assert (type(weight_of(first)), type(weight_of(second))) == (Weight, Other)


def test_a_type_registered_again_gives_new_graphs_the_new_class() -> None:
    class Newer(Weight):
        pass

    registry, pool = registry_of(Weight), ReusePool()
    old = graph_with({"model_id": "m"}, pool=pool, registry=registry)
    registry.register("t/weight", Newer)
    assert type(weight_of(graph_with({"model_id": "m"}, pool=pool, registry=registry))) is Newer
    assert type(weight_of(old)) is Weight


def test_spellings_of_one_path_are_one_identity(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.json").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    configs: list[dict[str, Any]] = [
        {"checkpoint_ref": base},
        {"checkpoint_path": base},
        {"checkpoint_ref": "base.json"},
        {"checkpoint_path": "./base.json"},
        {"checkpoint_ref": Path("base.json")},
        {"checkpoint_ref": "link.json"},
        {"checkpoint_ref": base, "checkpoint_path": "base.json", "defaults": {"a": 1}},
    ]
    pool = ReusePool()
    graphs = [graph_with(config, pool=pool) for config in configs]
    assert len({id(weight_of(graph)) for graph in graphs}) == 1


@pytest.mark.parametrize(
    "change", [{"provider": "p"}, {"endpoint": "https://b"}, {"model_id": "n"}, {"dtype": "bf16"}, {"checkpoint_ref": "x://y"}], ids=repr
)
def test_each_part_of_an_api_identity_counts(change: dict[str, Any]) -> None:
    config = {"model_id": "m", "provider": "o", "endpoint": "https://a", "backend": "api"}
    assert identify(Weight, "t", config) == identify(Weight, "t", dict(reversed(config.items())))
    assert identify(Weight, "t", config) != identify(Weight, "t", {**config, **change})


@pytest.mark.parametrize(
    "value", [np.arange(3), {1: 2}, {"a": object()}, b"x", [{"b": {1}}]], ids=["array", "key", "object", "bytes", "set"]
)
def test_a_config_that_names_a_model_and_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"a config that names a model (holds JSON values|has text keys) only"):
        graph_with({"model_id": "m", "table": value}, pool=ReusePool())
    assert graph_with({"table": value}, pool=ReusePool()).node_ids == ["n"]


@pytest.mark.parametrize("reference", [3, ["a"], {"ref": "x"}])
def test_a_reference_that_is_not_text_is_refused(reference: Any) -> None:
    with pytest.raises(InvalidConfig, match="a checkpoint reference must be a path, a URL or a model id"):
        graph_with({"checkpoint_ref": reference})


@given(st.permutations(["a", "b", "c", "model_id"]), st.sampled_from([1, 1.5, "1", True, None]))
def test_an_identity_does_not_depend_on_the_order_of_keys(order: list[str], value: Any) -> None:
    config = {"a": value, "b": [value], "c": {"d": value}, "model_id": "m"}
    same = identify(Weight, "t", {key: config[key] for key in order})
    assert same == identify(Weight, "t", config)
    assert hash(same) == hash(identify(Weight, "t", config))


# -- references -------------------------------------------------------------------------------------------------


def test_a_class_says_how_its_references_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.json").write_text("5.0", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    graph = Graph(registry=REGISTRY, pool=ReusePool())
    for node_id, reference in (("path", "model"), ("hub", "org/model")):
        graph.add_node(node_id, "t/folder", config={"checkpoint_ref": reference}, auto_connect=False)
        graph.expose_output(node_id, "y", node_id)
    assert graph.run() == {"path": 5.0, "hub": "org/model"}
    references = [node["config"]["checkpoint_ref"] for node in graph.to_config()["nodes"]]
    assert references == [str(tmp_path / "model"), "org/model"]


def test_a_reference_that_the_class_cannot_load_is_named_with_what_it_can(tmp_path: Path, base: str) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UnsupportedFormat, match=r"'t/weight' cannot load '.*model', a folder; it loads: file"):
        graph_with({"checkpoint_ref": str(tmp_path / "model")})
    with pytest.raises(UnsupportedFormat, match=r"'t/folder' cannot load '.*base.json', a file; it loads: folder, hub"):
        Graph(registry=REGISTRY).add_node("n", "t/folder", config={"checkpoint_ref": base})
    with pytest.raises(MissingFile, match=r"checkpoint '.*none.json' of block type 't/weight' does not exist"):
        graph_with({"checkpoint_ref": str(tmp_path / "none.json")})


def test_references_become_absolute_against_the_given_folder(tmp_path: Path) -> None:
    config = {"checkpoint_ref": "a.json", "checkpoint_path": "x://y", "other": "b.json"}
    assert absolute_references(Weight, config, tmp_path) == {**config, "checkpoint_ref": str(tmp_path / "a.json")}
    assert absolute_references(Weight, {**config, "backend": "api"}, tmp_path) == {**config, "backend": "api"}


def test_a_relative_reference_survives_save_and_load(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph_with({"checkpoint_ref": "base.json"}).save("saved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Graph.load(tmp_path / "saved", registry=REGISTRY).run() == {"y": 1.0}


# -- building ---------------------------------------------------------------------------------------------------


class Slow(Weight):
    """Takes a while to build."""

    block_type = "t/slow"
    built = 0

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        time.sleep(0.3)
        type(self).built += 1


class Meeting(Weight):
    """Waits until four of its kind are being built."""

    block_type = "t/meeting"
    barrier = threading.Barrier(4)

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(block_id, config=config)
        self.barrier.wait(30)


def test_different_models_are_built_at_the_same_time() -> None:
    registry, pool = registry_of(Meeting), ReusePool()
    with ThreadPoolExecutor(4) as workers:
        building = [
            workers.submit(Graph(registry=registry, pool=pool).add_node, "n", "t/meeting", config={"model_id": name}) for name in "abcd"
        ]
    for each in building:
        each.result()


def test_one_model_is_built_once_for_many_threads() -> None:
    registry, pool = registry_of(Slow), ReusePool()
    Slow.built = 0
    graphs = [Graph(registry=registry, pool=pool) for _ in range(6)]
    with ThreadPoolExecutor(6) as workers:
        for graph in graphs:
            workers.submit(graph.add_node, "n", "t/slow", config={"model_id": "m"})
    assert Slow.built == 1
    assert len({id(graph.get_node("n").block) for graph in graphs}) == 1


def test_a_block_may_load_its_parts_on_a_worker_thread() -> None:
    pool, registry = ReusePool(), registry_of(Weight)

    class Whole(Weight):
        block_type = "t/whole"

        def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
            super().__init__(block_id, config=config)
            with ThreadPoolExecutor(1) as worker:
                part = Graph("part", registry=registry, pool=pool)
                worker.submit(part.add_node, "n", "t/weight", config={"model_id": "part"}).result(timeout=20)

    registry.register("t/whole", Whole)
    graph = Graph(registry=registry, pool=pool)
    assert graph.add_node("n", "t/whole", config={"model_id": "whole"}) == "n"


def test_a_build_that_fails_does_not_spoil_the_identity() -> None:
    pool, identity = ReusePool(), Identity(Weight, "t/weight", "m", "{}")
    started = threading.Event()

    def fail() -> AbstractBaseBlock:
        started.set()
        time.sleep(0.1)
        raise MemoryError("no room")

    with ThreadPoolExecutor(2) as workers:
        first = workers.submit(pool.acquire, identity, fail)
        started.wait(10)
        second = workers.submit(pool.acquire, identity, Weight)
        with pytest.raises(MemoryError):
            first.result()
        assert second.result() is pool.acquire(identity, fail)


def test_a_block_that_needs_itself_is_an_error_and_not_a_deadlock() -> None:
    pool, identity = ReusePool(), Identity(Weight, "t/weight", "m", "{}")
    with pytest.raises(InvalidConfig, match="acquires itself while it is built"):
        pool.acquire(identity, lambda: pool.acquire(identity, Weight))


def test_stateful_blocks_of_one_model_have_separate_memories() -> None:
    graphs = []
    for pool in (ReusePool.shared(), ReusePool.shared(), ReusePool.off()):
        graph = Graph(registry=REGISTRY, pool=pool)
        graph.add_node("n", "t/chat", config={"model_id": "m"})
        graph.expose_input("n", "x", "x")
        graph.expose_output("n", "y", "y")
        graphs.append(graph)
    graphs[0].run({"x": "secret"})
    assert [graph.run({"x": "hello"}) for graph in graphs[1:]] == [{"y": ["hello"]}] * 2


# -- loading ----------------------------------------------------------------------------------------------------


def save_tuned(base: str, path: Path, value: float = 99.0) -> Path:
    tuned = graph_with({"checkpoint_ref": base}, pool=ReusePool())
    weight_of(tuned).w = value
    tuned.save(path)
    return path


def test_loading_a_save_leaves_other_graphs_of_the_model_alone(base: str, tmp_path: Path) -> None:
    pool = ReusePool()
    graph = graph_with({"checkpoint_ref": base}, pool=pool)
    loaded = Graph.load(save_tuned(base, tmp_path / "tuned"), registry=REGISTRY, pool=pool)
    assert (graph.run(), loaded.run()) == ({"y": 1.0}, {"y": 99.0})
    assert graph_with({"checkpoint_ref": base}, pool=pool).run() == {"y": 1.0}


def test_a_model_named_after_a_load_has_the_weights_of_its_reference(base: str, tmp_path: Path) -> None:
    pool = ReusePool()
    loaded = Graph.load(save_tuned(base, tmp_path / "tuned"), registry=REGISTRY, pool=pool)
    assert graph_with({"checkpoint_ref": base}, pool=pool).run() == {"y": 1.0}
    assert loaded.run() == {"y": 99.0}


@pytest.mark.parametrize("with_base", [True, False])
def test_two_loads_of_one_save_share_one_block(base: str, tmp_path: Path, with_base: bool) -> None:
    pool, tuned = ReusePool(), save_tuned(base, tmp_path / "tuned")
    graph = graph_with({"checkpoint_ref": base}, pool=pool) if with_base else None
    first, second = (Graph.load(tuned, registry=REGISTRY, pool=pool) for _ in range(2))
    assert weight_of(first) is weight_of(second)
    assert graph is None or weight_of(graph) is not weight_of(first)


def test_a_variant_that_was_trained_is_not_given_to_the_next_load(base: str, tmp_path: Path) -> None:
    pool, tuned = ReusePool(), save_tuned(base, tmp_path / "tuned")
    first = Graph.load(tuned, registry=REGISTRY, pool=pool)
    weight_of(first).w = 100.0
    assert Graph.load(tuned, registry=REGISTRY, pool=pool).run() == {"y": 99.0}
    assert first.run() == {"y": 100.0}


def test_the_only_user_of_a_block_keeps_it_when_it_loads(base: str) -> None:
    graph = graph_with({"checkpoint_ref": base}, pool=ReusePool())
    block = weight_of(graph)
    graph.load_state_dict({"n": {"w": 3.0}})
    assert weight_of(graph) is block
    other = graph_with({"checkpoint_ref": base}, pool=graph.pool)
    assert (graph.run(), other.run()) == ({"y": 3.0}, {"y": 1.0})


def test_all_nodes_of_a_container_get_the_same_private_block(base: str) -> None:
    pool = ReusePool()
    outside = graph_with({"checkpoint_ref": base}, pool=pool)
    pipeline = Pipeline("p")
    for name in ("a", "b"):
        pipeline.add_graph(graph_with({"checkpoint_ref": base}, pool=pool, name=name))
        pipeline.expose_output(name, "y", name)
    pipeline.load_state_dict({"a": {"n": {"w": 7.0}}})
    assert (pipeline.run(), outside.run()) == ({"a": 7.0, "b": 7.0}, {"y": 1.0})
    assert len(list(pipeline.blocks())) == 1


def test_a_graph_that_is_gone_is_not_a_user(base: str) -> None:
    pool = ReusePool()
    graph, other = (graph_with({"checkpoint_ref": base}, pool=pool) for _ in range(2))
    block = weight_of(graph)
    other.remove_node("n")
    graph.load_state_dict({"n": {"w": 3.0}})
    assert weight_of(graph) is block


def test_a_variant_has_the_modes_of_the_block_that_it_replaces(base: str) -> None:
    pool = ReusePool()
    outside = graph_with({"checkpoint_ref": base}, pool=pool)
    weight_of(outside).freeze().eval()
    loaded = graph_with({"checkpoint_ref": base}, pool=pool)
    loaded.load_state_dict({"n": {"w": 3.0}})
    assert weight_of(loaded) is not weight_of(outside)
    assert (weight_of(loaded).frozen, weight_of(loaded).training) == (True, False)


def test_strict_loading_names_the_nodes_without_a_state() -> None:
    graph = Graph(registry=REGISTRY)
    for node_id in ("n", "m"):
        graph.add_node(node_id, "t/weight")
    with pytest.raises(CheckpointMismatch, match="the checkpoint has no state for node 'n', node 'm'"):
        graph.load_state_dict({})
    with pytest.raises(CheckpointMismatch, match="the checkpoint has no state for node 'm'"):
        graph.load_state_dict({"n": {"w": 1.0}})
    assert graph.state_dict() == {"n": {"w": 0.0}, "m": {"w": 0.0}}
    graph.load_state_dict({"n": {"w": 1.0}}, strict=False)
    assert graph.state_dict()["n"] == {"w": 1.0}


def test_weights_of_a_reference_may_be_absent_from_a_state_that_travels(base: str) -> None:
    graph = graph_with({"checkpoint_ref": base}, pool=ReusePool())
    graph.add_node("own", "t/weight")
    graph.load_own_state({"own": {"w": 2.0}})
    assert graph.state_dict() == {"n": {"w": 1.0}, "own": {"w": 2.0}}
    with pytest.raises(CheckpointMismatch, match="no state for node 'own'"):
        graph.load_own_state({})


def test_rebuilding_keeps_the_registry_and_the_pool_of_the_graph(base: str) -> None:
    outside = graph_with({"checkpoint_ref": base})
    copy = graph_with({"checkpoint_ref": base}, pool=ReusePool.off())
    copy.load_from_checkpoint(config=copy.to_config(), checkpoint={"n": {"w": 77.0}})
    assert (outside.run(), copy.run()) == ({"y": 1.0}, {"y": 77.0})
    assert copy.registry is REGISTRY
    assert copy.pool.shares is False


def test_rebuilding_a_pipeline_keeps_registry_and_pool(base: str) -> None:
    pool, pipeline = ReusePool(), Pipeline("p")
    pipeline.add_graph(graph_with({"checkpoint_ref": base}, pool=pool, name="a"))
    pipeline.load_from_checkpoint(config=pipeline.to_config())
    (graph,) = (graph for _, graph, _ in pipeline.walk_nodes())
    assert (graph.registry, graph.pool) == (REGISTRY, pool)


def test_a_rebuilt_graph_is_a_user_of_its_blocks(base: str) -> None:
    pool = ReusePool()
    graph = graph_with({"checkpoint_ref": base}, pool=pool)
    graph.load_from_checkpoint(config=graph.to_config())
    gc.collect()
    other = graph_with({"checkpoint_ref": base}, pool=pool)
    other.load_state_dict({"n": {"w": 5.0}})
    assert (graph.run(), other.run()) == ({"y": 1.0}, {"y": 5.0})


def test_a_default_of_one_node_does_not_reach_its_twin() -> None:
    class Echo(Weight):
        block_type = "t/echo"

        def declare_ports(self) -> Iterable[Port]:
            return [Port("b", PortDirection.IN, optional=True), Port("y", PortDirection.OUT)]

        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"y": inputs.get("b", "none")}

    registry, block, graph = registry_of(Echo), Echo("shared"), Graph()
    for node in (Node("a", block, defaults={"b": 1}), Node("c", block, defaults={})):
        graph.add_node(node)
        graph.expose_output(node.node_id, "y", node.node_id)
    again = Graph.from_config(graph.to_config(), registry)
    assert graph.run() == again.run() == {"a": 1, "c": "none"}
    assert again.get_node("a").block is again.get_node("c").block


def test_only_none_takes_the_defaults_of_the_blocks_config() -> None:
    block = Weight(config={"defaults": {"b": 1}})
    assert dict(Node("a", block).defaults) == {"b": 1}
    assert dict(Node("a", block, defaults={}).defaults) == {}


# -- any sequence of builds, loads and runs ---------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["build", "load", "state", "partial", "drop", "rebuild"]), st.integers(0, 3), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_every_graph_gives_what_it_gives_without_sharing(tmp_path: Path, operations: list[tuple[str, int, int]]) -> None:
    references = []
    for number in range(2):
        file = tmp_path / f"model{number}.json"
        file.write_text(json.dumps({"w": float(number)}), encoding="utf-8")
        references.append(str(file))
    saves = []
    for number in range(3):
        pipeline = two_models(references, ReusePool.off())
        pipeline.load_state_dict({name: {"n": {"w": 10.0 * number + i}} for i, name in enumerate("abc")}, strict=False)
        saves.append(tmp_path / f"save{number}")
        pipeline.save(saves[-1])
    shared, apart = ReusePool(), [ReusePool.off()]
    live: dict[int, tuple[Pipeline, Pipeline]] = {}
    for what, slot, number in operations:
        pools = (shared, apart[0])
        if what == "drop":
            live.pop(slot, None)
        elif what == "load":
            live[slot] = tuple(Pipeline.load(saves[number], registry=REGISTRY, pool=pool) for pool in pools)  # type: ignore[assignment]
        elif what == "build" or slot not in live:
            live[slot] = tuple(two_models(references, pool) for pool in pools)  # type: ignore[assignment]
        for pipeline in live.get(slot, ()):
            if what == "state":
                pipeline.load_state_dict({name: {"n": {"w": 100.0 + number}} for name in "abc"})
            elif what == "partial":
                pipeline.load_state_dict(
                    {"abc"[number]: {"n": {"w": -1.0}}, "b": {"n": {"w": -2.0}}, "c": {"n": {"w": -1.0}}, "a": {"n": {"w": -1.0}}}
                )
            elif what == "rebuild":
                pipeline.load_from_checkpoint(config=pipeline.to_config())
        for one, other in live.values():
            assert one.run() == other.run()


def two_models(references: list[str], pool: ReusePool) -> Pipeline:
    """Three graphs, two of them with the same model."""
    pipeline = Pipeline("p")
    for name, reference in zip("abc", (references[0], references[1], references[0]), strict=True):
        pipeline.add_graph(graph_with({"checkpoint_ref": reference}, pool=pool, name=name))
        pipeline.expose_output(name, "y", name)
    return pipeline


def test_a_state_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text('{"$manifest": 1, "states": {"n": {"file": "../../etc/passwd"}}}', encoding="utf-8")
    with pytest.raises(InvalidCheckpoint, match="not the name of a weights file"):
        read_state(tmp_path / "checkpoint.json")
