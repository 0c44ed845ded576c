"""The job store: rows and events on disk."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yggdrasill.errors import StorageFailed, UnsupportedVersion
from yggdrasill.protocol.states import CANCELLED, COMPLETED, FAILED, FINAL, IN_PROGRESS, IN_QUEUE, STATES, TRANSITIONS
from yggdrasill.server_ext.jobs.model import Event, Job, KeyRecord
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
    store.transition(replace(made, status=IN_PROGRESS)).result()
    assert store.transition(final).result()
    assert store.get("a").result() == final
    assert store.get("b").result() is None


def test_the_first_stop_of_an_unfinished_job_is_recorded_and_survives_its_transitions(store: JobStore) -> None:
    made = job("a", status=IN_QUEUE)
    store.insert(made)
    store.record_stop("a", "TIMED_OUT", "too late")
    store.record_stop("a", CANCELLED, "by request")
    store.transition(replace(made, status=IN_PROGRESS)).result()
    found = store.get("a").result()
    assert found is not None
    assert (found.status, found.stopped_as, found.stop_reason) == (IN_PROGRESS, "TIMED_OUT", "too late")
    store.insert(job("b", status=COMPLETED, finished=2.0))
    store.record_stop("b", CANCELLED, "by request").result()
    ended = store.get("b").result()
    assert ended is not None
    assert ended.stopped_as is None


def test_events_are_written_with_the_next_operation(store: JobStore) -> None:
    written = [store.add_event(Event(seq, "a", "log", {"n": seq}), lazily=True) for seq in (1, 2)]
    time.sleep(0.05)
    assert not any(future.done() for future in written)
    assert [event.seq for event in store.events("a", 0).result()] == [1, 2]
    assert all(future.done() for future in written)


def test_deferred_events_are_written_by_a_flush_and_by_closing(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    first = store.add_event(Event(1, "a", "log", {}), lazily=True)
    store.flush()
    first.result(5)
    store.add_event(Event(2, "a", "log", {}), 1, lazily=True)
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite")
    assert [event.seq for event in again.events("a", 0).result()] == [2]
    again.close()


def test_the_number_of_deferred_events_is_bounded(store: JobStore) -> None:
    written = [store.add_event(Event(seq, "a", "log", {"n": seq}), lazily=True) for seq in range(1, 1001)]
    written[700].result(5)


def test_a_job_with_a_recorded_key_is_not_inserted(store: JobStore) -> None:
    record = KeyRecord("key-a", "older", "body", CANCELLED)
    store.record_key(record)
    assert store.insert(job("a")).result() == record
    assert store.get("a").result() is None
    assert store.insert(job("b")).result() is None


def test_jobs_survive_reopening_the_file(tmp_path: Path) -> None:
    first = JobStore(tmp_path / "jobs.sqlite")
    first.insert(job("a"))
    first.insert(job("b", status=IN_PROGRESS, attempts=1, created=1.0))
    first.insert(job("c", status=COMPLETED, finished=5.0, artifacts=("h",)))
    first.add_event(Event(7, "a", "status", {"status": "x"}))
    first.close()
    again = JobStore(tmp_path / "jobs.sqlite")
    unfinished = again.unfinished().result()
    assert [(found.job_id, found.request, found.nbytes > 20) for found in unfinished] == [("b", None, True), ("a", None, True)]
    assert again.request("a").result() == job("a").request
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
    assert [(entry.job_id, entry.request, entry.output) for entry in found] == [("c", None, None), ("b", None, None)]
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
    made = replace(made, status=IN_PROGRESS)
    assert store.transition(replace(made, output={"skeleton": HALF})).result()
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


@given(statuses=st.lists(st.sampled_from(STATES), max_size=12), first=st.sampled_from(STATES))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_sequence_of_transitions_leaves_a_legal_history(store: JobStore, first: str, statuses: list[str]) -> None:
    made = job(uuid.uuid4().hex, status=first)
    store.insert(made).result()
    history = [first]
    for status in statuses:
        if store.transition(replace(made, status=status, output={"skeleton": status, "payloads": []})).result():
            assert status in TRANSITIONS[history[-1]]
            history.append(status)
        else:
            assert status not in TRANSITIONS[history[-1]]
        found = store.get(made.job_id).result()
        assert found is not None
        assert found.status == history[-1]
        assert found.output == (None if len(history) == 1 else {"skeleton": history[-1], "payloads": []})
        assert found.request == (made.request if history[-1] not in FINAL or len(history) == 1 else {})


def test_of_a_cancellation_and_a_completion_at_the_same_instant_exactly_one_is_stored(store: JobStore) -> None:
    for number in range(100):
        made = job(f"job-{number}", status=IN_PROGRESS)
        store.insert(made)
        ends = [replace(made, status=status) for status in (CANCELLED, COMPLETED)]
        with ThreadPoolExecutor(2) as threads:
            won = list(threads.map(lambda end: store.transition(end).result(), ends))
        assert sorted(won) == [False, True]
        found = store.get(made.job_id).result()
        assert found is not None
        assert found.status == ends[won.index(True)].status


def test_a_transition_of_a_job_without_a_row_is_reported(store: JobStore) -> None:
    assert not store.transition(job("a", status=CANCELLED)).result()


def test_only_leases_of_running_jobs_of_their_owner_are_renewed(store: JobStore) -> None:
    for name, owner, status in (("a", "me", IN_PROGRESS), ("b", "other", IN_PROGRESS), ("c", "me", IN_QUEUE)):
        store.insert(job(name, lease_owner=owner, lease_until=1.0, status=status))
    store.renew_leases("me", 2.0).result()
    leases = {found.job_id: found.lease_until for found in store.unfinished().result()}
    assert leases == {"a": 2.0, "b": 1.0, "c": 1.0}


def test_jobs_are_listed_by_principal(store: JobStore) -> None:
    for name, principal in (("a", "ann"), ("b", "bob"), ("c", "ann")):
        store.insert(job(name, principal=principal))
    assert {found.job_id for found in store.newest(principal="ann").result()} == {"a", "c"}
    assert len(store.newest().result()) == 3


VERSION_1 = """
CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, graph_id TEXT NOT NULL, graph_hash TEXT NOT NULL, body_hash TEXT NOT NULL,
    status TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, detached INTEGER NOT NULL, orphan_after REAL NOT NULL,
    timeout REAL, attempts INTEGER NOT NULL, request TEXT NOT NULL, output TEXT, error TEXT, timing TEXT NOT NULL, progress TEXT,
    artifacts TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_by_age ON jobs (finished);
