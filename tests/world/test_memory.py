"""What stateful blocks remember: keys that cannot collide, shared blocks, and files of older versions."""

from __future__ import annotations

from pathlib import Path

from samples.worlds import bits, canonical_world, user_state, world_registry
from yggdrasill.foundation import Graph, ReusePool
from yggdrasill.stage import Stage, State
from yggdrasill.world import World, WorldStorage
from yggdrasill.world.passes import restore_blocks, snapshot_blocks
from yggdrasill.world.storage import Progress


def graph_of(graph_id: str, *node_ids: str) -> Graph:
    graph = Graph(graph_id, registry=world_registry(), pool=ReusePool.off())
    for node_id in node_ids:
        graph.add_node(node_id, "sample/accumulate", auto_connect=False)
    return graph


def world_of(*graphs: Graph) -> World:
    stage = Stage("s")
    for graph in graphs:
        stage.add_pipeline(graph)
    world = World("w", seed=1)
    world.add_stage(stage)
    return world


def totals(world: World) -> list[float]:
    return [state["total"] for state in snapshot_blocks(world.stages).values()]


def set_totals(world: World, *values: float) -> None:
    memory = snapshot_blocks(world.stages)
    restore_blocks(world.stages, {path: {"total": value} for path, value in zip(memory, values, strict=True)})


def test_ids_with_slashes_have_memory_entries_of_their_own() -> None:
    world = world_of(graph_of("a", "b/c"), graph_of("a/b", "c"))
    set_totals(world, 1.0, 2.0)

    memory = snapshot_blocks(world.stages)

    assert list(memory) == [("s", "a", "b/c"), ("s", "a/b", "c")]
    set_totals(world, 5.0, 6.0)
    restore_blocks(world.stages, memory)
    assert totals(world) == [1.0, 2.0]


def test_memory_of_ids_with_slashes_survives_storage(tmp_path: Path) -> None:
    world = world_of(graph_of("a", "b/c"), graph_of("a/b", "c"))
    set_totals(world, 1.0, 2.0)
    WorldStorage(tmp_path).save_last("w", State(), memory=snapshot_blocks(world.stages))

    progress = WorldStorage(tmp_path).newest("w")

    assert progress is not None
    set_totals(world, 0.0, 0.0)
    restore_blocks(world.stages, progress.memory)
    assert totals(world) == [1.0, 2.0]


def test_memory_in_files_of_older_versions_is_read(tmp_path: Path) -> None:
    """They joined the ids of a path with "/"."""
    world = canonical_world(stateful=True)
    world.set_storage(tmp_path, load_last_state=True)
    expected = canonical_world(stateful=True).run(user_state(1, 2, 3), num_steps=2)
    state = world.run(user_state(1, 2, 3))
    assert world.storage is not None
    old = {"/".join(path): memory for path, memory in snapshot_blocks(world.stages).items()}
    world.storage.save_last("tiny", state, memory=old)

    later = canonical_world(stateful=True)
    later.set_storage(tmp_path, load_last_state=True)

    assert list(old) == ["creator/create/create/sum"]
    assert bits(later.run()) == bits(expected)


def test_a_block_that_two_graphs_share_has_one_entry() -> None:
    one = graph_of("one", "n")
    two = Graph("two", registry=world_registry(), pool=ReusePool.off())
    two.add_node(one.get_node("n").block, node_id="m", auto_connect=False)

    assert list(snapshot_blocks(world_of(one, two).stages)) == [("s", "one", "n")]


def test_a_block_without_an_entry_keeps_its_memory() -> None:
    world = world_of(graph_of("one", "n"))
    set_totals(world, 3.0)

    restore_blocks(world.stages, Progress("pass", 1, State()).memory)

    assert totals(world) == [3.0]
