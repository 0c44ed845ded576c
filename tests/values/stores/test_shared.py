"""`SharedFolderStore`: processes on one folder, without locks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from yggdrasill.errors import StorageFailed
from yggdrasill.values import DiskStore, SharedFolderStore
from yggdrasill.values.stores.folder import GRACE_S

OPEN = "import sys, time; from yggdrasill.values import SharedFolderStore; store = SharedFolderStore(sys.argv[1], quota_bytes={quota})\n"


def name_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def start(folder: Path, code: str, quota: int | None = None) -> subprocess.Popen[str]:
    """Start a process with a store on ``folder`` that runs ``code``; return after its first line of output."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN.format(quota=quota) + code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[str], *, kill: bool = False) -> None:
    if kill:
        process.kill()
    process.communicate("\n", timeout=60)


def until(condition: Callable[[], bool]) -> None:
    end_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_at
        time.sleep(0.01)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_earlier_name_of_the_class_still_works() -> None:
    assert DiskStore is SharedFolderStore


def test_processes_that_start_at_once_agree_on_the_store_id(tmp_path: Path) -> None:
    code = OPEN.format(quota=None) + "print(store.store_id)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "shared")], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert {process.communicate(timeout=60)[0] for process in processes} == {SharedFolderStore(tmp_path / "shared").store_id + "\n"}


def test_a_process_reads_what_another_wrote(tmp_path: Path) -> None:
    store = SharedFolderStore(tmp_path)
    process = start(tmp_path, "print(store.put(b'from afar'), flush=True); sys.stdin.readline()")
    assert bytes(store.read(name_of(b"from afar"))) == b"from afar"
    end(process)


