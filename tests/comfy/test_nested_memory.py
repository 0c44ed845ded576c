"""The caches of nested prompts and the graphs of blocks that stay built: ComfyUI's cache type and its requests for memory decide about both."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samples.comfy_modules import install_comfy
from yggdrasill.errors import Cancelled
from yggdrasill.executor.context import CancelToken
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry, Graph, Node, Port, PortDirection
from yggdrasill.server_ext.comfy import compat, nested_run
from yggdrasill.server_ext.comfy.compat.memory import CacheSettings
from yggdrasill.server_ext.comfy.levels import building, built, graph_composing
from yggdrasill.server_ext.comfy.levels.built import MAX_BUILT, BuiltRunnables, current_prompt, referenced_files, size_of
from yggdrasill.server_ext.comfy.levels.config_sources import from_text
from yggdrasill.server_ext.comfy.levels.graph_composing import add_block, connect
from yggdrasill.server_ext.comfy.levels.node_work import ExecutorTurn
from yggdrasill.server_ext.comfy.nested_run import NestedExecutors


class Weights(AbstractBaseBlock):
    def __init__(self, block_id: str | None = None, *, config: Any = None) -> None:
        super().__init__(block_id, config=config)
        self.model = torch.nn.Linear(4, 4)

    def declare_ports(self) -> list[Port]:
        return [Port("x", PortDirection.IN), Port("y", PortDirection.OUT)]

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}

    def load_reference(self, reference: str) -> None:
        """Load nothing: the files of these tests have a size only."""


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """ComfyUI's memory management, with ``args`` and ``free``: its command line and the bytes that are free."""
    install_comfy(monkeypatch, tmp_path)
    management: Any = sys.modules["comfy.model_management"]
    args: Any = sys.modules["comfy.cli_args"].args
    args.cache_lru = 0
    found = SimpleNamespace(args=args, management=management, free=1 << 40, ram=1 << 40)
    monkeypatch.setattr(management, "get_free_memory", lambda device=None: found.free)
    psutil: Any = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=found.ram))
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    runnables = BuiltRunnables()
    monkeypatch.setattr(built, "built_runnables", runnables)
    found.runnables = runnables
    return found


def graph(name: str) -> tuple[Graph, weakref.ref[torch.nn.Linear]]:
    """A graph with weights, and a weak reference to them."""
    made = Graph(name)
    made.add_node(Node("n", Weights()))
    block: Any = made.get_node("n").block
    return made, weakref.ref(block.model)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"cache_classic": True}, CacheSettings("CLASSIC")),
        ({"cache_none": True}, CacheSettings("NONE")),
        ({"cache_lru": 7}, CacheSettings("LRU", 7)),
        ({}, CacheSettings("RAM_PRESSURE", 0, 2.0, 16.0)),
        ({"cache_ram": [3.0]}, CacheSettings("RAM_PRESSURE", 0, 3.0, 16.0)),
        ({"cache_ram": [3.0, 4.0]}, CacheSettings("RAM_PRESSURE", 0, 3.0, 4.0)),
    ],
)
def test_nested_prompts_have_the_cache_type_of_comfyui(comfy: Any, flags: dict[str, Any], expected: CacheSettings) -> None:
    comfy.management.total_ram = 16 * 1024.0
    vars(comfy.args).update(flags)
    assert compat.cache_settings() == expected
    executor = compat.new_executor()
    assert executor.cache_type == getattr(sys.modules["execution"].CacheType, expected.kind)
    assert executor.cache_args == {"lru": expected.entries, "ram": expected.ram, "ram_inactive": expected.ram_inactive}


def test_flags_that_cannot_be_read_mean_a_classic_cache(comfy: Any) -> None:
    del comfy.args.cache_none
    assert compat.cache_settings() == CacheSettings("CLASSIC")


def test_what_nested_prompts_cache_ends_with_the_event_loop_of_the_outer_prompt(comfy: Any) -> None:
    async def outer() -> tuple[NestedExecutors, Any]:
        executors = NestedExecutors()
        executor = executors.take()
        executors.give_back(executor)
        assert executors.take() is executor
        executors.give_back(executor)
        await asyncio.sleep(0)
        assert executor.caches is not None
        return executors, executor

    _, executor = asyncio.run(outer())
    assert executor.caches is None


