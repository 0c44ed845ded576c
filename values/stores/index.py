"""The index of an embedded store: an SQLite file that one process opens, with what is stored, when it was used, and the leases."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from yggdrasill.errors import StorageFailed, UnsupportedVersion
from yggdrasill.values.stores.base import Writer

__all__ = ["INDEX_FILE", "Candidate", "Index"]

INDEX_FILE = "index.sqlite"

_LOG = logging.getLogger("yggdrasill.values")
_VERSION = 1
_LOCK_TIMEOUT = 1.0
_SIDE_FILES = ("-wal", "-shm", "-journal", "")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    hash TEXT PRIMARY KEY, nbytes INTEGER NOT NULL, charge INTEGER NOT NULL, used INTEGER NOT NULL, created REAL NOT NULL,
    principal TEXT NOT NULL, job TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS objects_by_use ON objects (used, hash, charge);
CREATE TABLE IF NOT EXISTS leases (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, ends REAL, hashes BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS leases_by_owner ON leases (owner);
"""
#: (time of last use in ns, hash, charge in bytes)
Candidate = tuple[int, str, int]
_HASH_BYTES = 32


class Index:
    """The index in ``folder``. Not thread-safe: the store calls it under its lock. Raises `StorageFailed` if the file fails.

    The file is not flushed to the disk: after a power failure, the store rebuilds a damaged index from its files. ``is_new`` is true if
    the file was created, so that the files of the folder are not in it.

    Raises:
        StorageFailed: another process uses the index, or it cannot be created. UnsupportedVersion: a newer version wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX_FILE
        self.is_new = not self._path.exists()
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._failure(error) from error
            _LOG.warning("The artifact index %s is damaged (%s). It is rebuilt from the files of the folder.", self._path, error)
            self._remove_files()
            self.is_new = True
            try:
                self._db = self._open()
            except sqlite3.Error as second:
                raise self._failure(second) from second

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def used_bytes(self) -> int:
        """Return the sum of all charges."""
        return int(self._row("SELECT COALESCE(SUM(charge), 0) FROM objects")[0])

    def add(self, digest: str, nbytes: int, charge: int, used: int, writer: Writer) -> bool:
        """Add an artifact. Return False if it is in the index already; its last use is then set."""
        row = (digest, nbytes, charge, used, time.time(), writer.principal, writer.job)
        if self._run("INSERT OR IGNORE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", row).rowcount:
            return True
        self._run("UPDATE objects SET used = ? WHERE hash = ?", (used, digest))
        return False

    def facts(self, digest: str) -> tuple[float, Writer] | None:
        """Return the time of the write and its writer, or None for an unknown artifact."""
        row = self._run("SELECT created, principal, job FROM objects WHERE hash = ?", (digest,)).fetchone()
        return None if row is None else (row[0], Writer(row[1], row[2]))

    def remove(self, digests: Iterable[str]) -> int:
        """Remove artifacts and return the sum of their charges."""
        freed = 0
        with self._transaction():
            for digest in digests:
                row = self._run("SELECT charge FROM objects WHERE hash = ?", (digest,)).fetchone()
                if row is not None:
                    freed += row[0]
                    self._run("DELETE FROM objects WHERE hash = ?", (digest,))
        return freed

    def touch(self, used: Mapping[str, int]) -> None:
        """Set the times of last use, in ns, by hash."""
        with self._transaction():
            try:
                self._db.executemany("UPDATE objects SET used = ? WHERE hash = ?", ((at, digest) for digest, at in used.items()))
            except sqlite3.Error as error:
                raise self._failure(error) from error

    def least_used(self, after: Candidate | None, count: int) -> list[Candidate]:
        """Return up to ``count`` artifacts, the least recently used first, that come after ``after``."""
        used, digest = (-1, "") if after is None else after[:2]
        query = "SELECT used, hash, charge FROM objects WHERE (used, hash) > (?, ?) ORDER BY used, hash LIMIT ?"
        return self._run(query, (used, digest, count)).fetchall()

    def lease(self, owner: str, digests: Iterable[str], ends: float | None) -> None:
        """Record a lease; ``ends`` is the time of its end, None for the life of the process."""
        self._run("INSERT INTO leases (owner, ends, hashes) VALUES (?, ?, ?)", (owner, ends, bytes.fromhex("".join(digests))))

    def release(self, owner: str) -> None:
        """Forget all leases of an owner."""
        self._run("DELETE FROM leases WHERE owner = ?", (owner,))

    def leases(self, ends: float) -> Iterator[tuple[str, list[str], float]]:
        """Yield owner, hashes and end of the leases of an earlier process. Those for its life end at ``ends``."""
        self._run("DELETE FROM leases WHERE ends <= ?", (time.time(),))
        self._run("UPDATE leases SET ends = ? WHERE ends IS NULL", (ends,))
        for owner, end, data in self._run("SELECT owner, ends, hashes FROM leases", ()).fetchall():
            yield owner, [data[at : at + _HASH_BYTES].hex() for at in range(0, len(data), _HASH_BYTES)], end

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=_LOCK_TIMEOUT, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version > _VERSION:
                raise UnsupportedVersion(
                    f"{str(self._path)!r} was written by a newer version (format {version}; this version reads {_VERSION}). Update yggdrasill."
                )
            check = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            if check != "ok":
                raise sqlite3.DatabaseError(check)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute("BEGIN EXCLUSIVE")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _remove_files(self) -> None:
        for suffix in _SIDE_FILES:
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _row(self, query: str) -> tuple[int, ...]:
        row: tuple[int, ...] = self._run(query, ()).fetchone()
        return row

    def _run(self, query: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(query, values)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _transaction(self) -> _Transaction:
        return _Transaction(self)

    def _failure(self, error: sqlite3.Error) -> StorageFailed:
        path = str(self._path)
        if "locked" in str(error):
            return StorageFailed(
                f"Another process uses the artifact folder {str(self._path.parent)!r}. Give each endpoint its own data folder, "
                "or a folder that they share with --artifacts.",
                path=path,
            )
        return StorageFailed(f"The artifact index {path!r} cannot be used: {error}. Free disk space, or check the folder.", path=path)


class _Transaction:
    """One transaction of an index: committed at the end, rolled back after an error."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __enter__(self) -> None:
        self._index._run("BEGIN", ())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._index._run("COMMIT" if kind is None else "ROLLBACK", ())