def test_processes_that_write_and_evict_at_once_lose_nothing_that_is_leased(tmp_path: Path) -> None:
    code = """
import os
for number in range(60):
    data = bytes([number % 20]) * 5000
    owner = f"call {number}"
    from blake3 import blake3
    digest = blake3(data).hexdigest()
    store.lease(owner, [digest])
    store.put(data)
    assert bytes(store.read(digest)) == data, number
    store.release(owner)
print("done", flush=True)
"""
    processes = [subprocess.Popen([sys.executable, "-c", OPEN.format(quota=40_000) + code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    store = SharedFolderStore(tmp_path, quota_bytes=40_000)
    store.put(b"last")
    assert store.used_bytes <= 40_000
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_lease_waits_for_a_removal_that_did_not_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SharedFolderStore(tmp_path), SharedFolderStore(tmp_path)
    digest = first.put(b"a" * 1000)
    leased, seen, proceed = first._leased, threading.Event(), threading.Event()

    def read_leases() -> set[str]:
        found = leased()
        seen.set()
        proceed.wait(10)
        return found

    monkeypatch.setattr(first, "_leased", read_leases)
    with ThreadPoolExecutor() as threads:
        removal = threads.submit(first.delete, digest)
        assert seen.wait(10)
        lease = threads.submit(second.lease, "call", [digest])
        with pytest.raises(TimeoutError):
            lease.result(0.1)
        proceed.set()
        assert removal.result(10)
        lease.result(10)
    assert second.missing([digest]) == [digest]
    assert list((tmp_path / "removals").iterdir()) == []


def test_a_removal_of_a_killed_process_delays_no_lease(tmp_path: Path) -> None:
    store = SharedFolderStore(tmp_path)
    digest = store.put(b"a")
    announced = tmp_path / "removals" / "killed.list"
    announced.parent.mkdir()
    announced.write_text(digest)
    age(announced, 30)
    began = time.monotonic()
    store.lease("call", [digest])
    assert time.monotonic() - began < 20
    assert not announced.exists()
    assert store.missing([digest]) == []


def test_one_process_does_not_evict_what_another_leased(tmp_path: Path) -> None:
    store = SharedFolderStore(tmp_path, quota_bytes=3000)
    first, second = store.put(b"a" * 1000), store.put(b"b" * 1000)
    process = start(tmp_path, f"store.lease('job', ['{first}']); print('ready', flush=True); sys.stdin.readline(); store.release('job')")
    store.put(b"c" * 2000)
    assert [store.has(first), store.has(second)] == [True, False]
    with pytest.raises(StorageFailed, match="1 artifacts of 1000 bytes are pinned"):
        store.put(b"d" * 3000)
    end(process)
    store.put(b"d" * 3000)
    assert not store.has(first)


def test_the_leases_of_a_killed_process_hold_until_it_had_time_to_come_back(tmp_path: Path) -> None:
    store = SharedFolderStore(tmp_path, quota_bytes=2000)
    first = store.put(b"a" * 1000)
    end(start(tmp_path, f"store.lease('job', ['{first}']); print('ready', flush=True); sys.stdin.readline()"), kill=True)
    store.put(b"b" * 1000)
    store.put(b"c" * 1000)
    assert store.has(first)
    (alive,) = (tmp_path / "leases").rglob("alive")
    age(alive, GRACE_S + 10)
    store.put(b"d" * 2000)
    assert not store.has(first)
    assert [path for path in (tmp_path / "leases").iterdir() if path.is_dir()] == []


def test_a_lease_is_refreshed_while_its_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yggdrasill.values.stores.shared.REFRESH_S", 0.05)
    store = SharedFolderStore(tmp_path)
    store.lease("job", [store.put(b"a")])
    (alive,) = (tmp_path / "leases").rglob("alive")
    age(alive, 1000)
    until(lambda: time.time() - alive.stat().st_mtime < 900)
    store.close()


def test_an_eviction_passes_over_what_was_leased_since_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = SharedFolderStore(tmp_path, quota_bytes=2000), SharedFolderStore(tmp_path)
    first, second = store.put(b"a" * 1000), store.put(b"b" * 1000)
    leased = store._leased
    with ThreadPoolExecutor() as threads:

        def lease_after_the_announcement() -> set[str]:
            if any((tmp_path / "removals").glob("*")):
                threads.submit(other.lease, "call", [first])
                until(lambda: first in leased())
            return leased()

        monkeypatch.setattr(store, "_leased", lease_after_the_announcement)
        with pytest.raises(StorageFailed, match="1 artifacts of 1000 bytes are pinned"):
            store.put(b"c" * 2000)
    assert bytes(store.read(first)) == b"a" * 1000
    store.put(b"d" * 1000)
    assert [store.has(first), store.has(second)] == [True, False]


def test_a_file_is_not_replaced_by_a_second_writer(tmp_path: Path) -> None:
    first, second = SharedFolderStore(tmp_path), SharedFolderStore(tmp_path)
    data = os.urandom(1 << 20)
    writers = [store.writer(name_of(data), len(data)) for store in (first, second)]
    for writer in writers:
        writer.write(data)
    writers[0].commit()
    path = first.path(name_of(data))
    assert path is not None
    inode = path.stat().st_ino
    writers[1].commit()
    assert path.stat().st_ino == inode
    assert bytes(second.read(name_of(data))) == data


def test_partial_files_of_dead_writers_are_removed_after_an_hour(tmp_path: Path) -> None:
    code = "writer = store.writer(); writer.write(b'half' * 100_000); print('ready', flush=True); sys.stdin.readline()"
    end(start(tmp_path, code), kill=True)
    SharedFolderStore(tmp_path)
    (partial,) = (tmp_path / "incoming").iterdir()
    age(partial, 4000)
    SharedFolderStore(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_pins_of_a_process_of_the_earlier_version_are_respected(tmp_path: Path) -> None:
    store = SharedFolderStore(tmp_path, quota_bytes=2000)
    first, second = store.put(b"a" * 1000), store.put(b"b" * 1000)
    pins = tmp_path / "pins" / ("cd" * 16)
    pins.mkdir(parents=True)
    (pins / first).touch()
    store.put(b"c" * 1000)
    assert [store.has(first), store.has(second)] == [True, False]
