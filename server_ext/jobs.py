"""Persistent storage of jobs: one SQLite file and one thread that reads and writes it, so that the event loop never waits for the disk.

Each operation returns a future. Operations that are queued at the same time share a transaction. With ``synchronous=NORMAL`` in WAL mode
a killed process loses no committed data; a power failure can lose the last transactions, but does not corrupt the file.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.errors import StorageFailed
from yggdrasill.protocol.states import FINAL
from yggdrasill.server_ext.job import Event, Job, KeyRecord
from yggdrasill.server_ext.job_file import job_file_failure, open_job_file
from yggdrasill.server_ext.principals import principal_of_key, private_key

__all__ = ["JobStore"]

Result = TypeVar("Result")
_Action = Callable[[sqlite3.Connection], Any]

_MAX_BATCH = 256
_PLAIN = ("job_id", "key", "graph_id", "graph_hash", "body_hash", "status", "created", "started", "finished")
_NUMBERS = ("detached", "orphan_after", "timeout", "attempts")
_JSON = ("request", "output", "error", "timing", "progress", "artifacts")
_COLUMNS = (*_PLAIN, *_NUMBERS, *_JSON)
# the statements consist of constants; values are bound as parameters
_INSERT = f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_CHANGING = ("status", "started", "finished", "attempts", "output", "error", "timing", "progress", "artifacts", "request")
_UPDATE = f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE job_id = ?"  # noqa: S608
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"  # noqa: S608
_RECORD_KEY = "INSERT OR REPLACE INTO keys (key, job_id, body_hash, status, recorded) VALUES (?, ?, ?, ?, ?)"
_RECORD_KEYS = (
    "INSERT OR REPLACE INTO keys (key, job_id, body_hash, status, recorded) "
    "SELECT key, job_id, body_hash, status, ? FROM jobs WHERE job_id = ? AND finished IS NOT NULL"
)
_LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM events"
_KEPT_SEQ = "SELECT coalesce(max(value), 0) FROM numbers WHERE name = 'last_seq'"
_KEEP_LAST_SEQ = f"INSERT OR REPLACE INTO numbers VALUES ('last_seq', max(({_LAST_SEQ}), ({_KEPT_SEQ})))"  # noqa: S608
_SELECT_SUMMARY = _SELECT.replace(" request, output,", " '{}', NULL,")


@dataclass(frozen=True)
class _Operation:
    action: _Action
    reading: bool
    future: Future[Any] = field(default_factory=Future)


class JobStore:
    """The jobs of an endpoint and their events. A damaged file is moved aside on opening; see `open_job_file`.

    All methods except `close` return futures. Operations run in the order of the calls.

    Raises:
        StorageFailed: the file cannot be opened or (in a future) written; then nothing of that operation was stored.
        UnsupportedVersion: the file was written by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._operations: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="yggdrasill-jobs", daemon=True)
        self._thread.start()
        opened.result()

    # -- writing ------------------------------------------------------------------------------------------------

    def insert(self, job: Job) -> Future[None]:
        """Insert a job."""
        values = _to_row(job)
        return self._write(lambda db: db.execute(_INSERT, values))

    def update(self, job: Job) -> Future[None]:
        """Write the columns of a job that change during its life."""
        row = dict(zip(_COLUMNS, _to_row(job), strict=True))
        values = (*(row[name] for name in _CHANGING), job.job_id)
        return self._write(lambda db: db.execute(_UPDATE, values))

    def add_event(self, event: Event, replaced: int | None = None) -> Future[None]:
        """Append an event with a new ``seq``. The event with the number ``replaced``, if given, is deleted."""
        values = (event.seq, event.job_id, event.kind, event.text)

        def operation(db: sqlite3.Connection) -> None:
            if replaced is not None:
                db.execute("DELETE FROM events WHERE seq = ?", (replaced,))
            db.execute("INSERT INTO events (seq, job_id, kind, data) VALUES (?, ?, ?, ?)", values)

        return self._write(operation)

    def record_key(self, record: KeyRecord) -> Future[None]:
        """Insert or replace the record of a key."""
        values = astuple(record)
        return self._write(lambda db: db.execute(_RECORD_KEY, values))

    def remove(self, job_ids: Iterable[str]) -> Future[None]:
        """Delete jobs and their events, and record the keys of those that had finished."""
        values = [(job_id,) for job_id in job_ids]
        recorded = time.time()

        def operation(db: sqlite3.Connection) -> None:
            db.execute(_KEEP_LAST_SEQ)
            db.executemany(_RECORD_KEYS, [(recorded, *value) for value in values])
            db.executemany("DELETE FROM events WHERE job_id = ?", values)
            db.executemany("DELETE FROM jobs WHERE job_id = ?", values)

        return self._write(operation)

    def forget_keys(self, *, recorded_before: float, keep: int) -> Future[None]:
        """Delete the records of keys before ``recorded_before`` and those beyond the ``keep`` newest."""

        def operation(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM keys WHERE recorded < ?", (recorded_before,))
            db.execute("DELETE FROM keys WHERE key IN (SELECT key FROM keys ORDER BY recorded DESC LIMIT -1 OFFSET ?)", (keep,))

        return self._write(operation)

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Future[Job | None]:
        """Return the job with this id, or None."""

        def operation(db: sqlite3.Connection) -> Job | None:
            row = db.execute(f"{_SELECT} WHERE job_id = ?", (job_id,)).fetchone()
            return None if row is None else _from_row(row)

        return self._read(operation)

    def principal_of(self, job_id: str) -> Future[str | None]:
        """Return the name of the principal of a job, or None if there is no such job."""

        def operation(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT key FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            return None if row is None else principal_of_key(row[0])

        return self._read(operation)

    def keys(self) -> Future[dict[str, str]]:
        """Return the job id of every job key."""
        return self._read(lambda db: dict(db.execute("SELECT key, job_id FROM jobs").fetchall()))

    def key_record(self, key: str) -> Future[KeyRecord | None]:
        """Return the record of a key without a job, or None."""

        def operation(db: sqlite3.Connection) -> KeyRecord | None:
            row = db.execute("SELECT key, job_id, body_hash, status, recorded FROM keys WHERE key = ?", (key,)).fetchone()
            return None if row is None else KeyRecord(*row)

        return self._read(operation)

    def artifacts(self) -> Future[dict[str, tuple[str, ...]]]:
        """Return the artifacts that each job pins."""
        return self._read(_artifacts)

    def unfinished(self) -> Future[list[Job]]:
        """Return the unfinished jobs, oldest first."""
        return self._read(_unfinished)

    def newest(
        self, *, graph_id: str | None = None, status: str | None = None, limit: int = 100, principal: str | None = None
    ) -> Future[list[Job]]:
        """Return jobs, newest first, without request and output."""
        statement = (
            f"{_SELECT_SUMMARY} WHERE (?1 IS NULL OR graph_id = ?1) AND (?2 IS NULL OR status = ?2) AND (?4 IS NULL OR substr(key, 1, length(?4)) = ?4) "
            "ORDER BY created DESC LIMIT ?3"
        )
        prefix = None if principal is None else private_key(principal, "")
        return self._read(lambda db: [_from_row(row) for row in db.execute(statement, (graph_id, status, limit, prefix))])

    def expired(self, *, finished_before: float, keep: int) -> Future[list[str]]:
        """Return the ids of jobs that finished before ``finished_before`` or are not among the ``keep`` newest finished ones."""
        statement = (
            "SELECT job_id FROM jobs WHERE finished < ?1 UNION "
            "SELECT job_id FROM (SELECT job_id FROM jobs WHERE finished IS NOT NULL ORDER BY finished DESC LIMIT -1 OFFSET ?2)"
        )
        return self._read(lambda db: [row[0] for row in db.execute(statement, (finished_before, keep))])

    def last_seq(self) -> Future[int]:
        """Return the highest ``seq`` that was ever stored, or 0. Removed events count."""
        return self._read(lambda db: max(int(db.execute(statement).fetchone()[0]) for statement in (_LAST_SEQ, _KEPT_SEQ)))

    def events(self, job_id: str | None, after: int, limit: int = 1000) -> Future[list[Event]]:
        """Return events of one job, or of all, with a ``seq`` above ``after``, in order."""
        statement = "SELECT seq, job_id, kind, data FROM events WHERE seq > ?1 AND (?2 IS NULL OR job_id = ?2) ORDER BY seq LIMIT ?3"

        def operation(db: sqlite3.Connection) -> list[Event]:
            return [Event(seq, owner, kind, json.loads(data)) for seq, owner, kind, data in db.execute(statement, (after, job_id, limit))]

        return self._read(operation)

    def close(self) -> None:
        """Complete all queued operations and close the file. Later operations raise `StorageFailed`."""
        with self._lock:
            if not self._closed:
                self._operations.put(None)
            self._closed = True
        self._thread.join()

    # -- the storage thread -------------------------------------------------------------------------------------

    def _read(self, action: _Action) -> Future[Any]:
        return self._submit(_Operation(action, reading=True))

    def _write(self, action: _Action) -> Future[Any]:
        return self._submit(_Operation(action, reading=False))

    def _submit(self, operation: _Operation) -> Future[Any]:
        with self._lock:
            if self._closed:
                operation.future.set_exception(
                    StorageFailed(f"The job file {self._path!r} is closed: the endpoint has stopped. Call again when it is back.")
                )
            else:
                self._operations.put(operation)
        return operation.future

    def _run(self, opened: Future[None]) -> None:
        try:
            db = open_job_file(self._path, lambda db: (_unfinished(db), _artifacts(db)))
        except BaseException as error:  # noqa: BLE001 - raised again in the constructor
            opened.set_exception(error)
            return
        opened.set_result(None)
        is_open = True
        while is_open:
            batch = []
            entry = self._operations.get()
            while entry is not None:
                # an operation whose future was cancelled is not executed; afterwards a future cannot be cancelled
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
                if len(batch) == _MAX_BATCH or self._operations.empty():
                    break
                entry = self._operations.get()
            is_open = entry is not None
            self._commit(db, batch)
        db.close()

    def _commit(self, db: sqlite3.Connection, batch: list[_Operation]) -> None:
        try:
            db.execute("BEGIN IMMEDIATE")
            done = [(operation.future, operation.action(db)) for operation in batch]
            db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - reported to the caller; the thread must survive every error
            if db.in_transaction:
                db.execute("ROLLBACK")
            if len(batch) > 1:
                # retry each operation alone, so that only the failing one is lost
                for operation in batch:
                    self._commit(db, [operation])
            else:
                for operation in batch:
                    operation.future.set_exception(job_file_failure(self._path, error, reading=operation.reading))
            return
        for future, result in done:
            future.set_result(result)


def _artifacts(db: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    statement = "SELECT job_id, artifacts FROM jobs WHERE artifacts != '[]'"
    return {job_id: tuple(json.loads(text)) for job_id, text in db.execute(statement).fetchall()}


def _unfinished(db: sqlite3.Connection) -> list[Job]:
    marks = ", ".join("?" * len(FINAL))
    statement = f"{_SELECT} WHERE status NOT IN ({marks}) ORDER BY created"
    # fetch all rows first: the traceback of an unreadable row would keep the statement, and with it the file, open
    return [_from_row(row) for row in db.execute(statement, tuple(FINAL)).fetchall()]


def _text(value: Any) -> str:
    # ASCII, because a lone surrogate has no UTF-8 form
    return json.dumps(value, separators=(",", ":"))


def _to_row(job: Job) -> tuple[Any, ...]:
    plain = (getattr(job, name) for name in (*_PLAIN, *_NUMBERS))
    return (*plain, *(None if (value := getattr(job, name)) is None else _text(value) for name in _JSON))


def _from_row(row: tuple[Any, ...]) -> Job:
    fields = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        fields[name] = None if fields[name] is None else json.loads(fields[name])
    return Job(**{**fields, "detached": bool(fields["detached"]), "artifacts": tuple(fields["artifacts"])})
