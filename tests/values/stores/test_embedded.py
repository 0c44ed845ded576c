"""`EmbeddedStore`: the index, folders of earlier versions, one process, room without reading the folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from yggdrasill.errors import StorageFailed, UnsupportedVersion
from yggdrasill.values import EmbeddedStore, SharedFolderStore, Writer
from yggdrasill.values.stores.disk_files import INDEX_FILE

MIB = 1 << 20


def name_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def object_path(folder: Path, name: str) -> Path:
    return folder / "objects" / name[:2] / name[2:4] / name


def place(folder: Path, data: bytes) -> str:
    """Write an artifact's file as another process does."""
    path = object_path(folder, name_of(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name_of(data)


def until(holds: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_process_on_the_folder_gets_a_clear_error(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    code = "import sys; from yggdrasill.values import EmbeddedStore; EmbeddedStore(sys.argv[1])"
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "Another process uses the artifact folder" in process.stderr
    with pytest.raises(StorageFailed, match="Another process uses the artifact folder"):
        EmbeddedStore(tmp_path)
    store.close()
    EmbeddedStore(tmp_path).close()


def test_uses_leases_and_writers_survive_a_restart(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, quota_bytes=3000)
    old, leased, read = (store.put(data * 1000, writer=Writer("ada", "job")) for data in (b"o", b"l", b"r"))
    store.lease("job", [leased])
    store.read(old)
    store.close()
    again = EmbeddedStore(tmp_path, quota_bytes=3000)
    again.put(b"n" * 1000)
    assert [again.has(digest) for digest in (old, leased, read)] == [True, True, False]
    found = again.stat(old)
    assert found is not None
    assert found.writer == Writer("ada", "job")
    again.close()


def test_the_leases_of_a_process_that_ended_last_for_the_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddedStore(tmp_path)
    digest = store.put(b"a" * 1000)
    store.lease("job", [digest])
    store.close()
    monkeypatch.setattr("yggdrasill.values.stores.embedded.GRACE_S", 0.05)
    again = EmbeddedStore(tmp_path, quota_bytes=1000)
    with pytest.raises(StorageFailed, match="1 artifacts of 1000 bytes are pinned"):
        again.put(b"b" * 1000)
    time.sleep(0.1)
    again.put(b"b" * 1000)
    assert not again.has(digest)
    again.close()


@pytest.mark.parametrize("harm", ["gone", "damaged", "empty"])
def test_a_lost_index_is_rebuilt_from_the_folder(tmp_path: Path, harm: str) -> None:
    store = EmbeddedStore(tmp_path, min_charge=8192)
    hashes = [store.put(b"%d" % number) for number in range(50)]
    store.close()
    index = tmp_path / INDEX_FILE
    if harm == "gone":
        index.unlink()
    else:
        index.write_bytes(b"" if harm == "empty" else b"not a database" * 1000)
    again = EmbeddedStore(tmp_path, min_charge=8192)
    assert again.missing(hashes) == []
    until(lambda: again.used_bytes == 50 * 8192)
    again.close()


def test_an_index_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    EmbeddedStore(tmp_path).close()
    with sqlite3.connect(tmp_path / INDEX_FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UnsupportedVersion, match="Update yggdrasill"):
        EmbeddedStore(tmp_path)


def test_a_folder_of_the_earlier_version_is_taken_over(tmp_path: Path) -> None:
    hashes = [place(tmp_path, b"%d" % number * 1000) for number in range(5)]
    (tmp_path / "store-id").write_text("ab" * 16, encoding="ascii")
    (tmp_path / "used").write_bytes(b"%020d" % 5000)
    (tmp_path / "lock").touch()
    pins = tmp_path / "pins" / ("cd" * 16)
    pins.mkdir(parents=True)
    (pins / hashes[0]).touch()
    (pins / "lock").touch()
    (pins / "ef.list").write_text(f"{hashes[1]}\n{hashes[2]}", encoding="ascii")
    store = EmbeddedStore(tmp_path, quota_bytes=5000)
    assert store.store_id == "ab" * 16
    until(lambda: store.used_bytes == 5000)
    store.put(b"n" * 2000)
    assert [store.has(digest) for digest in hashes] == [True, True, True, False, False]
    assert {path.name for path in tmp_path.iterdir()} <= {
        "objects",
        "incoming",
        "store-id",
        INDEX_FILE,
        f"{INDEX_FILE}-wal",
        f"{INDEX_FILE}-shm",
    }
    store.close()


def test_a_file_that_another_process_put_there_is_taken_when_it_is_requested(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, quota_bytes=10_000)
    until(lambda: store.put(b"first"))
    time.sleep(0.2)  # the folder was read at the start
    caller = SharedFolderStore(tmp_path, quota_bytes=10_000)
    digest = caller.put(b"c" * 3000)
    assert store.used_bytes == 5
    assert store.missing([digest]) == []
    assert store.used_bytes == 3005
    store.put(b"d" * 9000)
    assert not store.has(digest)
    assert not caller.has(digest)
    store.close()


def test_a_caller_evicts_nothing_from_the_folder_of_an_embedded_store(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, quota_bytes=2000)
    digest = store.put(b"a" * 2000)
    caller = SharedFolderStore(tmp_path, quota_bytes=2000)
    caller.put(b"b" * 2000)
    assert store.has(digest)
    store.close()


def test_the_leases_of_callers_protect_their_artifacts(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, quota_bytes=4000)
    caller = SharedFolderStore(tmp_path)
    digest = caller.put(b"c" * 1000)
    caller.lease("call", [digest])
    assert store.has(digest)
    store.put(b"a" * 3000)
    store.put(b"b" * 3000)
    assert store.has(digest)
    caller.release("call")
    store.put(b"d" * 4000)
    assert not store.has(digest)
    store.close()


def test_an_entry_whose_file_is_gone_leaves_the_index(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    digest = store.put(b"a" * 1000)
    store.close()
    object_path(tmp_path, digest).unlink()
    again = EmbeddedStore(tmp_path)
    until(lambda: again.used_bytes == 0)
    again.close()


def test_a_lease_of_twenty_times_as_many_artifacts_takes_about_twenty_times_as_long_and_makes_no_files(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)

    def cpu_seconds(count: int) -> float:
        many = [f"{number:064x}" for number in range(count)]
        started = time.process_time()
        store.lease("job", many)
        store.lease("other", many)
        store.release("job")
        store.release("other")
        return time.process_time() - started

    few = min(cpu_seconds(2_500) for _ in range(3))
    assert cpu_seconds(50_000) < 100 * few
    assert [path for path in (tmp_path).rglob("*") if path.is_file() and path.name.split("-")[0] not in (INDEX_FILE, "store")] == []
    store.close()


def test_no_lock_file_delays_the_store(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    store = EmbeddedStore(tmp_path)
    with (tmp_path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.perf_counter()
        assert store.missing([store.put(b"no wait")]) == []
        store.lease("job", [name_of(b"no wait")])
        assert time.perf_counter() - started < 10.0
    store.close()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A store whose quota is full of 4,000 small artifacts, half of them leased and least recently used."""
    store = EmbeddedStore(tmp_path_factory.mktemp("crowded"), quota_bytes=4000 * 8192, min_charge=8192)
    hashes = [store.put(b"%d" % number) for number in range(4000)]
    store.lease("job", hashes[:2000])
    yield store
    store.close()


def test_room_is_made_without_reading_the_folder(crowded: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the folder was read")

    until(lambda: not crowded._touched)
    monkeypatch.setattr("yggdrasill.values.stores.folder.FolderStore._scan", fail)
    digest = crowded.put(os.urandom(6 * MIB))
    assert crowded.has(digest)
    assert crowded.used_bytes <= 4000 * 8192
    with pytest.raises(StorageFailed, match="2000 artifacts of 16384000 bytes are pinned"):
        crowded.put(os.urandom(17 * MIB))


def test_room_is_made_ahead_of_need(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, quota_bytes=64 * MIB)
    for _ in range(16):
        store.put(os.urandom(4 * MIB))
    until(lambda: store.used_bytes <= 60 * MIB)
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_new_folder_is_private(tmp_path: Path) -> None:
    EmbeddedStore(tmp_path / "new").close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
