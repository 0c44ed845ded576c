"""What stores in folders have in common: files that vanish or are damaged, disks that are full, quotas."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from yggdrasill.errors import CorruptData, StorageFailed, UnknownArtifact
from yggdrasill.values import EmbeddedStore, SharedFolderStore, pack, unpack
from yggdrasill.values.stores.folder import FILE_CHARGE

Kind = Callable[..., "EmbeddedStore | SharedFolderStore"]


@pytest.fixture(params=[EmbeddedStore, SharedFolderStore], ids=["embedded", "shared"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each class of stores in folders."""
    made: Kind = request.param
    return made


def name_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def files_in(folder: Path) -> set[str]:
    """Return the files of artifacts and of unfinished writes."""
    return {path.name for part in ("objects", "incoming") for path in (folder / part).rglob("*") if path.is_file()}


def test_a_file_that_vanishes_is_an_unknown_artifact(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path)
    for data in (b"small", b"large" * 100_000):
        digest = store.put(data)
        path = store.path(digest)
        assert path is not None
        path.unlink()
        for act in (store.nbytes, store.read, store.chunks, store.path):
            with pytest.raises(UnknownArtifact):
                act(digest)
        assert store.missing([digest]) == [digest]
        assert store.put(data) == digest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete an open file")
def test_chunks_that_were_requested_survive_the_eviction_before_the_first_is_read(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path)
    digest = store.put(b"large" * 100_000)
    chunks, path = store.chunks(digest), store.path(digest)
    assert path is not None
    path.unlink()
    assert b"".join(chunks) == b"large" * 100_000


def test_chunks_that_are_never_read_leave_no_open_file(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path)
    digest = store.put(b"small")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        chunks = store.chunks(digest)
        del chunks
        gc.collect()


def test_an_evicted_artifact_stays_complete_for_its_readers(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path, quota_bytes=4 << 20)
    data = bytes(range(256)) * 8192
    view, chunks = store.read(store.put(data)), store.chunks(name_of(data))
    next(chunks)
    store.put(bytes(4 << 20))
    if sys.platform != "win32":
        assert not store.has(name_of(data))
    assert bytes(view) == data
    assert len(next(chunks)) == 1 << 20


