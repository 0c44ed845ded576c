"""The cache of models: known hashes, links that stay valid, unfinished files of one process at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from samples.file_server import data_of, digest_of
from yggdrasill.version_specs.cache import HashMemory, LinkRefused, ModelCache, Part

DATA = data_of("a", 10_000)
SHA = digest_of(DATA)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    found = ModelCache(tmp_path / "volume" / "cache")
    found.folder.mkdir(parents=True)
    found.path(SHA).write_bytes(DATA)
    return found


def reads(memory: HashMemory, path: Path) -> tuple[str, int]:
    counted: list[int] = []
    return memory.hash(path, counted.append), sum(counted)


def test_a_file_is_hashed_once_also_for_later_processes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)
    memory = HashMemory(tmp_path / "hashes.json")
    assert reads(memory, path) == (SHA, len(DATA))
    assert reads(memory, path) == (SHA, 0)
    memory.save()
    assert reads(HashMemory(tmp_path / "hashes.json"), path) == (SHA, 0)


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_is_hashed_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)
    memory = HashMemory(tmp_path / "hashes.json")
    memory.hash(path)
    facts, other = path.stat(), bytes(len(DATA))
    if change == "size":
        path.write_bytes(other + b"x")
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif change == "time":
        path.write_bytes(other)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    else:
        (tmp_path / "b").write_bytes(other)
        (tmp_path / "b").replace(path)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert memory.known(path) is None
    assert memory.hash(path) == digest_of(path.read_bytes())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4]}', "\x00"])
def test_a_damaged_file_of_hashes_is_written_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "hashes.json").write_text(text, encoding="utf-8")
    (tmp_path / "a").write_bytes(DATA)
    memory = HashMemory(tmp_path / "hashes.json")
    assert memory.hash(tmp_path / "a") == SHA
    memory.save()
    assert HashMemory(tmp_path / "hashes.json").known(tmp_path / "a") == SHA


def test_two_processes_keep_the_hashes_of_each_other(tmp_path: Path) -> None:
    first, second = (HashMemory(tmp_path / "hashes.json") for _ in range(2))
    for name, memory in (("a", first), ("b", second)):
        (tmp_path / name).write_bytes(DATA)
        memory.hash(tmp_path / name)
        memory.save()
    assert all(HashMemory(tmp_path / "hashes.json").known(tmp_path / name) for name in "ab")


def test_threads_that_save_at_once_lose_no_hash(tmp_path: Path) -> None:
    memory = HashMemory(tmp_path / "hashes.json")
    paths = [tmp_path / f"file{number}" for number in range(60)]

    def add(path: Path) -> None:
        path.write_bytes(path.name.encode())
        memory.hash(path)
        memory.save()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, paths))
    later = HashMemory(tmp_path / "hashes.json")
    assert all(later.known(path) for path in paths)


def test_a_link_is_relative_so_that_the_volume_can_be_mounted_elsewhere(cache: ModelCache, tmp_path: Path) -> None:
    cache.link(SHA, tmp_path / "volume" / "ComfyUI" / "models", "loras/sub/a.safetensors")
    (tmp_path / "volume").rename(tmp_path / "runpod-volume")
    path = tmp_path / "runpod-volume" / "ComfyUI" / "models" / "loras" / "sub" / "a.safetensors"
    assert path.is_symlink()
    assert path.read_bytes() == DATA


def test_a_link_is_made_where_the_folder_of_models_is_a_link(cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "models").symlink_to(tmp_path / "elsewhere" / "deep")
    cache.link(SHA, tmp_path / "models", "loras/a.safetensors")
    assert (tmp_path / "models" / "loras" / "a.safetensors").read_bytes() == DATA


@pytest.mark.parametrize("target", ["dangling", "other", "loop"])
def test_another_link_is_replaced(cache: ModelCache, tmp_path: Path, target: str) -> None:
    models = tmp_path / "models"
    (models / "loras").mkdir(parents=True)
    path = models / "loras" / "a.safetensors"
    (tmp_path / "other").write_bytes(b"other")
    path.symlink_to({"dangling": "nowhere", "other": str(tmp_path / "other"), "loop": "a.safetensors"}[target])
    cache.link(SHA, models, "loras/a.safetensors")
    assert path.read_bytes() == DATA
    assert (tmp_path / "other").read_bytes() == b"other"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.safetensors"]


def test_a_file_of_the_user_is_not_replaced(cache: ModelCache, tmp_path: Path) -> None:
    path = tmp_path / "models" / "loras" / "a.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(LinkRefused, match="another file has this name; remove or rename it"):
        cache.link(SHA, tmp_path / "models", "loras/a.safetensors")
    assert path.read_bytes() == b"mine"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("depth", ["loras", "loras/sub"])
def test_a_folder_that_leads_outside_is_not_written_to(cache: ModelCache, tmp_path: Path, depth: str) -> None:
    outside, models = tmp_path / "outside", tmp_path / "models"
    outside.mkdir()
    (models / depth).parent.mkdir(parents=True)
    (models / depth).symlink_to(outside)
    with pytest.raises(LinkRefused, match=r"leads outside .*; replace the link by a folder"):
        cache.link(SHA, models, f"{depth}/a.safetensors")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("file", ["models", "models/loras"])
def test_a_folder_that_is_a_file_is_named(cache: ModelCache, tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(LinkRefused, match=rf"{file}' is a file, not a folder; remove or rename it"):
        cache.link(SHA, tmp_path / "models", "loras/a.safetensors")


def test_a_copy_is_made_where_links_are_not_possible(cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("links are not allowed")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(os, "link", refuse)
    cache.link(SHA, tmp_path / "models", "loras/a.safetensors")
    assert (tmp_path / "models" / "loras" / "a.safetensors").read_bytes() == DATA


def test_a_part_belongs_to_one_process_and_is_continued_by_the_next(cache: ModelCache) -> None:
    first = cache.open_part("new")
    assert first is not None
    first.file.write(b"begin")
    assert cache.open_part("new") is None
    assert cache.part_size("new") == 5
    first.close()
    second = cache.open_part("new")
    assert second is not None
    assert second.size == 5
    second.discard()
    assert cache.part_size("new") is None


def test_a_part_of_a_killed_process_is_continued(cache: ModelCache) -> None:
    script = (
        "import sys, time; from pathlib import Path; from yggdrasill.version_specs.cache import Part\n"
        "part = Part.lock(Path(sys.argv[1])); part.file.write(b'half'); print('written', flush=True); time.sleep(60)"
    )
    path = cache.folder / "new.part"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        assert cache.open_part("new") is None
        process.kill()
        process.wait()
    part = cache.open_part("new")
    assert part is not None
    assert part.size == 4
    part.discard()


def test_the_first_to_finish_names_the_file_and_the_second_changes_nothing(cache: ModelCache) -> None:
    data = data_of("new", 100)
    digest = digest_of(data)
    parts = [cache.own_part(digest) for _ in range(2)]
    for part in parts:
        part.file.write(data)
    parts[0].commit(cache, digest)
    before = cache.path(digest).stat()
    parts[1].commit(cache, digest)
    after = cache.path(digest).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted([SHA, digest])
    assert cache.hashes.known(cache.path(digest)) == digest


def test_a_cached_file_is_protected_from_writes(cache: ModelCache) -> None:
    part = cache.own_part("x")
    part.file.write(DATA[:10])
    part.commit(cache, digest_of(DATA[:10]))
    assert cache.path(digest_of(DATA[:10])).stat().st_mode & 0o222 == 0


def test_a_file_system_without_locks_gets_a_part_of_its_own(cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def refuse(path: Path) -> Part | None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(Part, "lock", refuse)
    parts = [cache.open_part("new") for _ in range(2)]
    assert len({part.path for part in parts if part is not None}) == 2
    for part in parts:
        assert part is not None
        part.discard()


def test_old_unfinished_files_are_removed(cache: ModelCache) -> None:
    for name, age in (("old", 90_000), ("new", 60)):
        path = cache.folder / f"{name}.part"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    cache.remove_old_parts()
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted([SHA, "new.part"])


def test_a_damaged_file_of_the_cache_is_found_and_removed(cache: ModelCache) -> None:
    assert cache.check(SHA)
    cache.path(SHA).write_bytes(bytes(len(DATA) - 1))
    assert cache.check(SHA) is False
    cache.remove(SHA)
    assert cache.check(SHA) is None
    shutil.rmtree(cache.root)
    assert cache.check(SHA) is None
