"""Snapshots: names, rotation, what is newest, and files that are damaged or belong to others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samples.worlds import bits, canonical_config, canonical_world, user_state, world_registry
from yggdrasill.errors import CorruptData, InvalidArgument, InvalidConfig, StorageFailed
from yggdrasill.stage import State
from yggdrasill.world import World, WorldStorage


def full(passes: int = 0) -> State:
    return user_state(1, 2, 3, 4, 5).replace(content={"episodes": passes}, passes=passes, seed=1)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != ".lock")


def test_snapshots_are_numbered_from_one(tmp_path: Path) -> None:
    storage = WorldStorage(tmp_path)
    paths = [storage.save_update("w", full(number), number) for number in range(3)]

    assert [path.name for path in paths] == ["w-000001.ygg", "w-000002.ygg", "w-000003.ygg"]
    assert storage.snapshots("w") == list(enumerate(paths, start=1))


@pytest.mark.parametrize(
    "template, name",
    [
        ("{world_id}-{number:06d}.ygg", "w-000001.ygg"),
        ("{number}", "1"),
        ("state.{number:03}.of.{world_id}", "state.001.of.w"),
        ("[a+b] {number}{{x}}", "[a+b] 1{x}"),
    ],
)
def test_a_naming_template_gives_names_that_are_found_again(tmp_path: Path, template: str, name: str) -> None:
    storage = WorldStorage(tmp_path, naming_template=template)

    path = storage.save_update("w", full(), 0)

    assert path.name == name
    assert storage.snapshots("w") == [(1, path)]


@pytest.mark.parametrize(
    "template",
    [
        "{world_id}.ygg",
        "{number}-{when}",
        "../{number}",
        "a/{number}",
        "a\\{number}",
        "{number",
        "{number!r}",
        "{number:x}",
        "{number:>4}",
        "{0}",
        "",
    ],
)
def test_a_template_that_gives_no_readable_names_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(InvalidArgument, match=r"must be a file name with \{number\}"):
        WorldStorage(tmp_path, naming_template=template)


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    storage = WorldStorage(tmp_path, max_snapshots=2)
    for number in range(5):
        storage.save_update("w", full(number), number)

    assert names(tmp_path) == ["w-000004.ygg", "w-000005.ygg"]


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 12), count=st.integers(1, 30))
def test_rotation_keeps_the_newest_up_to_max_snapshots(limit: int, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        storage = WorldStorage(folder, max_snapshots=limit)
        for number in range(1, count + 1):
            storage.save_update("w", full(number), number)
            kept = [found for found, _ in storage.snapshots("w")]
            assert kept == list(range(max(1, number + 1 - limit), number + 1))


def test_rotation_leaves_other_worlds_and_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep", encoding="utf-8")
    WorldStorage(tmp_path).save_update("other", full(), 0)
    storage = WorldStorage(tmp_path, max_snapshots=1)
    for number in range(3):
        storage.save_update("w", full(number), number)

    assert names(tmp_path) == ["notes.txt", "other-000001.ygg", "w-000003.ygg"]


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", True])
def test_a_rotation_below_one_is_refused(tmp_path: Path, count: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_snapshots must be an integer of at least 1"):
        WorldStorage(tmp_path, max_snapshots=count)


def test_a_url_is_no_folder() -> None:
    with pytest.raises(InvalidArgument, match="give a path"):
        WorldStorage("s3://bucket/states")


def test_a_snapshot_holds_the_full_state_with_the_updated_content(tmp_path: Path) -> None:
    world = canonical_world()
    world.set_storage(tmp_path)
    world.run(user_state(1, 2, 3))

    progress = WorldStorage.read(tmp_path / "tiny-000001.ygg")

    assert progress.state.is_complete
    assert bits(progress.state[3]) == bits(user_state(3)[3])
    assert bits(progress.state.content) == bits(world.content)
    assert progress.following is not None
    assert progress.following.filled_blocks == [1]


def test_saving_the_same_update_again_gives_the_same_file(tmp_path: Path) -> None:
    storage = WorldStorage(tmp_path)
    first = storage.save_update("w", full(), 0)

    assert storage.save_update("w", full(), 0) == first
    assert storage.save_update("w", full(1), 0) != first


# -- several writers --------------------------------------------------------------------------------------------


def marks(storage: WorldStorage) -> list[str]:
    return sorted(storage.read(path).state[1] for _, path in storage.snapshots("w"))


def marked(mark: str) -> State:
    return State(dict.fromkeys(range(1, 6), mark))


def test_threads_that_share_a_folder_never_overwrite_a_snapshot(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def save(name: str) -> None:
        storage = WorldStorage(tmp_path)
        barrier.wait(10)
        for number in range(5):
            storage.save_update("w", marked(f"{name}{number}"), number)

    threads = [threading.Thread(target=save, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert marks(WorldStorage(tmp_path)) == sorted(f"{name}{number}" for name in "abcd" for number in range(5))


WRITER = """
import sys, time
from pathlib import Path
from yggdrasill.stage import State
from yggdrasill.world import WorldStorage
folder, name = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{name}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(20):
    WorldStorage(folder / "states").save_update("w", State(dict.fromkeys(range(1, 6), f"{name}{number:02}")), number)
