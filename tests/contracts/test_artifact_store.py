"""The contract of every artifact store, in the local protocol and in the asynchronous one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from yggdrasill.errors import CorruptData, InvalidArgument, LimitExceeded, StorageFailed, UnknownArtifact
from yggdrasill.values import EmbeddedStore, LocalStore, MemoryStore, SharedFolderStore, Writer, pack, unpack
from yggdrasill.values.stores import BlockingStore, ThreadedStore
from yggdrasill.values.stores.base import put_mutable, writing_as

Make = Callable[..., LocalStore]
SMALL, LARGE = b"Yggdrasill", bytes(range(256)) * 5000


def name_of(data: bytes) -> str:
    return blake3(data).hexdigest()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["memory", "embedded", "shared", "blocking"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A function that makes a store of each kind; ``blocking`` adapts the local protocol to the asynchronous one and back."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "blocking":
        loop = request.getfixturevalue("loop")
        return lambda **options: BlockingStore(
            ThreadedStore(MemoryStore(**options)), loop, max_artifact_bytes=options.get("max_artifact_bytes", 1 << 40)
        )
    kind = EmbeddedStore if request.param == "embedded" else SharedFolderStore
    return lambda **options: kind(tmp_path / "artifacts", **options)


@pytest.fixture
def store(make: Make) -> LocalStore:
    return make()


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_bytes_are_returned_by_their_blake3_hash(store: LocalStore, data: bytes) -> None:
    digest = store.put(data)
    assert digest == name_of(data)
    assert store.has(digest)
    assert store.nbytes(digest) == len(data)
    assert bytes(store.read(digest)) == data
    path = store.path(digest)
    assert path is None or path.read_bytes() == data


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_writer_takes_bytes_in_chunks(store: LocalStore, data: bytes) -> None:
    with store.writer(name_of(data), len(data)) as writer:
        for start in range(0, len(data), 70_000):
            writer.write(memoryview(data)[start : start + 70_000])
        assert not store.has(name_of(data))
        assert writer.commit() == name_of(data)
    assert bytes(store.read(name_of(data))) == data


def test_a_writer_without_an_expected_hash_computes_it(store: LocalStore) -> None:
    with store.writer() as writer:
        for start in range(0, len(LARGE), 100_000):
            writer.write(LARGE[start : start + 100_000])
        assert writer.nbytes == len(LARGE)
        assert bytes(store.read(writer.commit())) == LARGE


@pytest.mark.parametrize("start, stop", [(0, None), (3, None), (0, 7), (100, 300_001), (5, 5), (9, 2), (0, 10**9)])
def test_chunks_are_any_part_of_the_bytes(store: LocalStore, start: int, stop: int | None) -> None:
    chunks = list(store.chunks(store.put(LARGE), start, stop, 65_536))
    assert b"".join(chunks) == LARGE[start:stop]
    assert all(0 < chunk.nbytes <= 65_536 for chunk in chunks)


def test_missing_returns_absent_hashes_once_and_in_order(store: LocalStore) -> None:
    other, third = name_of(b"other"), name_of(b"third")
    assert store.missing([third, store.put(SMALL), other, third]) == [third, other]


def test_equal_bytes_are_stored_once(make: Make) -> None:
    store = make(quota_bytes=len(LARGE) + 10)
    store.lease("job", [store.put(LARGE)])
    assert store.put(LARGE) == name_of(LARGE)
    with store.writer(name_of(LARGE), len(LARGE)) as writer:
        writer.write(LARGE)
        writer.commit()
    assert bytes(store.read(name_of(LARGE))) == LARGE


@pytest.mark.parametrize("act", ["nbytes", "read", "chunks", "path"])
def test_a_missing_hash_is_an_unknown_artifact(store: LocalStore, act: str) -> None:
    with pytest.raises(UnknownArtifact, match=name_of(SMALL)) as caught:
        getattr(store, act)(name_of(SMALL))
    assert caught.value.details["missing"] == [name_of(SMALL)]
    assert not store.has(name_of(SMALL))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_a_text_that_is_not_a_hash_is_refused(store: LocalStore, name: str) -> None:
    for act in (store.has, store.nbytes, store.read, store.chunks, store.path, store.writer):
        with pytest.raises(InvalidArgument, match="Invalid artifact hash"):
            act(name)
    for many in (store.missing, lambda names: store.lease("job", names)):
        with pytest.raises(InvalidArgument, match="Invalid artifact hash"):
            many([name])


def test_bytes_with_a_different_hash_are_corrupt_and_not_stored(store: LocalStore) -> None:
    with pytest.raises(CorruptData, match=name_of(LARGE)):
        store.put(SMALL, hash=name_of(LARGE))
    writer = store.writer(name_of(LARGE))
    writer.write(SMALL)
    with pytest.raises(CorruptData, match="cut short or altered"):
        writer.commit()
    assert not store.has(name_of(LARGE))
    assert not store.has(name_of(SMALL))


def test_fewer_and_more_bytes_than_expected_are_corrupt(store: LocalStore) -> None:
    writer = store.writer(nbytes=len(SMALL) + 1)
    writer.write(SMALL)
    with pytest.raises(CorruptData, match=f"after {len(SMALL)} of {len(SMALL) + 1} bytes"):
        writer.commit()
    writer = store.writer(nbytes=len(SMALL) - 1)
    with pytest.raises(CorruptData, match="more than"):
        writer.write(SMALL)
    assert not store.has(name_of(SMALL))


def test_put_mutable_stores_changing_bytes_under_their_own_hash_or_not_at_all(store: LocalStore) -> None:
    data = bytearray(LARGE)
    put_mutable(store, name_of(LARGE), memoryview(data))
    assert bytes(store.read(name_of(LARGE))) == LARGE
    data[-1] ^= 1
    with pytest.raises(CorruptData, match="altered"):
        put_mutable(store, "0" * 64, memoryview(data))
    assert store.missing(["0" * 64, name_of(bytes(data))]) == ["0" * 64, name_of(bytes(data))]


def test_a_writer_left_without_commit_keeps_nothing_and_is_closed(store: LocalStore) -> None:
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


def four(store: LocalStore) -> list[str]:
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


def test_what_is_leased_is_not_evicted_until_its_last_owner_releases_it(make: Make) -> None:
    store = make(quota_bytes=4000)
    hashes = four(store)
    store.lease("job", hashes[:2])
    store.lease("job", hashes[:2])
    store.lease("call", hashes[:1])
    store.put(b"x" * 2000)
    assert [store.has(digest) for digest in hashes] == [True, True, False, False]
    store.release("job")
    store.release("unknown")
    store.put(b"y" * 3000)
    assert [store.has(digest) for digest in hashes] == [True, False, False, False]
    store.release("call")
    store.put(b"z" * 4000)
    assert not store.has(hashes[0])


def test_a_lease_may_precede_the_artifact(make: Make) -> None:
    store = make(quota_bytes=3000)
    store.lease("job", [name_of(b"x" * 2000)])
    store.put(b"x" * 2000)
    store.put(b"y" * 1000)
    store.put(b"z" * 1000)
    assert store.has(name_of(b"x" * 2000))
    assert not store.has(name_of(b"y" * 1000))


def test_a_quota_full_of_leases_is_named(make: Make) -> None:
    store = make(quota_bytes=4000)
    store.lease("job", four(store)[:3])
    acts: list[Callable[[], object]] = [lambda: store.put(b"x" * 2000)]
    if not isinstance(store, BlockingStore):  # it learns of the quota with the first bytes
        acts.append(lambda: store.writer(nbytes=2000))
    for act in acts:
        with pytest.raises(StorageFailed, match="quota is 4000 bytes, and 3 artifacts of 3000 bytes are pinned"):
            act()
    writer = store.writer()
    writer.write(b"x" * 2000)
    with pytest.raises(StorageFailed, match="quota"):
        writer.commit()
    assert not store.has(name_of(b"x" * 2000))


def test_writing_to_a_tensor_from_the_store_does_not_alter_the_store(store: LocalStore) -> None:
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
            store.lease(f"job {number}", [name_of(data)])
            with store.writer(name_of(data), len(data)) as writer:
                writer.write(data)
                writer.commit()
            assert bytes(store.read(name_of(data))) == data
            store.release(f"job {number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_a_lease_with_a_time_ends_by_itself(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yggdrasill.values.stores.lease_files.GRACE_S", 0.0)
    store = make(quota_bytes=2000)
    short, long = store.put(b"s" * 1000), store.put(b"l" * 1000)
    store.lease("upload", [short], seconds=0.05)
    store.lease("job", [long], seconds=60)
    time.sleep(0.2)
    store.put(b"x" * 1000)
    assert [store.has(short), store.has(long)] == [False, True]


def test_a_deleted_artifact_is_missing_and_a_leased_one_is_kept(store: LocalStore) -> None:
    kept, dropped = store.put(SMALL), store.put(LARGE)
    store.lease("job", [kept])
    assert [store.delete(kept), store.delete(dropped), store.delete(dropped)] == [False, True, False]
    assert store.missing([kept, dropped]) == [dropped]
    store.release("job")
    assert store.delete(kept)
    assert store.put(SMALL) == kept


def test_the_facts_of_an_artifact(store: LocalStore) -> None:
    assert store.stat(name_of(SMALL)) is None
    store.put(SMALL)
    found = store.stat(name_of(SMALL))
    assert found is not None
    assert (found.hash, found.nbytes) == (name_of(SMALL), len(SMALL))
    assert abs(found.created - time.time()) < 60


@pytest.mark.parametrize("kind", ["memory", "embedded"])
def test_the_first_writer_of_an_artifact_is_recorded(kind: str, tmp_path: Path) -> None:
    store = MemoryStore() if kind == "memory" else EmbeddedStore(tmp_path)
    with writing_as(Writer("ada", "job-1")):
        store.put(SMALL)
        with store.writer() as writer:
            writer.write(LARGE)
            writer.commit()
    store.put(SMALL, writer=Writer("bob"))
    for data in (SMALL, LARGE):
        found = store.stat(name_of(data))
        assert found is not None
        assert found.writer == Writer("ada", "job-1")


@pytest.mark.parametrize("act", ["reserve", "adopt"])
def test_reserved_room_counts_against_the_quota(make: Make, tmp_path: Path, act: str) -> None:
    store = make(quota_bytes=4000)
    if isinstance(store, BlockingStore):
        pytest.skip("uploads are staged at local stores")
    assert isinstance(store, (MemoryStore, EmbeddedStore, SharedFolderStore))
    reservation = store.reserve(3000)
    with pytest.raises(StorageFailed, match="3000 bytes are reserved"):
        store.put(b"x" * 2000)
    if act == "adopt":
        file = tmp_path / "arrived"
        file.write_bytes(b"y" * 3000)
        store.adopt(file, name_of(b"y" * 3000), reservation)
        assert bytes(store.read(name_of(b"y" * 3000))) == b"y" * 3000
        assert not file.exists()
    reservation.release()
    assert store.put(b"x" * 4000) == name_of(b"x" * 4000)


# -- the asynchronous protocol ----------------------------------------------------------------------------------------


@pytest.fixture
def threaded(make: Make) -> ThreadedStore[LocalStore]:
    return ThreadedStore(make())


async def in_chunks(data: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_stream_is_stored_and_read_by_ranges(threaded: ThreadedStore[LocalStore], data: bytes) -> None:
    async def act() -> None:
        assert await threaded.stat(name_of(data)) is None
        assert await threaded.put_stream(in_chunks(data), hash=name_of(data), nbytes=len(data)) == name_of(data)
        found = await threaded.stat(name_of(data))
        assert found is not None
        assert found.nbytes == len(data)
        for start, stop in ((0, None), (3, 9), (len(data) // 2, None)):
            parts = [bytes(chunk) async for chunk in threaded.open_range(name_of(data), start, stop)]
            assert b"".join(parts) == data[start:stop]

    asyncio.run(act())


def test_a_stream_of_other_bytes_or_that_fails_is_not_stored(threaded: ThreadedStore[LocalStore]) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield LARGE[: 2 << 19]
        raise ConnectionResetError

    async def act() -> None:
        with pytest.raises(CorruptData):
            await threaded.put_stream(in_chunks(LARGE), hash=name_of(SMALL))
        with pytest.raises(CorruptData):
            await threaded.put_stream(in_chunks(LARGE), nbytes=len(LARGE) + 1)
        with pytest.raises(ConnectionResetError):
            await threaded.put_stream(broken(), hash=name_of(LARGE))
        assert await threaded.missing([name_of(LARGE), name_of(SMALL)]) == [name_of(LARGE), name_of(SMALL)]
        with pytest.raises(UnknownArtifact):
            await threaded.open_range(name_of(LARGE)).__anext__()

    asyncio.run(act())


def test_leases_and_deletes_of_the_asynchronous_protocol(threaded: ThreadedStore[LocalStore]) -> None:
    async def act() -> None:
        digest = await threaded.put(SMALL, writer=Writer("ada"))
        await threaded.lease("job", [digest])
        assert not await threaded.delete(digest)
        await threaded.release("job")
        assert await threaded.delete(digest)
        assert await threaded.missing([digest]) == [digest]

    asyncio.run(act())
