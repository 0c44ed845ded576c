"""File access of the stores in folders: partial files, reading, error translation, and the index of an embedded store.

The index is an SQLite file that one process opens. It has the artifacts that are stored, when they were used, and the leases.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path

from yggdrasill.errors import StorageFailed, UnsupportedVersion
from yggdrasill.values.payload import corrupt
from yggdrasill.values.stores.base import Writer, hashing, unknown_artifact
from yggdrasill.values.stores.memory import aligned_memory

__all__ = ["INDEX_FILE", "Candidate", "Index", "PartialFile", "hash_file", "place_new", "read_chunks", "read_file", "storage_errors"]

_MAP_FROM = 256 << 10
#: A buffer that stays in the processor's cache, and is large enough for a parallel hash.
_HASH_BUFFER_BYTES = 1 << 20
#: A file system without hard links, or one that restricts them.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class PartialFile:
    """A file that is being written and becomes an artifact once complete; ``nbytes`` counts the bytes written."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self.nbytes = 0
        self._durable = durable
        with storage_errors(path):
            self._file = FileIO(path, "wb")

    def write(self, view: memoryview) -> None:
        """Append ``view``; raises `StorageFailed`."""
        with storage_errors(self.path):
            while view.nbytes:
                written = self._file.write(view)
                self.nbytes += written
                view = view[written:]

    def close(self) -> None:
        """Close the file; raises OSError."""
        if self._durable and not self._file.closed:
            os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it was renamed to its artifact."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def place_new(partial: Path, target: Path) -> bool:
    """Rename ``partial`` to ``target`` unless that exists; return whether it was renamed. Raises OSError.

    Of several processes that place one file, one succeeds. A file system without hard links replaces an existing file instead.
    """
    if sys.platform == "win32":
        try:
            partial.rename(target)
        except FileExistsError:
            return False
        return True
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            return False
        partial.replace(target)
        return True
    with contextlib.suppress(OSError):
        partial.unlink()
    return True


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as `StorageFailed` for ``path``."""
    try:
        yield
    except StorageFailed:
        raise
    except OSError as error:
        raise StorageFailed(
            f"Cannot store artifacts at {str(path)!r}: {error.strerror or error}. Nothing was stored. Free space, set a quota, or choose another folder.",
            path=str(path),
        ) from error


@contextlib.contextmanager
def _read_errors(path: Path, hash: str) -> Iterator[None]:  # noqa: A002
    try:
        yield
    except FileNotFoundError as error:
        raise unknown_artifact(hash) from error
    except OSError as error:
        raise StorageFailed(
            f"Cannot read artifact {hash} at {str(path)!r}: {error.strerror or error}. Check the disk.", path=str(path)
        ) from error


def hash_file(path: Path) -> str:
    """Return the BLAKE3 of a file's content; raises OSError. A large file is read and hashed at the same time."""
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    size = min(_HASH_BUFFER_BYTES, max(1, path.stat().st_size))
    buffer, other = memoryview(bytearray(size)), memoryview(bytearray(size))
    with FileIO(path, "rb") as file:
        count = file.readinto(buffer)
        while count:
            with hashing(hasher, buffer[:count]):
                count = file.readinto(other)
            buffer, other = other, buffer
    return hasher.hexdigest()


def read_chunks(path: Path, hash: str, start: int, stop: int, size: int) -> Iterator[memoryview]:  # noqa: A002
    """Return an iterator over the bytes of the file from ``start`` to ``stop``, each chunk in new memory.

    The file is opened at once: raises `UnknownArtifact` or `StorageFailed` when called.
    """
    with _read_errors(path, hash):
        file = FileIO(path, "rb")
    chunks = _chunks_of(file, path, hash, start, stop, size)
    next(chunks)  # into the block that closes the file, also if no chunk is ever read
    return chunks


def _chunks_of(file: FileIO, path: Path, hash: str, start: int, stop: int, size: int) -> Generator[memoryview, None, None]:  # noqa: A002
    with file, _read_errors(path, hash):
        yield memoryview(b"")
        file.seek(start)
        while start < stop:
            data = file.read(min(size, stop - start))
            if not data:
                raise corrupt(f"artifact {hash} is shorter than its recorded length")
            start += len(data)
            yield memoryview(data)


def read_file(path: Path, nbytes: int, hash: str) -> memoryview:  # noqa: A002
    """Return all bytes of the file, writable: a copy, or for a large file a copy-on-write map if torch is installed."""
    if nbytes >= _MAP_FROM and (mapped := _mapped(path, nbytes, hash)) is not None:
        return mapped
    memory = aligned_memory(nbytes)
    with _read_errors(path, hash), FileIO(path, "rb") as file:
        if file.readinto(memory) != nbytes:
            raise corrupt(f"artifact {hash} is shorter than its recorded length")
    return memory


def _mapped(path: Path, nbytes: int, hash: str) -> memoryview | None:  # noqa: A002
    """Return a copy-on-write map made by torch, because one made by Python keeps a file descriptor open while it lives; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    try:
        return torch.from_file(str(path), shared=False, size=nbytes, dtype=torch.uint8).numpy().data
    except RuntimeError as error:
        if not path.exists():
            raise unknown_artifact(hash) from error
        raise StorageFailed(f"Cannot map artifact {hash} at {str(path)!r}: {error}. Check the disk.", path=str(path)) from error


# -- the index --------------------------------------------------------------------------------------------------------

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
