"""Artifacts in memory: views that are held for a call, and bytes that are given away."""

from __future__ import annotations

import pytest
import torch
from blake3 import blake3

from yggdrasill.errors import LimitExceeded, UnknownArtifact
from yggdrasill.values import MemoryStore
from yggdrasill.values.tensors import is_ownable


def held(store: MemoryStore, tensor: torch.Tensor, owner: str = "call") -> str:
    return store.borrow(tensor.numpy().data.cast("B"), owner=owner)


def address(view: memoryview) -> int:
    return torch.frombuffer(view, dtype=torch.uint8).data_ptr()


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_a_held_tensor_is_offered_in_its_own_memory_until_the_call_ends() -> None:
    store, tensor = MemoryStore(quota_bytes=10), torch.rand(1000)
    digest = held(store, tensor)
    assert digest == blake3(tensor.numpy().tobytes()).hexdigest()
    assert address(store.read(digest)) == tensor.data_ptr()
    assert store.read(digest).readonly
    assert store.missing([digest]) == []
    store.unpin("call")
    assert not store.has(digest)


def test_two_calls_hold_the_same_bytes_and_the_last_lets_go() -> None:
    store, tensor = MemoryStore(), torch.rand(1000)
    digest = held(store, tensor, "first")
    held(store, tensor.clone(), "second")
    store.unpin("first")
    assert bytes(store.read(digest)) == tensor.numpy().tobytes()
    store.unpin("second")
    assert not store.has(digest)


def test_what_a_job_pinned_is_a_copy_after_the_call() -> None:
    store, tensor = MemoryStore(), torch.rand(1000)
    before = tensor.numpy().tobytes()
    digest = held(store, tensor)
    store.pin("job", [digest])
    store.unpin("call")
    tensor.zero_()
    assert bytes(store.read(digest)) == before


def test_a_view_above_the_limit_is_not_borrowed() -> None:
    with pytest.raises(LimitExceeded):
        held(MemoryStore(max_artifact_bytes=10), torch.rand(1000))


@pytest.mark.parametrize("promised", [None, 300_000])
def test_bytes_that_came_in_are_given_away_uncopied_for_a_tensor_to_live_in(promised: int | None) -> None:
    store = MemoryStore()
    with store.writer(nbytes=promised) as writer:
        for _ in range(3):
            writer.write(b"x" * 100_000)
        digest = writer.commit()
    place = address(store._kept[digest])
    taken = store.pop(digest)
    assert address(taken) == place
    assert is_ownable(taken)
    assert not store.has(digest)
    with pytest.raises(UnknownArtifact):
        store.pop(digest)


def test_pinned_and_held_bytes_are_not_given_away() -> None:
    store, tensor = MemoryStore(), torch.rand(10)
    kept, lent = store.put(b"abc"), held(store, tensor)
    store.pin("job", [kept])
    assert store.pop(kept).readonly
    assert store.pop(lent).readonly
    assert store.has(kept)
    assert store.has(lent)


def test_stores_have_ids_of_their_own() -> None:
    assert MemoryStore().store_id != MemoryStore().store_id
