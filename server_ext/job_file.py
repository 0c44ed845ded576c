"""The SQLite file of an endpoint's jobs: opened for one endpoint alone, made where there is none, set aside where it is damaged."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from yggdrasill.errors import StorageFailed, UnsupportedVersion, YggdrasillError

__all__ = ["job_file_failure", "open_job_file"]

_LOG = logging.getLogger("yggdrasill.server")
_VERSION = 1
_PATIENCE = 1.0
_BESIDE = ("-wal", "-shm", "-journal")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, graph_id TEXT NOT NULL, graph_hash TEXT NOT NULL, body_hash TEXT NOT NULL,
    status TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, detached INTEGER NOT NULL, orphan_after REAL NOT NULL,
    timeout REAL, attempts INTEGER NOT NULL, request TEXT NOT NULL, output TEXT, error TEXT, timing TEXT NOT NULL, progress TEXT,
    artifacts TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_age ON jobs (finished);
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, job_id TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_job ON events (job_id, seq);
"""


def open_job_file(path: str, read: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    """A connection that keeps the file to itself.

    ``read`` is what an endpoint reads first. A file that is damaged, or of which that cannot be read, gets another name beside it, one
    line in the log says so, and a new one takes its place: jobs are no reason for an endpoint never to start again.

    Raises:
        StorageFailed: it cannot be used, or belongs to another endpoint. UnsupportedVersion: a newer version wrote the file.
    """
    try:
        return _opened(path, read)
    except YggdrasillError:
        raise
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:  # the others: a row that no version of this wrote
        if not _is_damage(error):
            raise job_file_failure(path, error) from error
        try:
            kept = _set_aside(Path(path))
        except OSError:
            raise job_file_failure(path, error) from error
        _LOG.warning(
            "the job file %r is damaged (%s); it is kept as %r, and the endpoint begins with no jobs", path, _said(error), kept.name
        )
    try:
        return _opened(path, read)
    except sqlite3.Error as error:
        raise job_file_failure(path, error) from error


def job_file_failure(path: str, error: Exception) -> StorageFailed:
    """What a failure to read or write the file means to a person."""
    if "locked" in str(error):
        return StorageFailed(f"another endpoint uses the job file {path!r}; give each its own data folder", path=path)
    if _is_damage(error):
        return StorageFailed(
            f"the job file {path!r} is damaged: {_said(error)}; move it away (with those beside it whose names begin the same) to begin "
            "with no jobs, and start again",
            path=path,
        )
    return StorageFailed(f"the job file {path!r} cannot be used: {error}; free space, or check the folder and its permissions", path=path)


def _opened(path: str, read: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE)
    try:
        # whoever opens the file first keeps it to himself: two endpoints on one folder would both run its jobs
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > _VERSION:
            raise UnsupportedVersion(
                f"{path!r} was written by a newer version (format {version}, this one reads {_VERSION}); update yggdrasill"
            )
        found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("BEGIN EXCLUSIVE")
        db.execute("COMMIT")
        read(db)
    except BaseException:
        db.close()
        raise
    return db


def _is_damage(error: Exception) -> bool:
    """Whether it comes of what is in the file, and not of the disk or of another endpoint."""
    return type(error) is sqlite3.DatabaseError or not isinstance(error, sqlite3.Error) or "decode to UTF-8" in str(error)


def _said(error: Exception) -> str:
    """The error in one line, without what stands in the file."""
    return " ".join(str(error).partition(" with text ")[0].split())


def _set_aside(file: Path) -> Path:
    """Give the file, and what SQLite keeps beside it, a name that nothing has."""
    name = f"{file.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (file.with_name(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    kept = next(candidate for candidate in names if not candidate.exists())
    # the file itself goes last: what is beside it must not be taken for that of the new one
    for ending in (*_BESIDE, ""):
        piece = file.with_name(file.name + ending)
        if piece.exists():
            piece.rename(kept.with_name(kept.name + ending))
    return kept
