"""`DiskStore`: folders that several processes share, processes that are killed, disks that are full."""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from yggdrasill.errors import CorruptData, StorageFailed, UnknownArtifact
from yggdrasill.values import DiskStore, pack, unpack
from yggdrasill.values.stores import disk

OPEN_STORE = "import sys, time; from yggdrasill.values import DiskStore; store = DiskStore(sys.argv[1], quota_bytes={quota})\n"


def name_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def files_in(folder: Path) -> set[str]:
    """Return the files in the folder except the pins of open stores."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "pins" not in path.parts}


def start(folder: Path, code: str, quota: int | None = None) -> subprocess.Popen[str]:
    """Start a process with a store on ``folder`` that runs ``code``; return after its first line of output."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN_STORE.format(quota=quota) + code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[str], *, kill: bool) -> None:
    if kill:
        process.kill()
    process.communicate("\n", timeout=60)
    assert process.returncode == (-signal.SIGKILL if kill and sys.platform != "win32" else process.returncode)


WRITING = "writer = store.writer(); writer.write(b'half' * 100_000); print('ready', flush=True); sys.stdin.readline()"


def test_processes_that_start_at_once_agree_on_the_store_id(tmp_path: Path) -> None:
    code = OPEN_STORE.format(quota=None) + "print(store.store_id)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "shared")], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    reported = {process.communicate(timeout=60)[0] for process in processes}
    assert reported == {DiskStore(tmp_path / "shared").store_id + "\n"}
    assert DiskStore(tmp_path / "other").store_id + "\n" not in reported


def test_a_process_reads_what_another_wrote(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    process = start(tmp_path, "print(store.put(b'from afar'), flush=True); sys.stdin.readline()")
    assert bytes(store.read(name_of(b"from afar"))) == b"from afar"
    end(process, kill=False)


def test_a_writer_killed_in_mid_write_leaves_nothing_once_a_store_opens(tmp_path: Path) -> None:
    process = start(tmp_path, WRITING)
    DiskStore(tmp_path)
    assert len(list((tmp_path / "incoming").iterdir())) == 1, "a living writer's file was removed"
    end(process, kill=True)
    assert len(list((tmp_path / "incoming").iterdir())) == 1
    store = DiskStore(tmp_path)
    assert files_in(tmp_path) <= {"lock", "store-id", "used"}
    assert store.put(b"half" * 100_000) == name_of(b"half" * 100_000)


def test_a_process_that_dies_with_the_lock_does_not_block_others(tmp_path: Path) -> None:
    process = start(tmp_path, "store._locked().acquire(); print('ready', flush=True); sys.stdin.readline()")
    end(process, kill=True)
    assert DiskStore(tmp_path).put(b"still works") == name_of(b"still works")


def test_one_process_does_not_evict_what_another_pinned(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, quota_bytes=3000)
    first, second = store.put(b"a" * 1000), store.put(b"b" * 1000)
    process = start(tmp_path, f"store.pin('job', ['{first}']); print('ready', flush=True); sys.stdin.readline(); store.unpin('job')")
    store.put(b"c" * 2000)
    assert store.has(first)
    assert not store.has(second)
    with pytest.raises(StorageFailed, match="1 artifacts of 1000 bytes are pinned"):
        store.put(b"d" * 3000)
    end(process, kill=False)
    store.put(b"d" * 3000)
    assert not store.has(first)


@pytest.mark.parametrize("returns", [True, False], ids=["returns", "stays away"])
def test_the_pins_of_a_killed_process_hold_until_it_had_time_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: bool
) -> None:
    store = DiskStore(tmp_path, quota_bytes=2000)
    first = store.put(b"a" * 1000)
    end(start(tmp_path, f"store.pin('job', ['{first}']); print('ready', flush=True); sys.stdin.readline()"), kill=True)
    store.put(b"b" * 1000)
    store.put(b"c" * 1000)
    assert store.has(first)
    successor = DiskStore(tmp_path, quota_bytes=2000)
    if returns:
        successor.pin("job", [first])
    monkeypatch.setattr(disk, "GRACE_S", -1.0)
    store.put(b"d" * 1000)
    store.put(b"e" * 1000)
    assert store.has(first) == returns
    assert {path.name for path in (tmp_path / "pins").iterdir()} == {store._folder_pins.name, successor._folder_pins.name}


def test_a_quota_bounds_the_folder_of_all_processes_together(tmp_path: Path) -> None:
    code = "\nfor number in range(30): store.put(bytes([number, int(sys.argv[0] == '-c')]) * 5000)\nprint('ready', flush=True)"
    processes = [start(tmp_path, code, quota=100_000) for _ in range(2)]
    for process in processes:
        end(process, kill=False)
    store = DiskStore(tmp_path, quota_bytes=100_000)
    assert sum(path.stat().st_size for path in (tmp_path / "objects").rglob("*") if path.is_file()) <= 100_000
    assert store._read_used() == sum(path.stat().st_size for path in (tmp_path / "objects").rglob("*") if path.is_file())


