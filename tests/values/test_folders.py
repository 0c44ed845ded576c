"""Atomic replacement of files and folders: failures and kills leave the old content or the new, and other programs' files stay."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from yggdrasill.errors import StorageFailed
from yggdrasill.values import DiskStore, write_file
from yggdrasill.values.files import FileSet
from yggdrasill.values.folders import StagedFolder, recover_folder

#: Kills a process at each step of a save in turn; the steps are all calls after which a crash could show.
SAVE = """
import os, shutil, signal, sys
from pathlib import Path
from yggdrasill.values import folders
from yggdrasill.values.folders import StagedFolder

template, places, exchange = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "exchange"
steps = 0

def save(place, kill_at):
    def counted(function):
        def call(*args, **options):
            global steps
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)
        return call
    for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    folders._exchange = counted(folders._exchange) if exchange else lambda first, second: False
    with StagedFolder(place / "save", owned=["config.json", "checkpoints/old/checkpoint.json"]) as folder:
        folder.write("config.json", b"new")
        folder.write("checkpoints/new/checkpoint.json", b"new")

kill_at = 0
while True:
    shutil.copytree(template, places / str(kill_at) / "save")
    child = os.fork()
    if not child:
        save(places / str(kill_at), kill_at)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if kill_at and not os.WIFSIGNALED(status):
        shutil.rmtree(places / str(kill_at))
        break
    kill_at += 1
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def old_save(folder: Path) -> None:
    for name, data in {
        "config.json": b"old",
        "checkpoints/old/checkpoint.json": b"old",
        "notes.txt": b"mine",
        "checkpoints/mine.safetensors": b"mine",
        "run/snapshot": b"mine",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


OTHERS = {"checkpoints/mine.safetensors": b"mine", "notes.txt": b"mine", "run/snapshot": b"mine"}
OLD = {"config.json": b"old", "checkpoints/old/checkpoint.json": b"old"}
NEW = {"config.json": b"new", "checkpoints/new/checkpoint.json": b"new"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new_one(tmp_path: Path, way: str) -> None:
    old_save(tmp_path / "template")
    places = tmp_path / "places"
    subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / "template"), str(places), way], check=True)
    assert len(list(places.iterdir())) > 15
    seen = set()
    for place in sorted(places.iterdir(), key=lambda path: int(path.name)):
        if way == "exchange":
            # one system call: a reader that does not recover sees one of the two as well
            assert {name: data for name, data in tree(place / "save").items() if name not in OTHERS} in (OLD, NEW)
        recover_folder(place / "save")
        found = tree(place / "save")
        assert found in ({**OLD, **OTHERS}, {**NEW, **OTHERS}), place.name
        seen.add(found["config.json"])
        assert [path.name for path in place.iterdir()] == ["save"], place.name
    assert tree(places / "0" / "save") == {**NEW, **OTHERS}
    assert seen == {b"old", b"new"}


def test_recovery_leaves_a_save_alone_that_still_runs(tmp_path: Path) -> None:
    old_save(tmp_path / "save")
    with StagedFolder(tmp_path / "save", owned=OLD) as folder:
        folder.write("config.json", b"new")
        recover_folder(tmp_path / "save")
        assert (folder.path / "config.json").read_bytes() == b"new"
    assert (tmp_path / "save" / "config.json").read_bytes() == b"new"


def test_an_exception_leaves_no_trace_of_a_staged_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), StagedFolder(tmp_path / "deep" / "save") as folder:
        folder.write("a/b", bytes(1 // 0))
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "save").write_bytes(b"x")
    with pytest.raises(StorageFailed, match="a file has that name"), StagedFolder(tmp_path / "save"):
        pass


def test_a_folder_of_others_where_a_file_should_be_is_refused(tmp_path: Path) -> None:
    old_save(tmp_path / "save")
    before = tree(tmp_path / "save")
    with pytest.raises(StorageFailed, match="'run' is a folder; rename or remove it"), StagedFolder(tmp_path / "save", owned=OLD) as folder:
        folder.write("run", b"new")
    assert tree(tmp_path / "save") == before


def test_a_staged_folder_follows_a_link_and_keeps_it(tmp_path: Path) -> None:
    old_save(tmp_path / "first")
    (tmp_path / "latest").symlink_to(tmp_path / "first")
    with StagedFolder(tmp_path / "latest", owned=OLD) as folder:
        folder.write("config.json", b"new")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "first" / "config.json").read_bytes() == b"new"


def test_the_working_directory_may_be_the_folder_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_save(tmp_path / "save")
    monkeypatch.chdir(tmp_path / "save")
    with StagedFolder(".", owned=OLD) as folder:
        folder.write("config.json", b"new")
    assert Path("config.json").read_bytes() == b"new"


def test_a_file_set_that_fails_at_its_second_rename_undoes_the_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("OLD", encoding="utf-8")
    (tmp_path / "checkpoint.json").mkdir()
    files = FileSet()
    for name in ("new.json", "config.json", "checkpoint.json"):
        files.write(tmp_path / name, b"NEW")
    with pytest.raises(StorageFailed, match="what was there before is unchanged"):
        files.commit()
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == "OLD"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "config.json"]


def test_durable_writing_flushes_the_file_and_the_folder_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        flushed.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real(handle)

    store = DiskStore(tmp_path / "store", durable=True)
    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "a", b"x", durable=True)
    assert flushed == ["file", "folder"]
    flushed.clear()
    with FileSet(durable=True) as files:
        files.write(tmp_path / "a", b"x")
        files.write(tmp_path / "b", b"x")
    assert flushed == ["file", "file", "folder"]
    flushed.clear()
    store.put(b"abc")
    assert flushed[:2] == ["file", "folder"]
