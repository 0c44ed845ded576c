"""Values in files: written completely or not at all, and mapped without risk to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samples.values import same
from yggdrasill.errors import CannotTravel, CorruptData, MissingFile, StorageFailed
from yggdrasill.values import dump, dumps, load

VALUE = {"map": torch.rand(3, 4).t(), "array": np.arange(5), "name": "Ymir", "blob": bytes(900)}


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_gives_the_value_back(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "value.bin"
    dump(VALUE, path)
    assert same(VALUE, load(path, mmap=mmap))
    assert path.read_bytes() == dumps(VALUE)


def test_a_mapped_tensor_is_the_file_until_it_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "value.bin"
    dump(VALUE, path)
    before = path.read_bytes()
    value = load(path)
    value["map"].zero_()
    value["array"][:] = 7
    assert value["map"].sum() == 0
    assert path.read_bytes() == before
    assert same(VALUE, load(path))


def test_a_mapped_tensor_survives_the_replacement_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "value.bin"
    dump(VALUE, path)
    value = load(path)
    dump({"other": torch.zeros(3)}, path)
    assert same(VALUE, value)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("length", [0, 10, 64, 300, -1])
def test_a_truncated_file_is_corrupt(tmp_path: Path, mmap: bool, length: int) -> None:
    path = tmp_path / "value.bin"
    path.write_bytes(dumps(VALUE)[:length])
    with pytest.raises(CorruptData):
        load(path, mmap=mmap)


def test_an_altered_payload_in_a_mapped_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "value.bin"
    data = bytearray(dumps(VALUE))
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptData, match="checksum"):
        load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="nowhere"):
        load(tmp_path / "nowhere.bin")
    with pytest.raises(StorageFailed, match=tmp_path.name):
        load(tmp_path)


def test_a_value_that_cannot_travel_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "value.bin"
    dump([1], path)
    with pytest.raises(CannotTravel):
        dump([object()], path)
    assert load(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    resource: Any = pytest.importorskip("resource")
    path = tmp_path / "value.bin"
    dump([1], path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageFailed):
            dump(torch.zeros(100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load(path) == [1]
    assert list(tmp_path.iterdir()) == [path]
