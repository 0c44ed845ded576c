"""The SQLite file of an endpoint's jobs: created if missing, migrated, locked for one process, moved aside if damaged."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from yggdrasill.errors import StorageFailed, UnsupportedVersion, YggdrasillError

__all__ = ["job_file_failure", "open_job_file"]

_LOG = logging.getLogger("yggdrasill.server")
_VERSION = 2
_LOCK_TIMEOUT = 1.0
_SIDE_FILE_SUFFIXES = ("-wal", "-shm", "-journal")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, graph_id TEXT NOT NULL, graph_hash TEXT NOT NULL, body_hash TEXT NOT NULL,
    status TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, detached INTEGER NOT NULL, orphan_after REAL NOT NULL,
    timeout REAL, attempts INTEGER NOT NULL, request TEXT NOT NULL, output TEXT, error TEXT, timing TEXT NOT NULL, progress TEXT,
    artifacts TEXT NOT NULL, kind TEXT NOT NULL DEFAULT 'call', priority INTEGER NOT NULL DEFAULT 0, deadline REAL,
    missing TEXT NOT NULL DEFAULT '[]', lease_owner TEXT, lease_until REAL, principal TEXT NOT NULL DEFAULT 'owner',
    stopped_as TEXT, stop_reason TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_age ON jobs (finished);
CREATE INDEX IF NOT EXISTS jobs_by_creation ON jobs (created);
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, job_id TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_job ON events (job_id, seq);
CREATE TABLE IF NOT EXISTS keys (
    key TEXT PRIMARY KEY, job_id TEXT NOT NULL, body_hash TEXT NOT NULL, status TEXT NOT NULL, recorded REAL NOT NULL,
    principal TEXT NOT NULL DEFAULT 'owner'
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_age ON keys (recorded);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
#: Statements that bring a file of version 1 to version 2. Its unfinished rows contain what makes them more than a call.
_FROM_VERSION_1 = (
    "ALTER TABLE jobs ADD COLUMN kind TEXT NOT NULL DEFAULT 'call'",
    "ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN deadline REAL",
    "ALTER TABLE jobs ADD COLUMN missing TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE jobs ADD COLUMN lease_owner TEXT",
    "ALTER TABLE jobs ADD COLUMN lease_until REAL",
    "ALTER TABLE jobs ADD COLUMN principal TEXT NOT NULL DEFAULT 'owner'",
    "ALTER TABLE jobs ADD COLUMN stopped_as TEXT",
    "ALTER TABLE jobs ADD COLUMN stop_reason TEXT",
    "ALTER TABLE keys ADD COLUMN principal TEXT NOT NULL DEFAULT 'owner'",
    "UPDATE jobs SET kind = 'workflow' WHERE CASE WHEN json_valid(request) THEN json_type(request, '$.workflow') END IS NOT NULL",
    "UPDATE jobs SET kind = 'model' WHERE CASE WHEN json_valid(request) THEN json_type(request, '$.model') END IS NOT NULL",
)


def open_job_file(path: str, read: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    """Open the file with an exclusive lock and return the connection.

    ``read(db)`` reads the rows that the endpoint needs first. If the file is damaged or ``read`` fails, the file is renamed, a warning is
    logged and a new file is created, so that damaged jobs do not keep the endpoint from starting.

    Raises:
        StorageFailed: the file cannot be used, or another endpoint uses it. UnsupportedVersion: a newer version wrote the file.
    """
    try:
        return _open(path, read)
    except YggdrasillError:
        raise
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:  # the others: a row that no version wrote
        if not _is_damage(error):
            raise job_file_failure(path, error) from error
        try:
            kept = _move_aside(Path(path))
        except OSError:
            raise job_file_failure(path, error) from error
        _LOG.warning(
            "The job file %r is damaged (%s). It was renamed to %r; the endpoint starts without jobs.", path, _one_line(error), kept.name
        )
    try:
        return _open(path, read)
    except sqlite3.Error as error:
        raise job_file_failure(path, error) from error


def job_file_failure(path: str, error: Exception, *, reading: bool = True) -> StorageFailed:
    """Return the error to raise for a failed read or write of the file. A value that cannot be written is not damage of the file."""
    if "locked" in str(error):
        return StorageFailed(f"Another endpoint uses the job file {path!r}. Give each endpoint its own data folder.", path=path)
    if not reading and not isinstance(error, sqlite3.Error):
        return StorageFailed(
            f"A value cannot be written to the job file {path!r}: {type(error).__name__}: {_one_line(error)}. Change the value.", path=path
        )
    if _is_damage(error):
        return StorageFailed(
            f"The job file {path!r} is damaged: {_one_line(error)}. To start without jobs, move it and its -wal, -shm and -journal files away.",
            path=path,
        )
    return StorageFailed(
        f"The job file {path!r} cannot be used: {error}. Free disk space, or check the folder and its permissions.", path=path
    )


def _open(path: str, read: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_TIMEOUT)
    try:
        # exclusive: two endpoints on one folder would both run its jobs
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > _VERSION:
            raise UnsupportedVersion(
                f"{path!r} was written by a newer version (format {version}; this version reads {_VERSION}). Update yggdrasill."
            )
        check = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        if check != "ok":
            raise sqlite3.DatabaseError(check)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        _bring_up_to_date(db, version)
        read(db)
    except BaseException:
        db.close()
        raise
    return db


def _bring_up_to_date(db: sqlite3.Connection, version: int) -> None:
    """Create the tables, or add to those of an earlier version what this one needs, all at once."""
    with _transaction(db):
        # version 0 is a new file, or one whose first start was interrupted
        if version == 1:
            # releases of version 1 before the table of keys have none
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}
            for statement in _FROM_VERSION_1:
                if statement.split()[2] != "keys" or "keys" in tables:
                    db.execute(statement)
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN EXCLUSIVE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _is_damage(error: Exception) -> bool:
    """Return whether the content of the file causes the error, and not the disk or another endpoint."""
    unreadable = isinstance(error, (ValueError, TypeError, KeyError)) and not isinstance(error, sqlite3.Error)
    return type(error) is sqlite3.DatabaseError or unreadable or "decode to UTF-8" in str(error)


def _one_line(error: Exception) -> str:
    """Return the error as one line, without the content of the file."""
    return " ".join(str(error).partition(" with text ")[0].split())


def _move_aside(file: Path) -> Path:
    """Rename the file and its side files to an unused name, and return the new path."""
    name = f"{file.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (file.with_name(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    kept = next(candidate for candidate in names if not candidate.exists())
    # the file itself last: its side files must not be used with the new file
    for suffix in (*_SIDE_FILE_SUFFIXES, ""):
        side_file = file.with_name(file.name + suffix)
        if side_file.exists():
            side_file.rename(kept.with_name(kept.name + suffix))
    return kept