def test_an_ended_event_loop_is_not_remembered(comfy: Any) -> None:
    async def outer() -> weakref.ref[asyncio.AbstractEventLoop]:
        executors = nested_run._executors_here()
        assert nested_run._executors_here() is executors
        executors.give_back(executors.take())
        await asyncio.sleep(0)
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(outer())
    gc.collect()
    assert loop() is None
    assert len(nested_run._executors) == 0


def test_ram_pressure_releases_what_idle_executors_cache(comfy: Any) -> None:
    async def outer() -> None:
        executors = NestedExecutors()
        executor = executors.take()
        executors.give_back(executor)
        asked: list[tuple[Any, ...]] = []

        def release(*arguments: Any) -> int:
            asked.append(arguments)
            return 5

        both = executors.releasing(release)
        assert both is not None
        assert executors.releasing(both) is both
        assert executors.releasing(None) is None
        assert both(100) == 5
        assert executor.caches is not None, "enough RAM is available"
        comfy.ram = 50
        assert both(100) == 5
        assert executor.caches is None
        assert asked == [(100,), (100,)]
        other = executors.take()
        executors.give_back(other)
        assert other.caches is None, "the RAM cache is under pressure"

    asyncio.run(outer())


def test_built_graphs_are_kept_for_the_next_prompt_and_no_longer(comfy: Any) -> None:
    comfy.args.cache_classic = True
    weights = []
    for prompt_id in ("one", "two", "three"):
        current_prompt.set(prompt_id)
        made, weak = graph(prompt_id)
        comfy.runnables.keep(prompt_id, made)
        weights.append(weak)
        del made
    assert [weak() is not None for weak in weights] == [False, True, True]


def test_graphs_that_comfyuis_own_thread_builds_belong_to_the_executing_prompt(comfy: Any) -> None:
    comfy.args.cache_classic = True
    current_prompt.set("")
    executing: Any = sys.modules["comfy_execution.utils"].context
    weights = []
    for prompt_id in ("one", "two", "three"):
        token = executing.set(SimpleNamespace(prompt_id=prompt_id, node_id="1"))
        made, weak = graph(prompt_id)
        comfy.runnables.keep(prompt_id, made)
        executing.reset(token)
        weights.append(weak)
        del made
    assert [weak() is not None for weak in weights] == [False, True, True]


def test_a_graph_that_is_kept_under_another_config_moves_to_it(comfy: Any) -> None:
    made, weak = graph("one")
    comfy.runnables.keep("as posted", made, [Path("/models/one")])
    comfy.runnables.keep("as written", made, [Path("/models/two")])
    assert ["as posted" in comfy.runnables, "as written" in comfy.runnables] == [False, True]
    assert comfy.runnables.files() == {Path("/models/two")}
    del made
    comfy.runnables.keep("as written", graph("one")[0])
    gc.collect()
    assert weak() is None


WEIGHTS = "tests/weights"