CREATE TABLE events (seq INTEGER PRIMARY KEY, job_id TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_of_job ON events (job_id, seq);
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
VERSION_1_KEYS = """
CREATE TABLE keys (
    key TEXT PRIMARY KEY, job_id TEXT NOT NULL, body_hash TEXT NOT NULL, status TEXT NOT NULL, recorded REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_by_age ON keys (recorded);
INSERT INTO keys VALUES ('old-key', 'old', 'body', 'COMPLETED', 5.0);
"""


@pytest.mark.parametrize("keys", [VERSION_1_KEYS, ""], ids=["with-keys", "without-keys"])
def test_a_file_of_version_1_is_migrated_and_loses_nothing(tmp_path: Path, keys: str) -> None:
    statuses = (IN_QUEUE, IN_PROGRESS, *sorted(FINAL))
    call = {"inputs": {"skeleton": {"model": 1}, "payloads": []}, "options": {}, "run": {"seed": 1, "path": [], "pass_index": 0}}
    requests = {"call": call, "workflow": {**call, "workflow": {"graph_id": "w", "prompt": {}}}, "model": {**call, "model": {"url": "u"}}}
    db = sqlite3.connect(tmp_path / "jobs.sqlite")
    db.executescript(VERSION_1 + keys)
    for status in statuses:
        for kind, request in requests.items():
            name, is_final = f"{status}-{kind}", status in FINAL
            values = (
                name, f"key-{name}", "graph", "hash", "body", status, 1.0, 2.0, 3.0 if is_final else None, 1, 30.0, 9.5, 1,
                "{}" if is_final else json.dumps(request), '{"skeleton":7,"payloads":[]}' if status == COMPLETED else None,
                '{"type":"X"}' if status == FAILED else None, '{"run_s":0.5}', None, '["h"]',
            )  # fmt: skip
            db.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(values))})", values)
    db.execute("INSERT INTO events VALUES (41, 'old', 'status', '{}')")
    db.commit()
    db.close()

    for _ in range(2):
        store = JobStore(tmp_path / "jobs.sqlite")
        unfinished = {found.job_id: found for found in store.unfinished().result()}
        assert set(unfinished) == {f"{status}-{kind}" for status in (IN_QUEUE, IN_PROGRESS) for kind in requests}
        for kind, request in requests.items():
            found = unfinished[f"IN_PROGRESS-{kind}"]
            assert (found.kind, found.attempts, found.timeout, found.detached, found.principal) == (kind, 1, 9.5, True, "owner")
            assert (found.missing, found.priority, found.deadline, found.lease_owner) == ((), 0, None, None)
            assert store.request(found.job_id).result() == request
        ended = {status: store.get(f"{status}-call").result() for status in sorted(FINAL)}
        assert all(found is not None and (found.status, found.artifacts) == (status, ("h",)) for status, found in ended.items())
        assert [found.output for found in ended.values() if found is not None and found.status == COMPLETED] == [
            {"skeleton": 7, "payloads": []}
        ]
        record = store.key_record("old-key").result()
        assert (None if record is None else (record.job_id, record.principal)) == (("old", "owner") if keys else None)
        assert store.last_seq().result() == 41
        store.close()
