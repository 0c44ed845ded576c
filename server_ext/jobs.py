"""Jobs on disk: one SQLite file, one thread that reads and writes it, so that nobody else ever waits for the disk.

Whoever needs an answer waits for the returned future; changes of one moment share a transaction. With ``synchronous=NORMAL``
in WAL mode a killed process loses nothing that was committed; a power cut may lose the last moments, never the file.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from yggdrasill.server_ext.job import FINAL, Event, Job
from yggdrasill.server_ext.job_file import job_file_failure, open_job_file

__all__ = ["JobStore"]

Result = TypeVar("Result")
_Act = Callable[[sqlite3.Connection], Any]

_BATCH = 256
_PLAIN = ("job_id", "key", "graph_id", "graph_hash", "body_hash", "status", "created", "started", "finished")
_NUMBERS = ("detached", "orphan_after", "timeout", "attempts")
_JSON = ("request", "output", "error", "timing", "progress", "artifacts")
_COLUMNS = (*_PLAIN, *_NUMBERS, *_JSON)
# the statements are made of constants alone; values come in through marks
_INSERT = f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_CHANGING = ("status", "started", "finished", "attempts", "output", "error", "timing", "progress", "artifacts", "request")
_UPDATE = f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in _CHANGING)} WHERE job_id = ?"  # noqa: S608
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"  # noqa: S608
_SELECT_FACTS = _SELECT.replace(" request, output,", " '{}', NULL,")


class JobStore:
    """The rows of an endpoint's jobs and their events. A damaged file is set aside at the start; see `open_job_file`.

    Every method but `close` returns a future; acts happen in the order in which they were asked for.

    Raises:
        StorageFailed: the file cannot be opened, or (in a future) written; then nothing of that moment was stored.
        UnsupportedVersion: a newer version wrote the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._acts: queue.SimpleQueue[tuple[_Act, Future[Any]] | None] = queue.SimpleQueue()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(opened,), name="yggdrasill-jobs", daemon=True)
        self._thread.start()
        opened.result()

    # -- writing ------------------------------------------------------------------------------------------------

    def insert(self, job: Job) -> Future[None]:
        """Add a row."""
        values = _to_row(job)
        return self._do(lambda db: db.execute(_INSERT, values))

    def update(self, job: Job) -> Future[None]:
        """Write what changes in a job's life, as it is now."""
        row = dict(zip(_COLUMNS, _to_row(job), strict=True))
        values = (*(row[name] for name in _CHANGING), job.job_id)
        return self._do(lambda db: db.execute(_UPDATE, values))

    def add_event(self, event: Event, instead_of: int | None = None) -> Future[None]:
        """Append an event; its ``seq`` must be new. The event ``instead_of`` is forgotten."""
        values = (event.seq, event.job_id, event.kind, _text(event.data))

        def act(db: sqlite3.Connection) -> None:
            if instead_of is not None:
                db.execute("DELETE FROM events WHERE seq = ?", (instead_of,))
            db.execute("INSERT INTO events (seq, job_id, kind, data) VALUES (?, ?, ?, ?)", values)

        return self._do(act)

    def remove(self, job_ids: Iterable[str]) -> Future[None]:
        """Delete rows and their events."""
        values = [(job_id,) for job_id in job_ids]

        def act(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM events WHERE job_id = ?", values)
            db.executemany("DELETE FROM jobs WHERE job_id = ?", values)

        return self._do(act)

    # -- reading ------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Future[Job | None]:
        """The job of that id, or None."""

        def act(db: sqlite3.Connection) -> Job | None:
            row = db.execute(f"{_SELECT} WHERE job_id = ?", (job_id,)).fetchone()
            return None if row is None else _from_row(row)

        return self._do(act)

    def keys(self) -> Future[dict[str, str]]:
        """The job id of every job key."""
        return self._do(lambda db: dict(db.execute("SELECT key, job_id FROM jobs").fetchall()))

    def artifacts(self) -> Future[dict[str, tuple[str, ...]]]:
        """What each row keeps alive in the artifact store."""
        return self._do(_artifacts)

    def unfinished(self) -> Future[list[Job]]:
        """Jobs in no final state, oldest first."""
        return self._do(_unfinished)

    def newest(self, *, graph_id: str | None = None, status: str | None = None, limit: int = 100) -> Future[list[Job]]:
        """Jobs, newest first, without what went in and came out."""
        statement = f"{_SELECT_FACTS} WHERE (?1 IS NULL OR graph_id = ?1) AND (?2 IS NULL OR status = ?2) ORDER BY created DESC LIMIT ?3"
        return self._do(lambda db: [_from_row(row) for row in db.execute(statement, (graph_id, status, limit))])

    def expired(self, *, finished_before: float, keep: int) -> Future[list[str]]:
        """Finished jobs that are older than that, or not among the ``keep`` newest finished ones."""
        statement = (
            "SELECT job_id FROM jobs WHERE finished < ?1 UNION "
            "SELECT job_id FROM (SELECT job_id FROM jobs WHERE finished IS NOT NULL ORDER BY finished DESC LIMIT -1 OFFSET ?2)"
        )
        return self._do(lambda db: [row[0] for row in db.execute(statement, (finished_before, keep))])

    def last_seq(self) -> Future[int]:
        """The highest ``seq`` there is, 0 without events."""
        return self._do(lambda db: int(db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]))

    def events(self, job_id: str | None, after: int, limit: int = 1000) -> Future[list[Event]]:
        """Events of one job, or of all, with a ``seq`` above ``after``, in order."""
        statement = "SELECT seq, job_id, kind, data FROM events WHERE seq > ?1 AND (?2 IS NULL OR job_id = ?2) ORDER BY seq LIMIT ?3"

        def act(db: sqlite3.Connection) -> list[Event]:
            return [Event(seq, owner, kind, json.loads(data)) for seq, owner, kind, data in db.execute(statement, (after, job_id, limit))]

        return self._do(act)

    def close(self) -> None:
        """Finish what was asked for and close the file."""
        self._acts.put(None)
        self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------------------

    def _do(self, act: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._acts.put((act, future))
        return future

    def _work(self, opened: Future[None]) -> None:
        try:
            db = open_job_file(self._path, lambda db: (_unfinished(db), _artifacts(db)))
        except BaseException as error:  # noqa: BLE001 - it is raised where the store was made
            opened.set_exception(error)
            return
        opened.set_result(None)
        open_for_more = True
        while open_for_more:
            batch = []
            entry = self._acts.get()
            while entry is not None:
                batch.append(entry)
                if len(batch) == _BATCH or self._acts.empty():
                    break
                entry = self._acts.get()
            open_for_more = entry is not None
            self._commit(db, batch)
        db.close()

    def _commit(self, db: sqlite3.Connection, batch: list[tuple[_Act, Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for act, future in batch:
                done.append((future, act(db)))
            db.execute("COMMIT")
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:  # the others: a row that no version of this wrote
            if db.in_transaction:
                db.execute("ROLLBACK")
            if len(batch) > 1:
                # one of them is at fault: each on its own, so that the others are stored
                for entry in batch:
                    self._commit(db, [entry])
            else:
                for _, future in batch:
                    future.set_exception(job_file_failure(self._path, error))
            return
        for future, result in done:
            future.set_result(result)


def _artifacts(db: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    statement = "SELECT job_id, artifacts FROM jobs WHERE artifacts != '[]'"
    return {job_id: tuple(json.loads(text)) for job_id, text in db.execute(statement).fetchall()}


def _unfinished(db: sqlite3.Connection) -> list[Job]:
    marks = ", ".join("?" * len(FINAL))
    statement = f"{_SELECT} WHERE status NOT IN ({marks}) ORDER BY created"
    # all rows first: the traceback of one that cannot be read would keep the statement, and with it the file, open
    return [_from_row(row) for row in db.execute(statement, tuple(FINAL)).fetchall()]


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _to_row(job: Job) -> tuple[Any, ...]:
    plain = (getattr(job, name) for name in (*_PLAIN, *_NUMBERS))
    return (*plain, *(None if (value := getattr(job, name)) is None else _text(value) for name in _JSON))


def _from_row(row: tuple[Any, ...]) -> Job:
    facts = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        facts[name] = None if facts[name] is None else json.loads(facts[name])
    return Job(**{**facts, "detached": bool(facts["detached"]), "artifacts": tuple(facts["artifacts"])})
