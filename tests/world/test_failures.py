"""What a failed run leaves behind: nothing in memory, whole files on disk, and a way on that equals the uninterrupted run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samples.worlds import bits, block_of, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.errors import BlockFailed, HookFailed, InvalidArgument, StorageFailed
from yggdrasill.world import CANONICAL_CYCLE, World
from yggdrasill.world.passes import snapshot_blocks

STAGES = list(CANONICAL_CYCLE)
BLOCKS = [
    (stage, stage_block)
    for stage in STAGES
    for stage_block in ([None] if stage != "environment" else ["world_update", "development_of_the_world"])
]
by_block = pytest.mark.parametrize("stage, pipeline", BLOCKS, ids=[pipeline or stage for stage, pipeline in BLOCKS])
ACTIONS = ["dig", "rest", "sing"]


def uninterrupted(passes: int = 3) -> World:
    world = canonical_world(stateful=True)
    world.run(user_state(1, 2, 3), num_steps=passes, action=ACTIONS[:passes])
    return world


def facts(world: World) -> tuple[bytes, bytes, bytes]:
    """Everything a run may change in a world, as bytes."""
    last = None if world.last_state is None else world.last_state.to_dict()
    return bits(world.content), bits(last), bits(snapshot_blocks(world.stages))


# -- in memory --------------------------------------------------------------------------------------------------


@by_block
def test_a_failing_block_leaves_the_world_as_it_was(stage: str, pipeline: str | None) -> None:
    world = canonical_world(stateful=True)
    state = world.run(user_state(1, 2, 3))
    before = facts(world)
    block_of(world, stage, pipeline).failures = 1

    with pytest.raises(BlockFailed, match=f"node '{stage}/.*failed on purpose"):
        world.run(state)

    assert facts(world) == before


@by_block
def test_the_same_state_again_after_a_failure_equals_the_uninterrupted_run(stage: str, pipeline: str | None) -> None:
    world = canonical_world(stateful=True)
    given = {1: "a storm", 2: {"rows": 2, "scale": 1}, 3: user_state(3)[3]}
    block_of(world, stage, pipeline).failures = 1
    with pytest.raises(BlockFailed):
        world.run(given, num_steps=3, action=ACTIONS)

    state = world.run(given, num_steps=3, action=ACTIONS)

    assert bits(state) == bits(uninterrupted().last_state)
    assert facts(world) == facts(uninterrupted())
    assert len(world.content["episodes"]) == 3


def test_a_run_of_several_passes_is_all_or_nothing() -> None:
    world = canonical_world(stateful=True)
    before = facts(world)
    creator = block_of(world, "creator")

    def fail_in_the_third_pass(name: str, phase: str, **_: Any) -> None:
        if (name, phase) == ("creator", "before") and creator.calls == 2:
            creator.failures = 1

    with pytest.raises(BlockFailed):
        world.run(user_state(1, 2, 3), num_steps=3, callbacks=fail_in_the_third_pass)

    assert facts(world) == before


def test_an_iterated_run_keeps_every_pass_it_gave() -> None:
    world = canonical_world(stateful=True)
    passes = world.run(user_state(1, 2, 3), num_steps=3, iterate=True)
    state = next(passes)
    block_of(world, "architect").failures = 1
    with pytest.raises(BlockFailed):
        next(passes)

    assert world.last_state is state
    assert len(world.content["episodes"]) == 1
    assert bits(world.run(state, num_steps=2)) == bits(canonical_world(stateful=True).run(user_state(1, 2, 3), num_steps=3))


# -- on disk ----------------------------------------------------------------------------------------------------


def stored_world(folder: Path, **options: Any) -> World:
    world = canonical_world(stateful=True)
    world.set_storage(folder, load_last_state=True, **options)
    return world


def moments() -> list[tuple[int, str, str]]:
    """Every call of a hook in three passes: the points at which a process could stop."""
    world = canonical_world(stateful=True)
    seen: list[tuple[int, str, str]] = []
    world.set_storage(Path("unused"))

    def note(name: str, phase: str, **facts: Any) -> None:
        seen.append((facts["state_before"].passes, name, phase))
        if (name, phase) == ("environment", "before"):
            seen.append((facts["state_before"].passes, "environment", "snapshot"))

    world.set_storage(None)
    world.run(user_state(1, 2, 3), num_steps=3, callbacks=note)
    return seen


@pytest.mark.parametrize("moment", moments(), ids=lambda moment: f"pass {moment[0]}, {moment[1]}, {moment[2]}")
def test_a_new_process_goes_on_as_if_nothing_had_stopped_it(tmp_path: Path, moment: tuple[int, str, str]) -> None:
    world = stored_world(tmp_path)

    def stop(name: str, phase: str, **facts: Any) -> None:
        if (facts["state_before"].passes, name, phase) == moment:
            raise RuntimeError("the process ends here")

    with pytest.raises(HookFailed, match="the process ends here"):
        world.run(user_state(1, 2, 3), num_steps=3, action=ACTIONS, callbacks=stop)

    after = stored_world(tmp_path)
    assert after.storage is not None
    progress = after.storage.newest("tiny")
    if progress is None:
        state = after.run(user_state(1, 2, 3), num_steps=3, action=ACTIONS)
    else:
        # a pass that is resumed behind Environment has applied its action already
        used = progress.passes + (progress.phase == "update")
        state = after.run(num_steps=3 - progress.passes, action=ACTIONS[used:])

    assert bits(state) == bits(uninterrupted().last_state)
    assert facts(after) == facts(uninterrupted())


def test_going_on_behind_a_snapshot_repeats_nothing_of_environment(tmp_path: Path) -> None:
    world = stored_world(tmp_path)
    block_of(world, "architect").failures = 1
    with pytest.raises(BlockFailed):
        world.run(user_state(1, 2, 3), action="dig")

    after = stored_world(tmp_path)
    state = after.run()

    assert "dig" in state[1]
    assert [block_of(after, "environment", name).calls for name in ("world_update", "development_of_the_world")] == [0, 0]
    assert len(after.content["episodes"]) == 1


def test_a_snapshots_resume_state_goes_on_by_ordinary_skipping(tmp_path: Path) -> None:
    world = stored_world(tmp_path)
    block_of(world, "architect").failures = 1
    with pytest.raises(BlockFailed):
        world.run(user_state(1, 2, 3), action="dig")
    assert world.storage is not None
    progress = world.storage.newest("tiny")
    assert progress is not None
    assert (progress.phase, progress.passes, progress.state.filled_blocks) == ("update", 0, [1, 2, 3, 4, 5])

    after = canonical_world(stateful=True)
    state = after.run(progress.resume_state(), action="dig")

    assert bits(state) == bits(uninterrupted(1).last_state)


def test_repeating_a_pass_writes_its_snapshot_once(tmp_path: Path) -> None:
    world = stored_world(tmp_path)
    block_of(world, "architect").failures = 1
    with pytest.raises(BlockFailed):
        world.run(user_state(1, 2, 3))

    world.run(user_state(1, 2, 3))

    assert sorted(file.name for file in tmp_path.glob("*.ygg")) == ["tiny-000001.ygg", "tiny-last.ygg"]


def test_a_run_from_an_older_state_is_what_a_new_process_goes_on_from(tmp_path: Path) -> None:
    world = stored_world(tmp_path)
    states = list(world.run(user_state(1, 2, 3), num_steps=4, iterate=True))
    other = world.run(states[0], action="another way")

    after = stored_world(tmp_path)

    assert bits(after.run()) == bits(world.run(other))


def test_a_run_needs_no_state_to_go_on_only_if_the_storage_says_so(tmp_path: Path) -> None:
    world = canonical_world()
    world.set_storage(tmp_path)
    world.run(num_steps=2)

    assert canonical_world().run().passes == 1
    fresh = canonical_world()
    fresh.set_storage(tmp_path)
    assert fresh.run().passes == 1
    resumed = canonical_world()
    resumed.set_storage(tmp_path, load_last_state=True)
    assert resumed.run().passes == 2


def test_an_empty_storage_starts_from_the_beginning(tmp_path: Path) -> None:
    assert bits(stored_world(tmp_path / "new").run()) == bits(canonical_world(stateful=True).run())


# -- a full disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    if sys.platform != "linux":
        pytest.skip("NOT TESTED: a full disk needs a tmpfs, which only Linux has")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED: a full disk needs the right to mount a tmpfs ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 512)
        except OSError:
            return


@pytest.mark.parametrize("full_at", ["snapshot", "last state"])
def test_a_full_disk_changes_neither_state_nor_content_nor_files(small_disk: Path, full_at: str) -> None:
    folder = small_disk / "states"
    world = canonical_world(stateful=True)
    world.set_storage(folder)
    state = world.run(user_state(1, 2, 3))
    before, files = facts(world), {file.name: file.read_bytes() for file in folder.iterdir()}
    moment = ("philosopher", "before") if full_at == "snapshot" else ("creator", "before")

    def fill_up(name: str, phase: str, **_: Any) -> None:
        if (name, phase) == moment:
            fill(small_disk)

    with pytest.raises(StorageFailed, match="what was there before is unchanged"):
        world.run(state, callbacks=fill_up)

    assert facts(world) == before
    left = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {name: data for name, data in left.items() if name in files} == files
    assert set(left) - set(files) == ({"tiny-000002.ygg"} if full_at == "last state" else set())

    (small_disk / "ballast").unlink()
    assert bits(world.run(state)) == bits(canonical_world(stateful=True).run(user_state(1, 2, 3), num_steps=2))


def test_a_folder_that_became_a_file_is_one_clear_error(world: World, tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("in the way", encoding="utf-8")
    world.set_storage(tmp_path / "snapshots")

    with pytest.raises(StorageFailed, match="cannot write"):
        world.run()

    assert (tmp_path / "snapshots").read_text(encoding="utf-8") == "in the way"
    assert world.last_state is None


def test_a_running_world_refuses_a_second_run_without_touching_the_first(world: World) -> None:
    passes = world.run(num_steps=2, iterate=True)
    first = next(passes)
    with pytest.raises(InvalidArgument):
        world.run(user_state(1, 2, 3))

    assert world.last_state is first
    assert bits(next(passes)) == bits(canonical_world().run(num_steps=2))


def test_a_run_refused_in_the_middle_of_a_pass_changes_nothing() -> None:
    world = canonical_world(stateful=True)
    refused: list[str] = []
    before = facts(world)

    def second_run(name: str, phase: str, **_: Any) -> None:
        if (name, phase) == ("environment", "after"):
            with pytest.raises(InvalidArgument, match="is running already") as caught:
                world.run(user_state(1, 2, 3))
            refused.append(str(caught.value))
            assert facts(world) == before

    state = world.run(user_state(1, 2, 3), callbacks=second_run)

    assert len(refused) == 1
    assert bits(state) == bits(canonical_world(stateful=True).run(user_state(1, 2, 3)))


def test_a_refused_run_copies_no_block_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = canonical_world(stateful=True)
    sums = world.get_stage("creator").get_pipeline("create").get_graph("create").get_node("sum").block
    passes = world.run(num_steps=2, iterate=True)
    next(passes)
    held: dict[str, Any] = sums.state_dict()
    touched: list[str] = []

    def state_dict(block: object) -> dict[str, Any]:
        touched.append("read")
        return held

    monkeypatch.setattr(type(sums), "state_dict", state_dict)
    monkeypatch.setattr(type(sums), "load_state_dict", lambda self, state, strict=True: touched.append("written"))

    with pytest.raises(InvalidArgument, match="is running already"):
        world.run(user_state(1, 2, 3))

    assert touched == []


# -- the action of a resumed run --------------------------------------------------------------------------------


def stopped_behind_environment(folder: Path) -> World:
    """A world in a new process, whose first pass stopped in Architect after its snapshot."""
    world = stored_world(folder)
    block_of(world, "architect").failures = 1
    with pytest.raises(BlockFailed):
        world.run(user_state(1, 2, 3), action="dig")
    return stored_world(folder)


def test_a_resumed_run_gives_its_action_to_the_first_pass_that_reaches_environment(tmp_path: Path) -> None:
    states = list(stopped_behind_environment(tmp_path).run(num_steps=2, action="rest", iterate=True))

    assert ["dig" in states[0][1], "rest" in states[0][1]] == [True, False]
    assert "rest" in states[1][1]
    whole = canonical_world(stateful=True).run(user_state(1, 2, 3), num_steps=2, action=["dig", "rest"])
    assert bits(states[1]) == bits(whole)


def test_an_action_that_no_pass_of_a_resumed_run_can_receive_is_refused(tmp_path: Path) -> None:
    world = stopped_behind_environment(tmp_path)
    before = facts(world)

    with pytest.raises(InvalidArgument, match=r"resumes pass 1 behind 'environment'.*of 1 passes 0 can receive an action"):
        world.run(action="rest")
    with pytest.raises(InvalidArgument, match="of 2 passes 1 can receive an action"):
        world.run(num_steps=2, action=["rest", "sing"])

    assert facts(world) == before
    assert world.run().passes == 1


def test_a_world_from_its_config_resumes_what_a_built_one_began(tmp_path: Path) -> None:
    built = canonical_world()
    built.set_storage(tmp_path)
    built.run(num_steps=2)
    config = {**canonical_config(), "storage": {"state_dir": str(tmp_path), "load_last_state": True}}

    state = World.from_config(config, world_registry()).run()

    assert bits(state) == bits(canonical_world().run(num_steps=3))
