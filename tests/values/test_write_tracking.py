"""Digests of memory that was not written to: every kind of write is noticed, and what cannot be tracked is hashed."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yggdrasill.errors import CorruptData
from yggdrasill.values import write_tracking
from yggdrasill.values.payload import blake3_hex
from yggdrasill.values.stores.base import put_mutable
from yggdrasill.values.stores.memory import MemoryStore
from yggdrasill.values.stores.shared import SharedFolderStore
from yggdrasill.values.tensors import encode_tensor
from yggdrasill.values.wire import pack
from yggdrasill.values.write_tracking import TRACKED_FROM, Tracker, known_digest, tracked_digest

NBYTES = TRACKED_FROM + 10_000


def _available() -> bool:
    try:
        Tracker().close()
    except OSError:
        return False
    return True


tracked = pytest.mark.skipif(not _available(), reason="this kernel does not track writes")


@pytest.fixture
def tracker() -> Tracker:
    """Return the tracker of this process: memory cannot be registered with two."""
    found = write_tracking._tracker()
    assert found is not None
    return found


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of what is hashed in the test."""
    sizes: list[int] = []

    def hash_parts(parts: list[memoryview], hashed: Callable[..., str] = write_tracking._hash_parts) -> str:
        sizes.append(sum(part.nbytes for part in parts))
        return hashed(parts)

    monkeypatch.setattr(write_tracking, "_hash_parts", hash_parts)
    return sizes


def random_tensor(nbytes: int = NBYTES) -> torch.Tensor:
    return torch.randint(256, (nbytes,), dtype=torch.uint8)


def data_of(tensor: torch.Tensor) -> memoryview:
    return encode_tensor(tensor, "value").data


@tracked
def test_memory_without_a_write_is_hashed_once(hashes: list[int]) -> None:
    tensor = random_tensor()
    digests = {tracked_digest(data_of(tensor)) for _ in range(3)}
    assert digests == {blake3_hex(data_of(tensor))}
    assert hashes == [NBYTES]
    float(tensor.sum())
    assert known_digest(data_of(tensor)) in digests


WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "torch in place": lambda tensor: tensor.__setitem__(NBYTES // 2, tensor[NBYTES // 2] ^ 1),
    "numpy": lambda tensor: tensor.numpy().__setitem__(NBYTES // 2, tensor.numpy()[NBYTES // 2] ^ 1),
    "a view from before": lambda tensor: tensor[5000:9000:3].mul_(3).add_(1),
    "the first byte": lambda tensor: tensor[:1].bitwise_xor_(1),
    "the last byte": lambda tensor: tensor[-1:].bitwise_xor_(1),
    "the detached data": lambda tensor: tensor.data.detach()[70_000:70_001].bitwise_xor_(1),
    "a read from a file": lambda tensor: os.preadv(_ones(), [tensor.numpy()[8192:12288].data], 0),
    "a memoryview": lambda tensor: tensor.numpy().data.__setitem__(123_456, int(tensor[123_456]) ^ 1),
}


def _ones() -> int:
    handle = os.memfd_create("ones")
    os.write(handle, b"\x01" * 4096)
    return handle


@tracked
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_every_kind_of_write_is_noticed(write: Callable[[torch.Tensor], object]) -> None:
    tensor = random_tensor()
    before = tracked_digest(data_of(tensor))
    version = tensor._version
    write(tensor)
    assert known_digest(data_of(tensor)) is None, f"the version of the tensor was {version} and is {tensor._version}"
    assert tracked_digest(data_of(tensor)) == blake3_hex(data_of(tensor)) != before


Act = tuple[str, int, int]
ACTS = st.lists(
    st.tuples(st.sampled_from(["write", "hash", "known", "slice", "record"]), st.integers(0, NBYTES - 1), st.integers(0, 3 << 20))
)


@tracked
@settings(max_examples=60, deadline=None)
@given(ACTS)
def test_a_known_digest_is_always_that_of_the_bytes(acts: list[Act]) -> None:
    tracker = write_tracking._tracker()
    assert tracker is not None
    memory = np.random.default_rng(len(acts)).integers(0, 256, 3 * NBYTES, np.uint8)
    whole = memory.data
    for act, at, more in acts:
        part = whole[at : at + TRACKED_FROM + more]
        if act == "write":
            memory[at] ^= 1
        elif act == "hash":
            assert tracker.digest(whole) == blake3_hex(whole)
        elif act == "slice":
            assert tracker.digest(part) == blake3_hex(part)
        elif act == "record":
            tracker.record(part, blake3_hex(part))
        else:
            assert tracker.known(part) in (None, blake3_hex(part))
        assert tracker.known(whole) in (None, blake3_hex(whole))


@tracked
def test_a_record_ends_when_overlapping_memory_is_protected_again(tracker: Tracker) -> None:
    tensor = random_tensor(3 * NBYTES)
    whole = data_of(tensor)
    tracker.digest(whole)
    tensor[NBYTES] += 1
    tracker.digest(whole[NBYTES - 5000 :])
    assert tracker.known(whole) is None


@tracked
def test_a_hash_that_began_before_memory_was_protected_again_is_not_recorded(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_tensor()
    data = data_of(tensor)
    hash_parts = write_tracking._hash_parts

    def disturbed(parts: list[memoryview]) -> str:
        digest = hash_parts(parts)
        monkeypatch.setattr(write_tracking, "_hash_parts", hash_parts)
        tensor[NBYTES // 2] += 1
        tracker.digest(data)
        return digest

    monkeypatch.setattr(write_tracking, "_hash_parts", disturbed)
    stale = tracker.digest(data)
    assert stale != blake3_hex(data)
    assert tracker.known(data) in (None, blake3_hex(data))


@tracked
def test_a_write_during_the_hash_is_noticed(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_tensor()
    hash_parts = write_tracking._hash_parts

    def disturbed(parts: list[memoryview]) -> str:
        digest = hash_parts(parts)
        tensor[NBYTES // 2] += 1
        return digest

    monkeypatch.setattr(write_tracking, "_hash_parts", disturbed)
    tracker.digest(data_of(tensor))
    assert tracker.known(data_of(tensor)) is None


@tracked
def test_memory_at_the_address_of_freed_memory_is_hashed(tracker: Tracker) -> None:
    for fill in range(4):
        memory = mmap.mmap(-1, NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[:] = bytes([fill]) * NBYTES
        data = memoryview(memory)
        assert tracker.digest(data) == blake3_hex(data)
        data.release()
        memory.close()


@tracked
@pytest.mark.parametrize("shared", [False, True])
def test_memory_of_files_and_shared_memory_is_not_tracked(tracker: Tracker, tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(NBYTES))
    tensor = torch.from_file(str(path), shared=shared, size=NBYTES, dtype=torch.uint8)
    assert tracker.digest(data_of(tensor)) == blake3_hex(data_of(tensor))
    assert tracker.known(data_of(tensor)) is None
    handed_over = random_tensor()
    handed_over.share_memory_()  # type: ignore[no-untyped-call]
    tracker.digest(data_of(handed_over))
    assert tracker.known(data_of(handed_over)) is None


@tracked
def test_a_forked_process_does_not_use_the_records_of_its_parent() -> None:
    code = f"""
import os, torch
from yggdrasill.values.write_tracking import known_digest, record, tracked_digest
tensor = torch.zeros({NBYTES}, dtype=torch.uint8) + 1
data = tensor.numpy().data
digest = tracked_digest(data)
child = os.fork()
if not child:
    states = [known_digest(data)]
    record(data, digest)
    states.append(known_digest(data))
    tensor.numpy()[7_000] = 9
    os._exit(0 if [*states, known_digest(data)] == [None, digest, None] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert known_digest(data) == digest
tensor[7_000] = 9
assert known_digest(data) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@tracked
def test_old_records_are_dropped_and_their_memory_is_hashed_again(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_tracking, "_MAX_RECORDS", 2)
    tensors = [random_tensor() for _ in range(3)]
    for tensor in tensors:
        tracker.digest(data_of(tensor))
    assert [tracker.known(data_of(tensor)) is None for tensor in tensors] == [True, False, False]
    tensors[0][9000] += 1
    assert tracker.digest(data_of(tensors[0])) == blake3_hex(data_of(tensors[0]))


@tracked
def test_memory_that_a_device_may_write_to_is_hashed_every_time(hashes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_tensor()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)
    for value in (tensor, tensor.numpy()):
        with pack(value, MemoryStore()) as packed:
            assert packed.artifacts == [blake3_hex(data_of(tensor))]
    assert hashes == []
    assert known_digest(data_of(tensor)) is None


def test_without_support_every_digest_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(write_tracking, "_tracker", lambda: None)
    tensor = random_tensor()
    digest = tracked_digest(data_of(tensor))
    assert digest == blake3_hex(data_of(tensor))
    assert known_digest(data_of(tensor)) is None
    store = SharedFolderStore(tmp_path)
    put_mutable(store, digest, data_of(tensor))
    assert store.read(digest) == data_of(tensor)


def test_unchanged_memory_is_stored_without_a_second_hash(tmp_path: Path) -> None:
    tensor = random_tensor()
    store = SharedFolderStore(tmp_path)
    digest = tracked_digest(data_of(tensor))
    put_mutable(store, digest, data_of(tensor))
    assert store.read(digest) == data_of(tensor)
    assert SharedFolderStore(tmp_path).read(digest) == data_of(tensor)


class _Disturbed(SharedFolderStore):
    """A store in which ``tensor`` is written to while it is stored."""

    tensor: torch.Tensor

    def _charge(self, nbytes: int) -> int:
        self.tensor[-NBYTES // 2] += 1
        return super()._charge(nbytes)


@pytest.mark.parametrize("where", ["before", "during"])
def test_memory_that_changed_since_it_was_hashed_is_never_stored_under_its_hash(tmp_path: Path, where: str) -> None:
    tensor = random_tensor()
    store = _Disturbed(tmp_path) if where == "during" else SharedFolderStore(tmp_path)
    if isinstance(store, _Disturbed):
        store.tensor = tensor
    digest = tracked_digest(data_of(tensor))
    if where == "before":
        tensor[NBYTES // 2] += 1
    with pytest.raises(CorruptData):
        put_mutable(store, digest, data_of(tensor))
    assert store.missing([digest]) == [digest]
    assert not [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert not list((tmp_path / "incoming").iterdir())
