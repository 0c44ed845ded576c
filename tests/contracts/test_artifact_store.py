"""The contract of every artifact store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, StorageFailed, UnknownArtifact
from yggdrasill.values import ArtifactStore, DiskStore, MemoryStore, pack, unpack
from yggdrasill.values.stores.base import put_mutable

Make = Callable[..., ArtifactStore]
SMALL, LARGE = b"Yggdrasill", bytes(range(256)) * 5000


def name_of(data: bytes) -> str:
    return blake3(data).hexdigest()


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "memory":
        return MemoryStore
    return lambda **options: DiskStore(tmp_path / "artifacts", **options)


@pytest.fixture
def store(make: Make) -> ArtifactStore:
    return make()


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_bytes_are_returned_by_their_blake3_hash(store: ArtifactStore, data: bytes) -> None:
    digest = store.put(data)
    assert digest == name_of(data)
    assert store.has(digest)
    assert store.nbytes(digest) == len(data)
    assert bytes(store.read(digest)) == data
    path = store.path(digest)
    assert path is None or path.read_bytes() == data


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_writer_takes_bytes_in_chunks(store: ArtifactStore, data: bytes) -> None:
    with store.writer(name_of(data), len(data)) as writer:
        for start in range(0, len(data), 70_000):
            writer.write(memoryview(data)[start : start + 70_000])
        assert not store.has(name_of(data))
        assert writer.commit() == name_of(data)
    assert bytes(store.read(name_of(data))) == data


def test_a_writer_without_an_expected_hash_computes_it(store: ArtifactStore) -> None:
    with store.writer() as writer:
        for start in range(0, len(LARGE), 100_000):
            writer.write(LARGE[start : start + 100_000])
        assert writer.nbytes == len(LARGE)
        assert bytes(store.read(writer.commit())) == LARGE


@pytest.mark.parametrize("start, stop", [(0, None), (3, None), (0, 7), (100, 300_001), (5, 5), (9, 2), (0, 10**9)])
def test_chunks_are_any_part_of_the_bytes(store: ArtifactStore, start: int, stop: int | None) -> None:
    chunks = list(store.chunks(store.put(LARGE), start, stop, 65_536))
    assert b"".join(chunks) == LARGE[start:stop]
    assert all(0 < chunk.nbytes <= 65_536 for chunk in chunks)


def test_missing_returns_absent_hashes_once_and_in_order(store: ArtifactStore) -> None:
    other, third = name_of(b"other"), name_of(b"third")
    assert store.missing([third, store.put(SMALL), other, third]) == [third, other]


def test_equal_bytes_are_stored_once(make: Make) -> None:
    store = make(quota_bytes=len(LARGE) + 10)
    store.pin("job", [store.put(LARGE)])
    assert store.put(LARGE) == name_of(LARGE)
    with store.writer(name_of(LARGE), len(LARGE)) as writer:
        writer.write(LARGE)
        writer.commit()
    assert bytes(store.read(name_of(LARGE))) == LARGE


@pytest.mark.parametrize("act", ["nbytes", "read", "chunks", "path"])
def test_a_missing_hash_is_an_unknown_artifact(store: ArtifactStore, act: str) -> None:
    with pytest.raises(UnknownArtifact, match=name_of(SMALL)) as caught:
        getattr(store, act)(name_of(SMALL))
    assert caught.value.details["missing"] == [name_of(SMALL)]
    assert not store.has(name_of(SMALL))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_a_text_that_is_not_a_hash_is_refused(store: ArtifactStore, name: str) -> None:
    for act in (store.has, store.nbytes, store.read, store.chunks, store.path, store.writer):
        with pytest.raises(InvalidArgument, match="Invalid artifact hash"):
            act(name)
    for many in (store.missing, lambda names: store.pin("job", names)):
        with pytest.raises(InvalidArgument, match="Invalid artifact hash"):
            many([name])


def test_bytes_with_a_different_hash_are_corrupt_and_not_stored(store: ArtifactStore) -> None:
    with pytest.raises(CorruptData, match=name_of(LARGE)):
        store.put(SMALL, hash=name_of(LARGE))
    writer = store.writer(name_of(LARGE))
    writer.write(SMALL)
    with pytest.raises(CorruptData, match="cut short or altered"):
        writer.commit()
    assert not store.has(name_of(LARGE))
    assert not store.has(name_of(SMALL))


def test_fewer_and_more_bytes_than_expected_are_corrupt(store: ArtifactStore) -> None:
    writer = store.writer(nbytes=len(SMALL) + 1)
    writer.write(SMALL)
    with pytest.raises(CorruptData, match=f"after {len(SMALL)} of {len(SMALL) + 1} bytes"):
        writer.commit()
    writer = store.writer(nbytes=len(SMALL) - 1)
    with pytest.raises(CorruptData, match="more than"):
        writer.write(SMALL)
    assert not store.has(name_of(SMALL))


def test_put_mutable_stores_changing_bytes_under_their_own_hash_or_not_at_all(store: ArtifactStore) -> None:
    data = bytearray(LARGE)
    put_mutable(store, name_of(LARGE), memoryview(data))
    assert bytes(store.read(name_of(LARGE))) == LARGE
    data[-1] ^= 1
    with pytest.raises(CorruptData, match="altered"):
        put_mutable(store, "0" * 64, memoryview(data))
    assert store.missing(["0" * 64, name_of(bytes(data))]) == ["0" * 64, name_of(bytes(data))]


def test_a_writer_left_without_commit_keeps_nothing_and_is_closed(store: ArtifactStore) -> None:
    with store.writer() as writer:
        writer.write(SMALL)
    assert not store.has(name_of(SMALL))
    with pytest.raises(InvalidArgument, match="closed"):
        writer.write(SMALL)
    with pytest.raises(InvalidArgument, match="closed"):
        writer.commit()


def test_an_artifact_above_the_limit_is_refused_before_it_is_stored(make: Make) -> None:
    store = make(max_artifact_bytes=len(SMALL))
    store.put(SMALL)
    with pytest.raises(LimitExceeded, match="max_artifact_bytes"):
        store.put(SMALL + b"!")
    with pytest.raises(LimitExceeded, match="max_artifact_bytes"):
        store.writer(nbytes=len(SMALL) + 1)
    writer = store.writer()
    writer.write(SMALL)
    with pytest.raises(LimitExceeded, match="max_artifact_bytes"):
        writer.write(b"!")


def four(store: ArtifactStore) -> list[str]:
    return [store.put(bytes([number]) * 1000) for number in range(4)]


@pytest.mark.parametrize("how", ["put", "writer"])
def test_the_least_recently_used_is_evicted(make: Make, how: str) -> None:
    store = make(quota_bytes=4000)
    hashes = four(store)
    store.read(hashes[0])
    list(store.chunks(hashes[1]))
    assert store.missing([hashes[2]]) == []
    if how == "put":
        store.put(b"x" * 1000)
    else:
        with store.writer(nbytes=1000) as writer:
            writer.write(b"x" * 1000)
            writer.commit()
    assert [store.has(digest) for digest in hashes] == [True, True, True, False]
    store.put(b"y" * 2000)
    assert [store.has(digest) for digest in hashes] == [False, False, True, False]


def test_what_is_pinned_is_not_evicted_until_its_last_owner_lets_go(make: Make) -> None:
    store = make(quota_bytes=4000)
    hashes = four(store)
    store.pin("job", hashes[:2])
    store.pin("job", hashes[:2])
    store.pin("call", hashes[:1])
    store.put(b"x" * 2000)
    assert [store.has(digest) for digest in hashes] == [True, True, False, False]
    store.unpin("job")
    store.unpin("unknown")
    store.put(b"y" * 3000)
    assert [store.has(digest) for digest in hashes] == [True, False, False, False]
    store.unpin("call")
    store.put(b"z" * 4000)
    assert not store.has(hashes[0])


def test_a_pin_may_precede_the_artifact(make: Make) -> None:
    store = make(quota_bytes=3000)
    store.pin("job", [name_of(b"x" * 2000)])
    store.put(b"x" * 2000)
    store.put(b"y" * 1000)
    store.put(b"z" * 1000)
    assert store.has(name_of(b"x" * 2000))
    assert not store.has(name_of(b"y" * 1000))


def test_a_quota_full_of_pins_is_named(make: Make) -> None:
    store = make(quota_bytes=4000)
    store.pin("job", four(store)[:3])
    for act in (lambda: store.put(b"x" * 2000), lambda: store.writer(nbytes=2000)):
        with pytest.raises(StorageFailed, match="quota is 4000 bytes, and 3 artifacts of 3000 bytes are pinned"):
            act()
    writer = store.writer()
    writer.write(b"x" * 2000)
    with pytest.raises(StorageFailed, match="quota"):
        writer.commit()
    assert not store.has(name_of(b"x" * 2000))


def test_writing_to_a_tensor_from_the_store_does_not_alter_the_store(store: ArtifactStore) -> None:
    value = torch.arange(300_000, dtype=torch.float32).view(600, 500).t()
    with pack(value, store) as packed:
        first = unpack(packed.wire, lambda ref: store.read(ref.hash))
        first.add_(1)
        second = unpack(packed.wire, lambda ref: store.read(ref.hash))
    assert torch.equal(first, value + 1)
    assert torch.equal(second, value)
    assert second.stride() == value.stride()


def test_threads_share_a_store(make: Make) -> None:
    store = make(quota_bytes=200_000)

    def work(number: int) -> None:
        for turn in range(25):
            data = bytes([turn, number % 2]) * 5000
            store.pin(f"job {number}", [name_of(data)])
            with store.writer(name_of(data), len(data)) as writer:
                writer.write(data)
                writer.commit()
            assert bytes(store.read(name_of(data))) == data
            store.unpin(f"job {number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
