"""Persistent storage of jobs: one SQLite file and one thread that reads and writes it, so that the event loop never waits for the disk.

Each operation returns a future. Operations that are queued at the same time share a transaction. With ``synchronous=NORMAL`` in WAL mode
a killed process loses no committed data; a power failure can lose the last transactions, but does not corrupt the file. Events are written
with the next other operation or `JobStore.flush`, so that a short job does not cost one transaction per event.

The last part of the module deletes finished jobs beyond their limits.
"""

from __future__ import annotations

import asyncio
import json
import queue
import shutil
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.errors import StorageFailed
from yggdrasill.protocol.states import FINAL, IN_PROGRESS, STATES
from yggdrasill.server_ext.jobs.model import PREDECESSORS, Event, Job, KeyRecord
from yggdrasill.server_ext.jobs.schema import job_file_failure, open_job_file
from yggdrasill.values.stores.folder import FolderStore
from yggdrasill.values.stores.threaded import PinThread

__all__ = ["JobStore", "OutputRetention", "Retention", "default_quota"]

Result = TypeVar("Result")
_Action = Callable[[sqlite3.Connection], Any]

_MAX_BATCH = 256
_MAX_DEFERRED = 200
_PLAIN = ("job_id", "key", "graph_id", "graph_hash", "body_hash", "kind", "status", "created", "started", "finished")
_NUMBERS = (
    "detached",
    "orphan_after",
    "timeout",
    "deadline",
    "priority",
    "attempts",
    "lease_owner",
    "lease_until",
    "principal",
    "stopped_as",
    "stop_reason",
)
_JSON = ("request", "missing", "output", "error", "timing", "progress", "artifacts")
_COLUMNS = (*_PLAIN, *_NUMBERS, *_JSON)
# the statements consist of constants; values are bound as parameters
_INSERT = f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_CHANGING = (
    "status", "started", "finished", "attempts", "lease_owner", "lease_until", "missing", "output", "error", "timing", "progress", "artifacts",
)  # fmt: skip
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"  # noqa: S608
_RECORD_KEY = "INSERT OR REPLACE INTO keys (key, job_id, body_hash, status, recorded, principal) VALUES (?, ?, ?, ?, ?, ?)"
_RECORD_KEYS = (
    "INSERT OR REPLACE INTO keys (key, job_id, body_hash, status, recorded, principal) "
    "SELECT key, job_id, body_hash, status, ?, principal FROM jobs WHERE job_id = ? AND finished IS NOT NULL"
)
_SELECT_KEY = "SELECT key, job_id, body_hash, status, recorded, principal FROM keys WHERE key = ?"
_LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM events"
_UNREPORTED = (
    "SELECT job_id, status, error FROM jobs WHERE finished IS NOT NULL AND NOT EXISTS (SELECT 1 FROM events WHERE events.job_id = jobs.job_id "  # noqa: S608
    f"AND kind = 'status' AND json_extract(data, '$.status') IN ({', '.join('?' * len(FINAL))})) ORDER BY finished"
)
_KEPT_SEQ = "SELECT coalesce(max(value), 0) FROM numbers WHERE name = 'last_seq'"
_KEEP_LAST_SEQ = f"INSERT OR REPLACE INTO numbers VALUES ('last_seq', max(({_LAST_SEQ}), ({_KEPT_SEQ})))"  # noqa: S608
_SELECT_SUMMARY = _SELECT.replace(" request, missing, output,", " NULL, missing, NULL,")


def _transition_to(status: str) -> str:
    """Return the statement that brings a row to a state from one that may precede it. A job that has ended needs no request."""
    changed = ", ".join(f"{name} = ?" for name in _CHANGING) + (", request = '{}'" if status in FINAL else "")
    earlier = ", ".join(f"'{name}'" for name in PREDECESSORS[status])
    return f"UPDATE jobs SET {changed} WHERE job_id = ? AND status IN ({earlier})"  # noqa: S608


