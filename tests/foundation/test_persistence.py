"""Folders and archives, and saving onto a disk that is full."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samples.blocks import Accumulate
from samples.graphs import bits, graph_of, sample_registry
from yggdrasill.errors import InvalidCheckpoint, InvalidConfig, MissingFile, StorageFailed
from yggdrasill.foundation import Graph
from yggdrasill.foundation.checkpoints import state_digest

ARCHIVES = ["save.zip", "save.tar", "save.tar.gz", "save.tgz"]


def graph(offset: int = 5) -> Graph:
    return graph_of(
        {"a": ("add", {"offset": offset}), "l": ("linear", {"seed": 2})}, [], ["a.a = a", "a.b = b", "l.x = x"], ["a.out = out", "l.y = y"]
    )


def load(path: Path) -> Graph:
    return Graph.load(path, registry=sample_registry())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_save_is_config_and_checkpoint(tmp_path: Path) -> None:
    source = graph()
    source.save(tmp_path / "deep" / "save")
    weights = state_digest(source.get_node("l").block.state_dict())
    assert sorted(tree(tmp_path)) == [
        "deep/save/checkpoint.json",
        f"deep/save/checkpoints/blobs/{weights}.safetensors",
        "deep/save/config.json",
    ]


@pytest.mark.parametrize("backend", ["json", "safetensors"])
@pytest.mark.parametrize("name", ["save", *ARCHIVES])
def test_a_save_comes_back(tmp_path: Path, name: str, backend: str) -> None:
    source = graph()
    source.load_state_dict({"a": {"offset": 9}}, strict=False)
    source.save(tmp_path / name, format="dir" if name == "save" else "archive", backend=backend)
    loaded = load(tmp_path / name)
    assert loaded.to_config() == source.to_config()
    inputs = {"a": 1, "b": 2, "x": torch.ones(3)}
    assert bits(loaded.run(inputs)) == bits(source.run(inputs))


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_of_the_same_graph_has_the_same_bytes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph().save(tmp_path / name, format="archive")
    first = (tmp_path / name).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    graph().save(tmp_path / name, format="archive")
    assert (tmp_path / name).read_bytes() == first


def test_a_save_without_a_checkpoint_is_loaded_as_built(tmp_path: Path) -> None:
    graph().save(tmp_path / "save")
    (tmp_path / "save" / "checkpoint.json").unlink()
    assert load(tmp_path / "save").state_dict()["a"] == {"offset": 5}


def test_a_place_without_a_save_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no save at"):
        load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json or config.yaml"):
        load(tmp_path)


def test_an_unknown_format_or_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it can be 'dir' or 'archive'"):
        graph().save(tmp_path / "x", format="zip")
    with pytest.raises(ValueError, match=r"an archive's name ends in .zip, .tar or .tar.gz"):
        graph().save(tmp_path / "x.rar", format="archive")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_yaml_would_be_read_first_is_refused(tmp_path: Path) -> None:
    graph().save_config(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"config.yaml' would be loaded before config.json; remove it or choose another folder"):
        load(tmp_path).save(tmp_path)
    assert sorted(tree(tmp_path)) == ["config.yaml"]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.7, -1])
def test_an_archive_cut_short_is_one_clear_error(tmp_path: Path, name: str, keep: float) -> None:
    graph().save(tmp_path / name, format="archive")
    data = (tmp_path / name).read_bytes()
    # A tar ends in empty blocks, so that only a cut into its files is noticed.
    length = len(data.rstrip(b"\0")) if name == "save.tar" else len(data)
    (tmp_path / name).write_bytes(data[: int(keep * length) if 0 < keep < 1 else int(keep) % length if keep >= 0 else length - 40])
    with pytest.raises((InvalidCheckpoint, InvalidConfig, MissingFile), match=name):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["save.zip", "save.tar.gz"])
def test_an_archive_altered_inside_is_one_clear_error(tmp_path: Path, name: str) -> None:
    graph().save(tmp_path / name, format="archive")
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises((InvalidCheckpoint, InvalidConfig), match=name):
        load(tmp_path / name)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "save.zip").write_text("nothing", encoding="utf-8")
    with pytest.raises(InvalidCheckpoint, match="is not a readable archive"):
        load(tmp_path / "save.zip")


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    graph().save(tmp_path / "save.zip", format="archive")
    with zipfile.ZipFile(tmp_path / "save.zip", "a") as archive:
        archive.writestr("../outside.json", "{}")
    assert load(tmp_path / "save.zip").node_ids == ["a", "l"]
    assert [path.name for path in tmp_path.iterdir()] == ["save.zip"]


def test_a_save_with_broken_files_names_the_file(tmp_path: Path) -> None:
    graph().save(tmp_path)
    (tmp_path / "checkpoint.json").write_text("{", encoding="utf-8")
    with pytest.raises(InvalidCheckpoint, match=r"checkpoint.json': not a json checkpoint"):
        load(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff")
    with pytest.raises(InvalidConfig, match=r"config.json' is not UTF-8 text"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"graph_id": 3}', encoding="utf-8")
    with pytest.raises(InvalidConfig, match=r"graph_id: Input should be a valid string"):
        load(tmp_path)


def test_weights_of_another_graph_in_the_folder_are_refused(tmp_path: Path) -> None:
    graph().save(tmp_path)
    graph_of({"z": "add"}).save_checkpoint(tmp_path / "checkpoint.json")
    with pytest.raises(KeyError, match="has no node 'z'"):
        load(tmp_path)


# -- a full disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux: the full disk is NOT tested here")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this machine cannot mount a small file system, the full disk is NOT tested here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def big_graph(fill: float) -> Graph:
    """A graph whose state, 400 kB of it, is larger than the small disk."""
    heavy = Graph()
    heavy.add_node(Accumulate(), node_id="a", pretrained={"total": torch.full((50, 1000), fill, dtype=torch.float64)})
    heavy.add_node(Accumulate(), node_id="b", pretrained={"total": 1})
    return heavy


SAVES: dict[str, Callable[[Graph, Path], Any]] = {
    "folder": lambda graph, path: graph.save(path / "save"),
    "folder, safetensors": lambda graph, path: graph.save(path / "save", backend="safetensors"),
    "archive": lambda graph, path: graph.save(path / "save.zip", format="archive"),
    "tar": lambda graph, path: graph.save(path / "save.tar", format="archive", backend="safetensors"),
    "checkpoint": lambda graph, path: graph.save_checkpoint(path / "save.json"),
    "checkpoint per node": lambda graph, path: graph.save_checkpoint(path / "save", format="dir"),
}


@pytest.mark.parametrize("way", SAVES)
@pytest.mark.parametrize("again", [False, True], ids=["the first time", "over an older save"])
def test_a_full_disk_leaves_what_was_there_and_nothing_beside_it(small_disk: Path, way: str, again: bool) -> None:
    if again:
        small = graph_of({"a": "accumulate", "b": "accumulate"})
        SAVES[way](small, small_disk)
    before = tree(small_disk)
    assert bool(before) is again
    with pytest.raises(StorageFailed, match="No space left on device; what was there before is unchanged"):
        SAVES[way](big_graph(0.1), small_disk)
    assert tree(small_disk) == before
    assert again or list(small_disk.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    calls: list[Callable[[], None]] = [
        lambda: graph().save(tmp_path / "file" / "save"),
        lambda: graph().save_checkpoint(tmp_path / "file" / "w.json"),
        lambda: graph().save_config(tmp_path / "file" / "g.yaml"),
    ]
    for call in calls:
        with pytest.raises(StorageFailed, match="cannot write"):
            call()
    assert tree(tmp_path) == {"file": b"x"}