@pytest.mark.parametrize("text", [b"", b"1e", None], ids=["empty", "torn", "gone"])
def test_a_lost_record_of_the_bytes_in_use_is_counted_again(tmp_path: Path, text: bytes | None) -> None:
    store = DiskStore(tmp_path, quota_bytes=2000)
    first = store.put(b"a" * 1000)
    if text is None:
        (tmp_path / "used").unlink()
    else:
        (tmp_path / "used").write_bytes(text)
    store.put(b"b" * 1000)
    assert store.has(first)
    store.put(b"c" * 1000)
    assert not store.has(first)


def test_a_file_that_vanishes_is_an_unknown_artifact(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
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


def test_chunks_of_a_file_that_vanishes_between_size_and_open_raise_when_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path)
    digest = store.put(b"small")
    path = store.path(digest)
    assert path is not None
    monkeypatch.setattr(DiskStore, "_touch", staticmethod(lambda path: path.unlink() or True))
    with pytest.raises(UnknownArtifact):
        store.chunks(digest)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete an open file")
def test_chunks_that_were_requested_survive_the_eviction_before_the_first_is_read(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    digest = store.put(b"large" * 100_000)
    chunks, path = store.chunks(digest), store.path(digest)
    assert path is not None
    path.unlink()
    assert b"".join(chunks) == b"large" * 100_000


def test_chunks_that_are_never_read_leave_no_open_file(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    digest = store.put(b"small")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        chunks = store.chunks(digest)
        del chunks
        gc.collect()


def test_an_evicted_artifact_stays_complete_for_its_readers(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, quota_bytes=4 << 20)
    data = bytes(range(256)) * 8192
    view, chunks = store.read(store.put(data)), store.chunks(name_of(data))
    next(chunks)
    store.put(bytes(4 << 20))
    if sys.platform != "win32":
        assert not store.has(name_of(data))
    assert bytes(view) == data
    assert len(next(chunks)) == 1 << 20


def test_large_artifacts_are_mapped_without_a_file_descriptor_each(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("counts file descriptors in /proc, which this system does not have")
    store = DiskStore(tmp_path)
    digest = store.put(bytes(1 << 20))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    views = [store.read(digest) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert all(not view.readonly for view in views)


def test_a_mapped_tensor_lives_in_the_file_s_pages(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads memory in use from /proc, which this system does not have")

    def anonymous() -> int:
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    store = DiskStore(tmp_path)
    value = torch.rand(8 << 20)
    with pack(value, store) as packed:
        before = anonymous()
        tensor = unpack(packed.wire, lambda ref: store.read(ref.hash))
        assert torch.equal(tensor, value)
        assert anonymous() - before < 16 << 20


def test_a_durable_store_keeps_the_same_bytes(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, durable=True)
    assert bytes(store.read(store.put(b"kept"))) == b"kept"


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed, match="file"):
        DiskStore(tmp_path / "file" / "store")
    (tmp_path / "store-id").write_bytes(b"not an id")
    with pytest.raises(StorageFailed, match="'not an id'; expected a store id"):
        DiskStore(tmp_path)


def test_a_closed_store_leaves_no_trace_of_itself(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    digest = store.put(b"kept")
    store.pin("job", [digest])
    store.unpin("job")
    store.close()
    store.close()
    assert list((tmp_path / "pins").iterdir()) == []
    assert DiskStore(tmp_path).has(digest)


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


def test_a_full_disk_is_one_error_and_keeps_existing_artifacts(small_disk: Path) -> None:
    store = DiskStore(small_disk)
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


def test_a_pin_waits_for_an_eviction_in_another_process(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    digest = store.put(b"a")
    process = start(tmp_path, "lock = store._locked(); lock.acquire(); print('ready', flush=True); time.sleep(0.5); lock.release()")
    begin = time.monotonic()
    store.pin("job", [digest])
    assert time.monotonic() - begin > 0.2
    end(process, kill=False)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damaged(folder: Path, data: bytes, harm: Callable[[Path], None]) -> str:
    """Store ``data``, damage its file, and return its hash. The next store on the folder finds the damage as after a restart."""
    store = DiskStore(folder)
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
def test_a_damaged_file_is_an_unknown_artifact_after_a_restart(tmp_path: Path, harm: Callable[[Path], None], data: bytes, act: str) -> None:
    digest = damaged(tmp_path, data, harm)
    store = DiskStore(tmp_path)
    with pytest.raises(UnknownArtifact):
        getattr(store, act)(digest)
    assert not list((tmp_path / "objects").rglob(digest))
    assert store.used_bytes == 0


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("how", ["put", "writer"])
def test_a_damaged_file_is_missing_and_written_again(tmp_path: Path, harm: Callable[[Path], None], how: str) -> None:
    data = SIZES["large"]
    digest = damaged(tmp_path, data, harm)
    store = DiskStore(tmp_path)
    if how == "put":
        store.put(data)
    else:
        with store.writer(digest, len(data)) as writer:
            writer.write(data)
            writer.commit()
    assert bytes(store.read(digest)) == data
    assert store.used_bytes == len(data)
    damaged(tmp_path, data, harm)
    again = DiskStore(tmp_path)
    assert again.missing([digest]) == [digest]
    assert not again.has(digest)


def test_a_file_that_is_cut_short_during_use_is_missing(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    digest = store.put(SIZES["large"])
    path = store.path(digest)
    assert path is not None
    cut_short(path)
    assert store.missing([digest]) == [digest]
    assert store.put(SIZES["large"]) == digest
    assert bytes(store.read(digest)) == SIZES["large"]


def test_a_file_that_another_process_replaced_is_verified_again(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    digest = store.put(SIZES["large"])
    path = store.path(digest)
    assert path is not None
    other = tmp_path / "other"
    other.write_bytes(b"LARGE" * 100_000)
    other.replace(path)
    with pytest.raises(UnknownArtifact):
        store.read(digest)


def test_a_lock_that_another_process_holds_is_an_error_after_some_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path)
    process = start(tmp_path, "lock = store._locked(); lock.acquire(); print('ready', flush=True); sys.stdin.readline()")
    monkeypatch.setattr(disk, "LOCK_SECONDS", 0.2)
    with pytest.raises(StorageFailed, match=r"Another process has held the lock '.*lock' for 0.2 seconds"):
        store.put(b"waits")
    end(process, kill=True)
    assert store.put(b"waits") == name_of(b"waits")


def test_many_pins_at_once_are_fast_and_hold_for_other_processes(tmp_path: Path) -> None:
    store, other = DiskStore(tmp_path), DiskStore(tmp_path, quota_bytes=3000)
    digest, released = store.put(b"a" * 1000), store.put(b"b" * 1000)
    many = {f"{number:064x}" for number in range(50_000)}
    started = time.perf_counter()
    store.pin("call", [released])
    store.pin("job", [digest, released, *many])
    store.pin("other job", many)
    assert time.perf_counter() - started < 2.0
    assert len(list((tmp_path / "pins").rglob("*"))) < 20
    store.unpin("job")
    store.pin("job", [digest, *list(many)[:100]])
    store.unpin("other job")
    store.unpin("call")
    other.put(b"c" * 2000)
    assert store.has(digest)
    assert not store.has(released)
    store.unpin("job")
    other.put(b"d" * 3000)
    assert not store.has(digest)
    store.close()
    assert [path.name for path in (tmp_path / "pins").iterdir()] == [other._folder_pins.name]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_new_folder_and_its_lock_are_private_and_a_shared_folder_stays_shared(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    for folder, folder_mode, lock_mode in ((tmp_path / "private", 0o700, 0o600), (shared, 0o755, 0o644)):
        DiskStore(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == folder_mode
        assert stat.S_IMODE((folder / "lock").stat().st_mode) == lock_mode


@pytest.mark.parametrize("known", [True, False], ids=["known length", "unknown length"])
def test_bytes_that_are_being_written_count_against_the_quota(tmp_path: Path, known: bool) -> None:
    store = DiskStore(tmp_path, quota_bytes=8 << 20)
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


def test_a_write_that_fails_or_is_aborted_reserves_nothing(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, quota_bytes=4 << 20)
    for _ in range(5):
        with store.writer(nbytes=3 << 20) as writer:
            writer.write(bytes(1 << 20))
        writer = store.writer(name_of(b"promised"), 3 << 20)
        writer.write(bytes(3 << 20))
        with pytest.raises(CorruptData):
            writer.commit()
    assert store.put(bytes(4 << 20))


def test_small_artifacts_count_as_the_disk_that_they_take(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, quota_bytes=100 * disk.FILE_CHARGE, min_charge=disk.FILE_CHARGE)
    for number in range(300):
        store.put(b"%d" % number)
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 100
    assert store.used_bytes == 100 * disk.FILE_CHARGE
    (tmp_path / "used").unlink()
    assert store.used_bytes == 100 * disk.FILE_CHARGE