_TRANSITION = {status: _transition_to(status) for status in STATES}


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
        #: Operations to be executed together; None at the end.
        self._operations: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        #: Operations that are executed before the next one.
        self._deferred: list[_Operation] = []
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="yggdrasill-jobs", daemon=True)
        self._thread.start()
        opened.result()

    # -- writing ------------------------------------------------------------------------------------------------

    def insert(self, job: Job) -> Future[KeyRecord | None]:
        """Insert a job, which must have its request. If there is a record of its key, return that, and insert nothing."""
        # encoded on the thread of the store, because a request may be large
        kept = replace(job)

        def operation(db: sqlite3.Connection) -> KeyRecord | None:
            row = db.execute(_SELECT_KEY, (kept.key,)).fetchone()
            if row is None:
                db.execute(_INSERT, tuple(_encode(kept, name) for name in _COLUMNS))
            return None if row is None else KeyRecord(*row)

        return self._write(operation)

    def transition(self, job: Job) -> Future[bool]:
        """Bring the row of a job to ``job.status`` and write the columns that change during its life.

        Returns False, and changes nothing, if the row is in a state that the new one may not follow, or does not exist.
        """
        kept, statement = replace(job), _TRANSITION[job.status]
        return self._write(lambda db: db.execute(statement, (*(_encode(kept, name) for name in _CHANGING), kept.job_id)).rowcount == 1)

    def record_stop(self, job_id: str, stopped_as: str, reason: str) -> Future[None]:
        """Record that an unfinished job was stopped, so that a restart ends it as ``stopped_as``. The first stop counts."""
        statement = "UPDATE jobs SET stopped_as = ?, stop_reason = ? WHERE job_id = ? AND finished IS NULL AND stopped_as IS NULL"
        return self._write(lambda db: db.execute(statement, (stopped_as, reason, job_id)))

    def renew_leases(self, owner: str, until: float) -> Future[None]:
        """Set the end of the leases of all running jobs of ``owner``."""
        statement = "UPDATE jobs SET lease_until = ? WHERE lease_owner = ? AND status = ?"
        return self._write(lambda db: db.execute(statement, (until, owner, IN_PROGRESS)))

    def add_event(self, event: Event, replaced: int | None = None, *, lazily: bool = False) -> Future[None]:
        """Append an event with a new ``seq``. The event with the number ``replaced``, if given, is deleted.

        ``lazily``: it is written with the next operation, or by `flush`.
        """
        values = (event.seq, event.job_id, event.kind, event.text)

        def operation(db: sqlite3.Connection) -> None:
            if replaced is not None:
                db.execute("DELETE FROM events WHERE seq = ?", (replaced,))
            db.execute("INSERT INTO events (seq, job_id, kind, data) VALUES (?, ?, ?, ?)", values)

        return self._submit(_Operation(operation, reading=False), lazily=lazily)

    def flush(self) -> None:
        """Write what was deferred, if there is any."""
        with self._lock:
            self._put()

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

    def request(self, job_id: str) -> Future[dict[str, Any]]:
        """Return the request of an unfinished job; ``{}`` if it has ended or does not exist."""

        def operation(db: sqlite3.Connection) -> dict[str, Any]:
            row = db.execute("SELECT request FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            return {} if row is None else dict(json.loads(row[0]))

        return self._read(operation)

    def principal_of(self, job_id: str) -> Future[str | None]:
        """Return the name of the principal of a job, or None if there is no such job."""

        def operation(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT principal FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            return None if row is None else str(row[0])

        return self._read(operation)

    def keys(self) -> Future[dict[str, str]]:
        """Return the job id of every job key."""
        return self._read(lambda db: dict(db.execute("SELECT key, job_id FROM jobs").fetchall()))

    def key_record(self, key: str) -> Future[KeyRecord | None]:
        """Return the record of a key without a job, or None."""

        def operation(db: sqlite3.Connection) -> KeyRecord | None:
            row = db.execute(_SELECT_KEY, (key,)).fetchone()
            return None if row is None else KeyRecord(*row)

        return self._read(operation)

    def artifacts(self) -> Future[dict[str, tuple[str, ...]]]:
        """Return the artifacts that each job pins."""
        return self._read(_artifacts)

    def unfinished(self) -> Future[list[Job]]:
        """Return the unfinished jobs, oldest first, without their requests but with ``nbytes``."""
        return self._read(_unfinished)

    def newest(
        self, *, graph_id: str | None = None, status: str | None = None, principal: str | None = None, limit: int = 100
    ) -> Future[list[Job]]:
        """Return jobs, newest first, without request and output."""
        statement = (
            f"{_SELECT_SUMMARY} WHERE (?1 IS NULL OR graph_id = ?1) AND (?2 IS NULL OR status = ?2) AND (?3 IS NULL OR principal = ?3) "
            "ORDER BY created DESC LIMIT ?4"
        )
        values = graph_id, status, principal, limit
        return self._read(lambda db: [_from_row(row) for row in db.execute(statement, values)])

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

    def unreported_ends(self) -> Future[list[tuple[str, str, dict[str, Any] | None]]]:
        """Return id, state and error of each finished job whose end has no event, because the process was killed between the two writes."""

        def operation(db: sqlite3.Connection) -> list[tuple[str, str, dict[str, Any] | None]]:
            rows = db.execute(_UNREPORTED, tuple(FINAL)).fetchall()
            return [(job_id, status, None if error is None else json.loads(error)) for job_id, status, error in rows]

        return self._read(operation)

    def events(self, job_id: str | None, after: int, limit: int = 1000) -> Future[list[Event]]:
        """Return events of one job, or of all, with a ``seq`` above ``after``, in order."""
        statement = "SELECT seq, job_id, kind, data FROM events WHERE seq > ?1 AND (?2 IS NULL OR job_id = ?2) ORDER BY seq LIMIT ?3"

        def operation(db: sqlite3.Connection) -> list[Event]:
            return [Event.stored(*row) for row in db.execute(statement, (after, job_id, limit))]

        return self._read(operation)

    def close(self) -> None:
        """Complete all queued operations and close the file. Later operations raise `StorageFailed`."""
        with self._lock:
            if not self._closed:
                self._put()
                self._operations.put(None)
            self._closed = True
        self._thread.join()

    # -- the storage thread -------------------------------------------------------------------------------------

    def _read(self, action: _Action) -> Future[Any]:
        return self._submit(_Operation(action, reading=True))

    def _write(self, action: _Action) -> Future[Any]:
        return self._submit(_Operation(action, reading=False))

    def _put(self, *operations: _Operation) -> None:
        together, self._deferred = [*self._deferred, *operations], []
        if together:
            self._operations.put(together)

    def _submit(self, operation: _Operation, *, lazily: bool = False) -> Future[Any]:
        with self._lock:
            if self._closed:
                operation.future.set_exception(
                    StorageFailed(f"The job file {self._path!r} is closed: the endpoint has stopped. Call again when it is back.")
                )
            elif lazily and len(self._deferred) < _MAX_DEFERRED:
                self._deferred.append(operation)
            else:
                self._put(operation)
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
            batch: list[_Operation] = []
            entry = self._operations.get()
            while entry is not None:
                # an operation whose future was cancelled is not executed; afterwards a future cannot be cancelled
                batch += [operation for operation in entry if operation.future.set_running_or_notify_cancel()]
                if len(batch) >= _MAX_BATCH or self._operations.empty():
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
    select = _SELECT_SUMMARY.replace(" FROM", ", length(request), json_valid(request) FROM")
    statement = f"{select} WHERE status NOT IN ({marks}) ORDER BY created"
    found = []
    # fetch all rows first: the traceback of an unreadable row would keep the statement, and with it the file, open
    for *row, nbytes, is_json in db.execute(statement, tuple(FINAL)).fetchall():
        if not is_json:
            raise ValueError("a request is not JSON")
        found.append(replace(_from_row(row), nbytes=nbytes))
    return found


def _encode(job: Job, name: str) -> Any:
    value = getattr(job, name)
    # ASCII, because a lone surrogate has no UTF-8 form
    return value if value is None or name not in _JSON else json.dumps(value, separators=(",", ":"))


def _from_row(row: Sequence[Any]) -> Job:
    fields = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        fields[name] = None if fields[name] is None else json.loads(fields[name])
    for name in ("artifacts", "missing"):
        fields[name] = tuple(fields[name])
    return Job(**{**fields, "detached": bool(fields["detached"])})


_MAX_DEFAULT_QUOTA = 64 << 30


@dataclass(frozen=True)
class Retention:
    """Limits for finished jobs: age in seconds, number of jobs, and bytes of output artifacts.

    The keys of deleted jobs are kept apart from them, so that no call runs twice: for ``key_seconds`` after the deletion, at most ``keys``.
    """

    seconds: float = 24 * 3600.0
    jobs: int = 1000
    bytes: int = 16 << 30
    key_seconds: float = 24 * 3600.0
    keys: int = 500_000

    def within(self, quota: int) -> Retention:
        """Return limits with outputs bounded to half of a store's ``quota``, so that new artifacts have room."""
        return replace(self, bytes=min(self.bytes, quota // 2))


def default_quota(store: FolderStore) -> int:
    """Return the default quota in bytes: half of the free disk space plus the store's size, at most 64 GiB.

    Raises:
        StorageFailed: the free space cannot be read.
    """
    used = store.used_bytes
    try:
        return min(_MAX_DEFAULT_QUOTA, (shutil.disk_usage(store.folder).free + used) // 2)
    except OSError as error:
        raise StorageFailed(
            f"Cannot read the free space at {str(store.folder)!r}: {error.strerror or error}. Set artifact_quota."
        ) from error


class OutputRetention:
    """Pins the outputs of finished jobs, and removes the oldest jobs beyond the limits."""

    def __init__(self, jobs: JobStore, pins: PinThread, limits: Retention) -> None:
        self._jobs, self._pins, self._limits = jobs, pins, limits
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._clock_offset = time.time() - time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether outputs exceed the byte limit. The newest output is always kept."""
        return len(self._kept) > 1 and sum(self._kept.values()) > self._limits.bytes

    def keep(self, job_id: str, hashes: tuple[str, ...]) -> None:
        """Pin the artifacts of a finished job."""
        self._kept[job_id] = 0
        self._pins.keep(f"job:{job_id}", hashes, lambda nbytes: self._measured(job_id, nbytes))

    def _measured(self, job_id: str, nbytes: int) -> None:
        if job_id in self._kept:
            self._kept[job_id] = nbytes

    def _now(self) -> float:
        """Return the seconds since the epoch for ages. If the clock was changed since the start, ages are too low rather than too high."""
        return min(time.time(), time.monotonic() + self._clock_offset)

    async def prune(self) -> set[str]:
        """Delete jobs beyond the limits, unpin their artifacts, and return their ids.

        Raises:
            StorageFailed: a part of it could not be done; the next call does it.
        """
        limits, now = self._limits, self._now()
        expired: list[str] = await asyncio.wrap_future(self._jobs.expired(finished_before=now - limits.seconds, keep=limits.jobs))
        removed = set(expired)
        total = sum(self._kept.values())
        for job_id, nbytes in list(self._kept.items())[:-1]:
            if total <= limits.bytes:
                break
            total -= nbytes
            removed.add(job_id)
        if removed:
            await asyncio.wrap_future(self._jobs.remove(list(removed)))
        for job_id in removed:
            self._kept.pop(job_id, None)
            self._pins.unpin(f"job:{job_id}")
        await asyncio.wrap_future(self._jobs.forget_keys(recorded_before=now - limits.key_seconds, keep=limits.keys))
        return removed