@pytest.fixture
def weights_type(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The type of `Weights`, and an extension that builds graphs."""
    monkeypatch.setitem(BlockRegistry.global_registry()._factories, WEIGHTS, Weights)
    monkeypatch.setattr(building, "built_runnables", comfy.runnables)
    monkeypatch.setattr(building, "check", dict)
    return WEIGHTS


def test_a_loaded_graph_and_the_one_that_runs_are_not_kept_side_by_side(comfy: Any, weights_type: str) -> None:
    config = from_text(
        "graph", json.dumps({"graph_id": "g", "nodes": [{"node_id": "n", "block_type": weights_type, "config": {}}], "edges": []})
    )
    building.build(config)
    assert len(comfy.runnables) == 1


def test_memory_is_requested_for_the_checkpoints_that_no_kept_graph_has_loaded(
    comfy: Any, weights_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int] = []
    monkeypatch.setattr(compat, "make_room", requested.append)

    def config(*names: str) -> dict[str, Any]:
        nodes = [{"node_id": name, "block_type": weights_type, "config": {"checkpoint_ref": str(tmp_path / name)}} for name in names]
        return {"graph_id": "g", "nodes": nodes, "edges": []}

    (tmp_path / "one").write_bytes(b"x" * 10)
    (tmp_path / "two").write_bytes(b"x" * 5)
    building.build(config("one"))
    building.build(config("one", "two"))
    building.build(config("two"))
    assert requested == [10, 5]


def test_the_steps_of_composing_a_graph_are_not_kept_side_by_side(comfy: Any, weights_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_composing, "check", dict)
    config, _ = add_block(None, "g", "a", weights_type, {})
    config, _ = add_block(config, "g", "b", weights_type, {})
    config = connect(config, "a.y -> b.x", open_rest=True)
    assert len(comfy.runnables) == 1
    building.build(config)
    assert len(comfy.runnables) == 1


@pytest.mark.parametrize("flags, kept", [({"cache_none": True}, 0), ({"cache_lru": 3}, 3), ({"cache_lru": 99}, MAX_BUILT), ({}, MAX_BUILT)])
def test_the_cache_type_limits_the_number_of_built_graphs(comfy: Any, flags: dict[str, Any], kept: int) -> None:
    vars(comfy.args).update(flags)
    for index in range(MAX_BUILT + 2):
        comfy.runnables.keep(str(index), graph(f"g{index}")[0])
    assert len(comfy.runnables) == kept
    assert str(MAX_BUILT + 1) in comfy.runnables or not kept


def test_ram_pressure_releases_the_built_graphs_that_are_not_in_use(comfy: Any) -> None:
    comfy.runnables.keep("one", graph("one")[0])
    comfy.ram = 0
    comfy.runnables.keep("two", graph("two")[0])
    assert ["one" in comfy.runnables, "two" in comfy.runnables] == [False, True]


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda", 0), None])
def test_unloading_all_models_releases_every_built_graph(comfy: Any, device: Any) -> None:
    made, weak = graph("one")
    comfy.runnables.keep("one", made)
    del made
    comfy.management.free_memory(1e30, device)
    assert len(comfy.runnables) == 0
    assert weak() is None


def test_a_model_that_comfyui_loads_takes_the_place_of_a_built_graph_on_its_device(comfy: Any) -> None:
    comfy.runnables.keep("one", graph("one")[0])
    comfy.free = 10
    comfy.management.free_memory(5, torch.device("cpu"))
    assert len(comfy.runnables) == 1, "enough is free"
    comfy.management.free_memory(20, torch.device("cuda", 0))
    assert len(comfy.runnables) == 1, "its weights are on another device"
    comfy.management.free_memory(20, torch.device("cpu"))
    assert len(comfy.runnables) == 0


def test_comfyui_unloads_its_models_even_if_built_graphs_cannot_be_released(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(comfy.management, "free_memory", lambda required, device, *rest: asked.append((required, device)))
    comfy.runnables.keep("one", graph("one")[0])
    monkeypatch.delattr(comfy.management, "get_free_memory")
    comfy.management.free_memory(20, torch.device("cpu"))
    assert asked == [(20, torch.device("cpu"))]


def test_the_bytes_of_a_config_are_those_of_its_checkpoints_each_once(tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_bytes(b"x" * 10)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "two.bin").write_bytes(b"x" * 5)
    one = {"config": {"checkpoint_ref": str(tmp_path / "one.bin")}}
    config = {"nodes": [one, one, {"config": {"checkpoint_path": str(tmp_path / "folder")}}, {"config": {"checkpoint_ref": "org/model"}}]}
    assert size_of(referenced_files(config)) == 15


# -- the turn of a node that computes ------------------------------------------------------------------------------


def test_the_event_loop_is_blocked_while_the_thread_computes_and_no_longer() -> None:
    turn = ExecutorTurn(lambda: None)
    assert turn.block(0.02)
    threading.Timer(0.05, turn.release).start()
    assert not turn.block(10)
    assert not turn.block(10)


def test_a_thread_that_resumes_waits_until_the_event_loop_is_blocked() -> None:
    woken, resumed = threading.Event(), threading.Event()
    turn = ExecutorTurn(woken.set)
    turn.release()

    def resume() -> None:
        turn.acquire(CancelToken())
        resumed.set()

    threading.Thread(target=resume, daemon=True).start()
    assert woken.wait(10)
    assert not resumed.wait(0.2), "another node may execute"
    assert turn.block(0.5)
    assert resumed.wait(10)


def test_a_cancelled_thread_does_not_wait_for_its_turn() -> None:
    token, turn = CancelToken(), ExecutorTurn(lambda: None)
    turn.release()
    token.cancel("stopped")
    with pytest.raises(Cancelled, match="stopped"):
        turn.acquire(token)
    assert not turn.block(0)