def test_large_artifacts_are_mapped_without_a_file_descriptor_each(kind: Kind, tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("counts file descriptors in /proc, which this system does not have")

    def descriptors_of(digest: str) -> int:
        count = 0
        for path in descriptors.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed by another thread
                count += path.readlink().name == digest
        return count

    store = kind(tmp_path)
    digest = store.put(bytes(1 << 20))
    path = store.path(digest)
    assert path is not None
    with path.open("rb"):
        assert descriptors_of(digest) == 1
    views = [store.read(digest) for _ in range(50)]
    assert descriptors_of(digest) == 0
    assert all(not view.readonly for view in views)


def test_a_mapped_tensor_lives_in_the_file_s_pages(kind: Kind, tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads memory in use from /proc, which this system does not have")

    def anonymous() -> int:
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    store = kind(tmp_path)
    value = torch.rand(8 << 20)
    with pack(value, store) as packed:
        before = anonymous()
        tensor = unpack(packed.wire, lambda ref: store.read(ref.hash))
        assert torch.equal(tensor, value)
        assert anonymous() - before < 16 << 20


def test_a_durable_store_keeps_the_same_bytes(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path, durable=True)
    assert bytes(store.read(store.put(b"kept"))) == b"kept"


def test_a_folder_that_cannot_be_used_is_named(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed, match="file"):
        kind(tmp_path / "file" / "store")
    (tmp_path / "store-id").write_bytes(b"not an id")
    with pytest.raises(StorageFailed, match="'not an id'; expected a store id"):
        kind(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("NOT TESTED HERE: a disk that is full needs Linux and root to mount a small tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"NOT TESTED HERE: a small tmpfs cannot be mounted ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_keeps_existing_artifacts(kind: Kind, small_disk: Path) -> None:
    store = kind(small_disk)
    digest = store.put(b"a" * 1_000_000)
    before = files_in(small_disk)
    with pytest.raises(StorageFailed, match=os.strerror(errno.ENOSPC)):
        store.put(b"b" * 1_500_000)
    writer = store.writer()
    writer.write(b"c" * 500_000)
    with pytest.raises(StorageFailed, match="Nothing was stored"):
        writer.write(b"c" * 1_000_000)
    assert files_in(small_disk) == before
    assert bytes(store.read(digest)) == b"a" * 1_000_000
    assert store.put(b"d" * 500_000)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damaged(kind: Kind, folder: Path, data: bytes, harm: Callable[[Path], None]) -> str:
    """Store ``data``, damage its file, and return its hash. The next store on the folder finds the damage as after a restart."""
    store = kind(folder)
    digest = store.put(data)
    store.close()
    path = store.path(digest)
    assert path is not None
    harm(path)
    return digest


HARMS = [cut_short, empty, flip_a_bit]
SIZES = {"small": b"small", "large": b"large" * 100_000}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("data", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("act", ["read", "chunks", "path"])
def test_a_damaged_file_is_an_unknown_artifact_after_a_restart(
    kind: Kind, tmp_path: Path, harm: Callable[[Path], None], data: bytes, act: str
) -> None:
    digest = damaged(kind, tmp_path, data, harm)
    store = kind(tmp_path)
    with pytest.raises(UnknownArtifact):
        getattr(store, act)(digest)
    assert not list((tmp_path / "objects").rglob(digest))
    assert store.used_bytes == 0


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("how", ["put", "writer"])
def test_a_damaged_file_is_missing_and_written_again(kind: Kind, tmp_path: Path, harm: Callable[[Path], None], how: str) -> None:
    data = SIZES["large"]
    digest = damaged(kind, tmp_path, data, harm)
    store = kind(tmp_path)
    if how == "put":
        store.put(data)
    else:
        with store.writer(digest, len(data)) as writer:
            writer.write(data)
            writer.commit()
    assert bytes(store.read(digest)) == data
    assert store.used_bytes == len(data)
    store.close()
    damaged(kind, tmp_path, data, harm)
    again = kind(tmp_path)
    assert again.missing([digest]) == [digest]
    assert not again.has(digest)


def test_a_file_that_is_cut_short_during_use_is_missing(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path)
    digest = store.put(SIZES["large"])
    path = store.path(digest)
    assert path is not None
    cut_short(path)
    assert store.missing([digest]) == [digest]
    assert store.put(SIZES["large"]) == digest
    assert bytes(store.read(digest)) == SIZES["large"]


def test_a_file_that_another_process_replaced_is_verified_again(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path)
    digest = store.put(SIZES["large"])
    path = store.path(digest)
    assert path is not None
    other = tmp_path / "other"
    other.write_bytes(b"LARGE" * 100_000)
    other.replace(path)
    with pytest.raises(UnknownArtifact):
        store.read(digest)


@pytest.mark.parametrize("known", [True, False], ids=["known length", "unknown length"])
def test_bytes_that_are_being_written_count_against_the_quota(kind: Kind, tmp_path: Path, known: bool) -> None:
    store = kind(tmp_path, quota_bytes=8 << 20)
    old = store.put(b"o" * (1 << 20))
    writer = store.writer(nbytes=6 << 20 if known else None)
    for _ in range(5):
        writer.write(bytes(1 << 20))
    with pytest.raises(StorageFailed, match="bytes are reserved for artifacts that are being written"), store.writer(nbytes=3 << 20):
        pass
    other = store.writer()
    with pytest.raises(StorageFailed, match="reserved"):
        other.write(bytes(4 << 20))
    assert sum(path.stat().st_size for path in (tmp_path / "incoming").iterdir()) <= 8 << 20
    writer.write(bytes(1 << 20))
    digest = writer.commit()
    assert store.missing([old, digest]) == []
    assert store.used_bytes == 7 << 20
    with store.writer(nbytes=8 << 20):
        pass
    assert store.put(b"n" * (8 << 20))


def test_a_write_that_fails_or_is_aborted_reserves_nothing(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path, quota_bytes=4 << 20)
    for _ in range(5):
        with store.writer(nbytes=3 << 20) as writer:
            writer.write(bytes(1 << 20))
        writer = store.writer(name_of(b"promised"), 3 << 20)
        writer.write(bytes(3 << 20))
        with pytest.raises(CorruptData):
            writer.commit()
    assert store.put(bytes(4 << 20))


def test_small_artifacts_count_as_the_disk_that_they_take(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path, quota_bytes=100 * FILE_CHARGE, min_charge=FILE_CHARGE)
    for number in range(300):
        store.put(b"%d" % number)
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 100
    assert store.used_bytes == 100 * FILE_CHARGE
