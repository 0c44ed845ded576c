"""`MemoryStore`: views that are borrowed for a call, and bytes that are popped."""

from __future__ import annotations

import pytest
import torch
from blake3 import blake3

from yggdrasill.errors import LimitExceeded, UnknownArtifact
from yggdrasill.values import MemoryStore
from yggdrasill.values.tensors import is_ownable


def borrowed(store: MemoryStore, tensor: torch.Tensor, owner: str = "call") -> str:
    return store.borrow(tensor.numpy().data.cast("B"), owner=owner)


def address(view: memoryview) -> int:
    return torch.frombuffer(view, dtype=torch.uint8).data_ptr()


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_a_borrowed_tensor_is_served_from_its_own_memory_until_the_call_ends() -> None:
    store, tensor = MemoryStore(quota_bytes=10), torch.rand(1000)
    digest = borrowed(store, tensor)
    assert digest == blake3(tensor.numpy().tobytes()).hexdigest()
    assert address(store.read(digest)) == tensor.data_ptr()
    assert store.read(digest).readonly
    assert store.missing([digest]) == []
    store.release("call")
    assert not store.has(digest)


def test_bytes_borrowed_by_two_calls_stay_until_the_last_is_unpinned() -> None:
    store, tensor = MemoryStore(), torch.rand(1000)
    digest = borrowed(store, tensor, "first")
    borrowed(store, tensor.clone(), "second")
    store.release("first")
    assert bytes(store.read(digest)) == tensor.numpy().tobytes()
    store.release("second")
    assert not store.has(digest)


def test_what_a_job_pinned_is_a_copy_after_the_call() -> None:
    store, tensor = MemoryStore(), torch.rand(1000)
    before = tensor.numpy().tobytes()
    digest = borrowed(store, tensor)
    store.lease("job", [digest])
    store.release("call")
    tensor.zero_()
    assert bytes(store.read(digest)) == before


def test_a_copy_made_for_a_pin_is_removed_with_the_last_pin() -> None:
    store, tensor = MemoryStore(), torch.rand(1000)
    digest = borrowed(store, tensor)
    store.lease("job", [digest])
    store.lease("other job", [digest])
    store.release("call")
    store.release("job")
    assert store.has(digest)
    store.release("other job")
    assert not store.has(digest)


def test_a_copy_made_for_a_pin_that_is_stored_too_stays() -> None:
    store, tensor = MemoryStore(), torch.rand(1000)
    digest = borrowed(store, tensor)
    store.lease("job", [digest])
    store.release("call")
    assert store.put(tensor.numpy().tobytes()) == digest
    store.release("job")
    assert store.has(digest)


def test_a_view_above_the_limit_is_not_borrowed() -> None:
    with pytest.raises(LimitExceeded):
        borrowed(MemoryStore(max_artifact_bytes=10), torch.rand(1000))


@pytest.mark.parametrize("promised", [None, 300_000])
def test_popped_bytes_are_not_copied_and_can_be_a_tensors_memory(promised: int | None) -> None:
    store = MemoryStore()
    with store.writer(nbytes=promised) as writer:
        for _ in range(3):
            writer.write(b"x" * 100_000)
        digest = writer.commit()
    place = address(store._kept[digest])
    popped = store.pop(digest)
    assert address(popped) == place
    assert is_ownable(popped)
    assert not store.has(digest)
    with pytest.raises(UnknownArtifact):
        store.pop(digest)


def test_pinned_and_borrowed_bytes_are_not_popped() -> None:
    store, tensor = MemoryStore(), torch.rand(10)
    kept, borrowed_hash = store.put(b"abc"), borrowed(store, tensor)
    store.lease("job", [kept])
    assert store.pop(kept).readonly
    assert store.pop(borrowed_hash).readonly
    assert store.has(kept)
    assert store.has(borrowed_hash)


def test_each_store_has_a_different_id() -> None:
    assert MemoryStore().store_id != MemoryStore().store_id
