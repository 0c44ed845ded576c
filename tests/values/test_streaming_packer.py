"""Dicts that are packed item by item, while other threads may still change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samples.graphs import bits
from yggdrasill.errors import CannotTravel
from yggdrasill.values import DiskStore, MemoryStore, pack, unpack
from yggdrasill.values.stores.base import ArtifactWriter, LocalStore, Writer
from yggdrasill.values.wire import StreamingPacker

WHOLE: dict[str, Any] = {
    "image": torch.arange(60_000.0).reshape(2, 30_000).T,
    "mask": torch.ones(3),
    "$text": "tree",
    "": [1, (2.5, None), {"deep": torch.zeros(9000)}],
}


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LocalStore:
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path)


def opened(packed: Any, store: LocalStore) -> Any:
    return unpack(packed.wire, lambda ref: store.read(ref.hash))


@pytest.mark.parametrize("early", [[], ["image"], ["", "mask"], list(reversed(WHOLE))], ids=str)
def test_the_streamed_dict_equals_the_packed_one(store: LocalStore, early: list[str]) -> None:
    packer = StreamingPacker(store, "job")
    for key in early:
        packer.add(key, WHOLE[key])
    packed = packer.finish(WHOLE)
    assert list(opened(packed, store)) == list(WHOLE)
    assert bits(opened(packed, store)) == bits(WHOLE)
    assert sorted(packed.artifacts) == sorted(pack(WHOLE, store, owner="other").artifacts)


def test_the_artifacts_of_an_item_are_there_when_it_is_added(store: LocalStore) -> None:
    packer = StreamingPacker(store, "job")
    (ref,) = packer.add("image", WHOLE["image"])
    assert store.has(ref.hash)
    assert ref.shape == (30_000, 2)
    assert packer.add("mask", WHOLE["mask"]) == []


def test_an_item_is_what_it_was_when_it_was_added(store: LocalStore) -> None:
    tensor = torch.zeros(9000)
    packer = StreamingPacker(store, "job")
    packer.add("first", tensor)
    tensor += 1
    packer.add("second", tensor)
    tensor += 1
    got = opened(packer.finish({"first": tensor, "second": tensor, "third": tensor}), store)
    assert [float(got[key][0]) for key in ("first", "second", "third")] == [0.0, 1.0, 2.0]


def test_an_item_that_cannot_be_packed_is_reported_by_finish_with_its_location(store: LocalStore) -> None:
    packer = StreamingPacker(store, "job")
    whole = {"good": torch.zeros(9000), "bad": [object()]}
    for key, value in whole.items():
        packer.add(key, value)
    with pytest.raises(CannotTravel, match=r'value\["bad"\]\[0\]'):
        packer.finish(whole)


def test_keys_that_json_cannot_represent_are_kept(store: LocalStore) -> None:
    whole = {"\ud800": torch.zeros(9000), "plain": 1}
    packer = StreamingPacker(store, "job")
    packer.add("\ud800", whole["\ud800"])
    assert bits(opened(packer.finish(whole), store)) == bits(whole)


def test_a_closed_packer_accepts_no_items(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    packer = StreamingPacker(store, "job")
    packer.close()
    store.release("job")
    assert packer.add("image", WHOLE["image"]) == []
    assert not list((tmp_path / "objects").rglob("*"))


class _Disturbed(DiskStore):
    """A store that changes ``tensor`` after it is hashed and before it is written."""

    tensor: torch.Tensor

    def writer(self, expected: str | None = None, nbytes: int | None = None, writer: Writer | None = None) -> ArtifactWriter:
        self.tensor[-1] += 1
        return super().writer(expected, nbytes, writer)


def test_bytes_that_change_while_they_are_stored_never_get_a_wrong_hash(tmp_path: Path) -> None:
    store = _Disturbed(tmp_path)
    store.tensor = torch.zeros(9000)
    packer = StreamingPacker(store, "job")
    assert packer.add("x", store.tensor) == []
    packed = packer.finish({"x": store.tensor})
    assert bits(opened(packed, store)) == bits({"x": store.tensor})
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.parent.parent == tmp_path / "objects"]
    assert [path.name for path in files] == packed.artifacts
    assert not list((tmp_path / "incoming").iterdir())
