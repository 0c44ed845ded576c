"""The job store: rows and events on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from yggdrasill.errors import StorageFailed, UnsupportedVersion
from yggdrasill.protocol.states import COMPLETED, IN_PROGRESS
from yggdrasill.server_ext.jobs.model import Event, Job
from yggdrasill.server_ext.jobs.store import JobStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    jobs = JobStore(tmp_path / "jobs.sqlite")
    yield jobs
    jobs.close()


def job(name: str, **facts: object) -> Job:
    made = Job(name, f"key-{name}", "graph", "hash", "body", {"inputs": {"skeleton": 1, "payloads": []}})
    return replace(made, **facts)  # type: ignore[arg-type]  # the test names fields of a job


def test_a_job_is_read_as_it_was_written(store: JobStore) -> None:
    made = job("a", detached=True, timeout=2.5, artifacts=("x", "y"), timing={"fetch_s": 0.5}, progress={"done": 1})
    store.insert(made).result()
    assert store.get("a").result() == made
    final = replace(made, status=COMPLETED, started=1.0, finished=2.0, output={"skeleton": "é", "payloads": []}, request={}, artifacts=())
    store.update(final).result()
    assert store.get("a").result() == final
    assert store.get("b").result() is None


def test_jobs_survive_reopening_the_file(tmp_path: Path) -> None:
    first = JobStore(tmp_path / "jobs.sqlite")
    first.insert(job("a"))
    first.insert(job("b", status=IN_PROGRESS, attempts=1, created=1.0))
    first.insert(job("c", status=COMPLETED, finished=5.0, artifacts=("h",)))
    first.add_event(Event(7, "a", "status", {"status": "x"}))
    first.close()
    again = JobStore(tmp_path / "jobs.sqlite")
    assert [found.job_id for found in again.unfinished().result()] == ["b", "a"]
    assert again.keys().result() == {"key-a": "a", "key-b": "b", "key-c": "c"}
    assert again.artifacts().result() == {"c": ("h",)}
    assert again.last_seq().result() == 7
    again.close()


def test_a_duplicate_key_fails_and_others_of_the_same_batch_are_stored(store: JobStore) -> None:
    futures = [store.insert(job("a")), store.insert(replace(job("b"), key="key-a")), store.insert(job("c"))]
    futures[0].result()
    with pytest.raises(StorageFailed, match="UNIQUE"):
        futures[1].result()
    futures[2].result()
    assert set(store.keys().result().values()) == {"a", "c"}


def test_events_come_in_order_from_any_number(store: JobStore) -> None:
    for seq in range(1, 8):
        store.add_event(Event(seq, "ab"[seq % 2], "status", {"n": seq}))
    assert [event.seq for event in store.events("a", 2).result()] == [4, 6]
    assert [event.seq for event in store.events(None, 3, limit=3).result()] == [4, 5, 6]
    store.remove(["a"]).result()
    assert [event.seq for event in store.events(None, 0).result()] == [1, 3, 5, 7]


def test_jobs_are_listed_newest_first_without_their_values(store: JobStore) -> None:
    for number, name in enumerate("abc"):
        store.insert(job(name, created=float(number), status=COMPLETED, output={"skeleton": 0, "payloads": []}))
    found = store.newest(status=COMPLETED, limit=2).result()
    assert [(entry.job_id, entry.request, entry.output) for entry in found] == [("c", {}, None), ("b", {}, None)]
    assert store.newest(graph_id="other").result() == []


def test_old_and_surplus_jobs_expire(store: JobStore) -> None:
    for number, name in enumerate("abcd"):
        store.insert(job(name, status=COMPLETED, finished=float(number)))
    store.insert(job("running"))
    assert store.expired(finished_before=1.5, keep=10).result() == ["a", "b"]
    assert store.expired(finished_before=0.0, keep=1).result() == ["a", "b", "c"]


def test_one_file_has_one_user(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="Another endpoint uses the job file"):
        JobStore(tmp_path / "jobs.sqlite")


def test_a_file_of_a_newer_version_or_in_no_folder_is_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UnsupportedVersion, match="Update yggdrasill"):
        JobStore(newer)
    assert [path.name for path in tmp_path.iterdir()] == ["newer.sqlite"]
    with pytest.raises(StorageFailed):
        JobStore(tmp_path / "nowhere" / "jobs.sqlite")


HALF = "half an emoji: \ud83d"


def test_a_text_with_half_an_emoji_is_stored_and_read(store: JobStore) -> None:
    made = job("a", request={"text": HALF}, error={"message": HALF}, progress={"text": HALF})
    store.insert(made).result()
    store.update(replace(made, output={"skeleton": HALF})).result()
    store.add_event(Event(1, "a", "log", {"text": HALF})).result()
    found = store.get("a").result()
    assert found == replace(made, output={"skeleton": HALF})
    assert [event.data for event in store.events("a", 0).result()] == [{"text": HALF}]


@pytest.mark.parametrize("name", [HALF, 1 << 70], ids=["text", "number"])
def test_a_value_that_cannot_be_written_is_not_called_damage(store: JobStore, name: object) -> None:
    with pytest.raises(StorageFailed, match="A value cannot be written to the job file") as caught:
        store.insert(job("a", key=name)).result(5)
    assert "damaged" not in caught.value.message
    store.insert(job("b")).result(5)


def test_the_storage_thread_survives_cancelled_operations(store: JobStore) -> None:
    cancelled = 0
    for number in range(300):
        store.insert(job(f"kept-{number}"))
        cancelled += store.insert(job(f"cancelled-{number}")).cancel()
    assert cancelled > 0
    names = list(store.keys().result(5).values())
    assert len([name for name in names if name.startswith("kept")]) == 300
    assert len(names) == 600 - cancelled


def test_an_operation_after_closing_fails_and_does_not_hang(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    store.close()
    store.close()
    for future in (store.get("a"), store.insert(job("a")), store.keys()):
        with pytest.raises(StorageFailed, match="is closed"):
            future.result(5)