"""


def test_processes_that_share_a_folder_never_overwrite_a_snapshot(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "ab"]
    while not all((tmp_path / f"ready-{name}").exists() for name in "ab"):
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()

    assert [process.wait(60) for process in processes] == [0, 0]

    storage = WorldStorage(tmp_path / "states")
    assert [number for number, _ in storage.snapshots("w")] == list(range(1, 41))
    assert marks(storage) == sorted(f"{name}{number:02}" for name in "ab" for number in range(20))


def test_a_snapshot_number_that_another_writer_claimed_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer without the lock, such as another version, may create the file after the folder was listed."""
    storage = WorldStorage(tmp_path)
    monkeypatch.setattr(WorldStorage, "snapshots", lambda self, world_id: [])
    (tmp_path / "w-000001.ygg").write_bytes(b"of another writer")

    path = storage.save_update("w", full(), 0)

    assert path.name == "w-000002.ygg"
    assert (tmp_path / "w-000001.ygg").read_bytes() == b"of another writer"


def test_a_file_system_without_hard_links_gets_whole_snapshots_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    storage = WorldStorage(tmp_path)
    paths = [storage.save_update("w", full(number), number) for number in range(2)]

    assert names(tmp_path) == ["w-000001.ygg", "w-000002.ygg"]
    assert storage.read(paths[1]).passes == 1


def test_the_newest_is_what_was_written_last(tmp_path: Path) -> None:
    storage = WorldStorage(tmp_path)
    assert storage.newest("w") is None

    storage.save_update("w", full(3), 3)
    newest = storage.newest("w")
    assert newest is not None
    assert (newest.phase, newest.passes) == ("update", 3)

    storage.save_last("w", full(1))
    newest = storage.newest("w")
    assert newest is not None
    assert (newest.phase, newest.passes) == ("pass", 1)


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "not ours"])
def test_a_damaged_newest_snapshot_is_named_and_deleting_it_goes_back_one(tmp_path: Path, damage: str) -> None:
    storage = WorldStorage(tmp_path)
    storage.save_update("w", full(0), 0)
    path = storage.save_update("w", full(1), 1)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "truncated": data[:-9],
            "altered": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "empty": b"",
            "not ours": b"x" * 900,
        }[damage]
    )

    with pytest.raises(CorruptData, match=r"w-000002\.ygg' is damaged: .*delete or move it"):
        storage.newest("w")

    path.unlink()
    newest = storage.newest("w")
    assert newest is not None
    assert newest.passes == 0


def test_a_run_does_not_go_on_from_a_damaged_snapshot(tmp_path: Path) -> None:
    world = canonical_world()
    world.set_storage(tmp_path, load_last_state=True)
    world.run(user_state(1, 2, 3))
    (tmp_path / "tiny-last.ygg").write_bytes(b"garbage")

    with pytest.raises(CorruptData, match=r"tiny-last\.ygg"):
        world.run()

    assert world.run(world.last_state).passes == 2


def test_a_record_of_another_shape_is_damaged_too(tmp_path: Path) -> None:
    from yggdrasill.values import dumps

    (tmp_path / "w-000001.ygg").write_bytes(dumps({"world_id": "w", "state": {"blocks": {"9": 1}}}))
    with pytest.raises(CorruptData, match="is damaged"):
        WorldStorage(tmp_path).newest("w")


def test_a_file_that_cannot_be_read_is_a_storage_failure(tmp_path: Path) -> None:
    (tmp_path / "folder.ygg").mkdir()
    with pytest.raises(StorageFailed, match="cannot read snapshot"):
        WorldStorage.read(tmp_path / "folder.ygg")


def test_another_worlds_snapshot_is_refused(tmp_path: Path) -> None:
    WorldStorage(tmp_path, naming_template="{number}").save_update("a", full(), 0)
    with pytest.raises(InvalidArgument, match="is a snapshot of world 'a', not of 'b'"):
        WorldStorage(tmp_path, naming_template="{number}").newest("b")


def test_a_world_whose_id_extends_another_is_not_mixed_up(tmp_path: Path) -> None:
    storage = WorldStorage(tmp_path)
    storage.save_update("w-1", full(), 0)
    assert storage.snapshots("w") == []


def test_config_gives_the_storage_back(tmp_path: Path) -> None:
    config = {"state_dir": str(tmp_path), "naming_template": "{number}", "max_snapshots": 3, "load_last_state": True}
    assert WorldStorage.from_config(config).to_config() == config
    assert WorldStorage.from_config({"state_dir": "x", "rotation": 4}).max_snapshots == 4


def test_a_config_files_state_dir_is_relative_to_it_wherever_the_world_is_saved(tmp_path: Path) -> None:
    config = {**canonical_config(), "storage": {"state_dir": "states"}}
    (tmp_path / "project").mkdir()
    world = World.from_config(config, world_registry(), base_dir=tmp_path / "project")
    world.run()
    world.save(tmp_path / "saved")

    loaded = World.load(tmp_path / "saved", registry=world_registry())

    assert loaded.storage is not None
    assert loaded.storage.state_dir == (tmp_path / "project" / "states").resolve()


def test_a_storage_config_with_a_mistake_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"storage\.state_dirs"):
        World.from_config({**canonical_config(), "storage": {"state_dirs": "x"}}, world_registry())
